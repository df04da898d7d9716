"""The plugin, and the methods that it gives to the SDK's accessors: see test_accessors.py for what those do.

Each test is a process of its own, since all this changes the SDK for good.
"""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import json
import os
import shutil
import ssl
import sys
import threading
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.airflow.processes import in_process, listened

if TYPE_CHECKING:
    from async_state.testing import FakeS3

OURS = "async_state.AsyncStateBackend"
OTHER = "tests.airflow.dags.async_sync_backend.SyncBackend"
BACKEND = "AIRFLOW__WORKERS__STATE_STORE_BACKEND"
#: A hook that the SDK is going to await by itself, as apache/airflow#72129 proposes. No release has it yet, so a test
#: puts it where it will be.
AWAITED = "aserialize_task_state_store_to_ref"

ACCESSORS = ("TaskStateStoreAccessor", "AssetStateStoreAccessor", "AssetStateStoreAccessors")
METHODS = ("aget", "aset", "adelete", "aclear")
#: Those that call the backend on the event loop, or need a supervisor with ``asend``, where there are any.
REPLACED = {f"{accessor}.{method}" for accessor in ACCESSORS[:2] for method in METHODS}

#: The beginning of the SHA-256 of the source of what the patches replace, in task-sdk 1.3.2 and in 1.4.0b2.
PINNED = {
    "1.3": {
        "TaskStateStoreAccessor.get": "c08f6e34b1eb3a4f",
        "TaskStateStoreAccessor.set": "c887718304055fc8",
        "TaskStateStoreAccessor.delete": "ea5166dbda993ae4",
        "TaskStateStoreAccessor.clear": "22e9843e43a36c12",
        "AssetStateStoreAccessor.aget": "33c09f817b3ce03f",
        "AssetStateStoreAccessor.aset": "1fae69bc73d5cb4a",
        "AssetStateStoreAccessor._extract_get_response": "c0eadf6b2d1959e6",
        "AssetStateStoreAccessor._build_get_message": "0c8b59864ccc59e4",
        "AssetStateStoreAccessor._build_set_message": "70b7c1eac6dd1201",
        "AssetStateStoreAccessor.adelete": "bdf03ea9e2582ad7",
        "AssetStateStoreAccessor._build_delete_message": "f455d61aaccbb5f3",
        "AssetStateStoreAccessor.aclear": "c4aae12464a167d6",
        "AssetStateStoreAccessor._build_clear_message": "4d12c12132e583fb",
    },
    "1.4": {
        "TaskStateStoreAccessor.aget": "67c65c5a91518fc9",
        "TaskStateStoreAccessor.aset": "2d528e82bf31707d",
        "TaskStateStoreAccessor._extract_get_response": "8a654b2f2417aa8f",
        "TaskStateStoreAccessor._build_set_message": "a5f1c7037578022c",
        "AssetStateStoreAccessor.aget": "33c09f817b3ce03f",
        "AssetStateStoreAccessor.aset": "1fae69bc73d5cb4a",
        "AssetStateStoreAccessor._extract_get_response": "d4e2f3ee93d573ed",
        "AssetStateStoreAccessor._build_get_message": "68602d045b0538d6",
        "AssetStateStoreAccessor._build_set_message": "533f6ed7d151a08e",
        "TaskStateStoreAccessor.adelete": "e9424f74ad696b5d",
        "TaskStateStoreAccessor.aclear": "92f543c1c2554f59",
        "AssetStateStoreAccessor.adelete": "bdf03ea9e2582ad7",
        "AssetStateStoreAccessor._build_delete_message": "b6cd076a74e3109d",
        "AssetStateStoreAccessor.aclear": "c4aae12464a167d6",
        "AssetStateStoreAccessor._build_clear_message": "bff89e6fb2696ccc",
    },
}

# What runs in such a process.


def methods() -> dict[str, Any]:
    from airflow.sdk.execution_time import context

    places = [(accessor, method) for accessor in ACCESSORS for method in METHODS]
    return {f"{accessor}.{method}": getattr(getattr(context, accessor), method, None) for accessor, method in places}


def loaded() -> dict[str, Any]:
    """Have Airflow load its plugins; return what came of it."""
    from airflow.sdk import plugins_manager

    told = listened()
    before = methods()
    plugins, errors = plugins_manager._get_plugins()
    after = methods()
    changed = {name for name in before if after[name] is not before[name]}
    assert all(inspect.iscoroutinefunction(after[name]) for name in changed)
    return {
        "plugins": [plugin.name for plugin in plugins],
        "errors": errors,
        "missing": {name for name in before if before[name] is None},
        "given": changed,
        "told": told,
        "modules": {name for name in sys.modules if name.startswith(("async_state", "aiobotocore", "botocore"))},
    }


def loaded_where_the_sdk_awaits() -> dict[str, Any]:
    from airflow.sdk.state import BaseStoreBackend

    setattr(BaseStoreBackend, AWAITED, None)
    return loaded()


def loaded_without_coroutines() -> dict[str, Any]:
    """As in task-sdk 1.3.0 and 1.3.1, whose accessors have none."""
    from airflow.sdk.execution_time import context

    for name, method in methods().items():
        if method is not None:
            accessor, _, attribute = name.partition(".")
            delattr(getattr(context, accessor), attribute)
    return loaded()


def started(component: str) -> dict[str, Any]:
    """Tell listeners that a component starts, as it does itself; return what came of it."""
    from airflow.sdk.execution_time.task_runner import TaskRunnerMarker
    from airflow.sdk.listener import get_listener_manager

    manager = get_listener_manager()
    what = TaskRunnerMarker() if component == "task" else type("Job", (), {"job_type": "SchedulerJob"})()
    audited: list[str] = []
    files = set(Path("/proc/self/fd").iterdir())
    sys.addaudithook(lambda event, _: audited.append(event))
    manager.hook.on_starting(component=what)
    # Sockets are made: by asyncio to wake its loop, and by urllib3, which binds one to see whether there is IPv6.
    network = {"socket.connect", "socket.getaddrinfo", "socket.sendto", "_thread.start_new_thread"}
    return {
        "preloaded": "aiobotocore" in sys.modules,
        "audited": network & set(audited),
        "threads": [thread.name for thread in threading.enumerate()],
        "left open": [str(file.readlink()) for file in set(Path("/proc/self/fd").iterdir()) - files if file.exists()],
    }


def first_operation(endpoint_url: str, **changed: str) -> dict[str, Any]:
    """Return what the first operation does in a process that is forked from a scheduler, with another environment."""
    started("scheduler")
    return in_fork(endpoint_url, **changed)


def in_fork(endpoint_url: str, **changed: str) -> dict[str, Any]:
    """Return what the first operation does in a process that is forked from this one, with another environment."""
    ours, theirs = os.pipe()
    if not os.fork():
        try:
            os.write(theirs, json.dumps(_first_operation(endpoint_url, changed)).encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with os.fdopen(ours, "rb") as answer:
        found: dict[str, Any] = json.load(answer)
    os.wait()
    return found


def _first_operation(endpoint_url: str, changed: dict[str, str]) -> dict[str, Any]:
    from airflow.sdk.state import TaskScope

    from async_state import AsyncStateBackend, Settings

    os.environ.update(changed)
    bundles: list[Any] = []
    load = ssl.SSLContext.load_verify_locations

    def recorded(self: Any, cafile: Any = None, *others: Any) -> None:
        bundles.append(cafile)
        load(self, cafile, *others)

    ssl.SSLContext.load_verify_locations = recorded  # type: ignore[method-assign, assignment]
    before = set(sys.modules)
    backend = AsyncStateBackend(Settings(url="s3://state/forked", endpoint_url=endpoint_url))
    error = None
    try:
        scope = TaskScope(dag_id="dag", run_id="run", task_id="task")
        backend.serialize_task_state_store_to_ref(value=1, key="forked", scope=scope)
    except Exception as e:
        error = repr(e)
    return {"imported": sorted(set(sys.modules) - before), "bundles": bundles, "error": error}


def loaded_by_core() -> list[str | None]:
    """Have airflow-core load its plugins, which has a manager of its own, as the scheduler and the triggerer do."""
    from airflow import plugins_manager

    return [plugin.name for plugin in plugins_manager._get_plugins()[0]]


def fingerprints() -> tuple[str, dict[str, str | None]]:
    from airflow.sdk.execution_time import context

    def of(name: str) -> str | None:
        accessor, _, attribute = name.partition(".")
        method = getattr(getattr(context, accessor), attribute, None)
        return method and hashlib.sha256(inspect.getsource(method).encode()).hexdigest()[:16]

    version = "1.4" if hasattr(context.TaskStateStoreAccessor, "aget") else "1.3"
    return version, {name: of(name) for name in PINNED[version]}


# The tests.


@pytest.mark.parametrize("backend", [OURS, "tests.airflow.dags.async_subclass.Subclass"])
def test_accessors_get_awaiting_methods_where_the_backend_is_ours(backend: str) -> None:
    found = in_process(loaded, **{BACKEND: backend})
    assert "async_state" in found["plugins"]
    assert found["given"] == REPLACED | found["missing"]
    assert found["told"] == []
    # Made at the first operation, and not here.
    assert "aiobotocore" not in found["modules"]


def test_accessors_without_any_get_all_of_them() -> None:
    found = in_process(loaded_without_coroutines, **{BACKEND: OURS})
    assert found["given"] == {f"{accessor}.{method}" for accessor in ACCESSORS for method in METHODS}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {BACKEND: OTHER},
        {BACKEND: "nowhere.Backend"},
        {BACKEND: OURS, "AIRFLOW__ASYNC_STATE__PATCH_ACCESSORS": "False"},
    ],
    ids=["none", "another", "another that can't be imported yet", "switched off"],
)
def test_accessors_are_left_alone(environment: dict[str, str]) -> None:
    found = in_process(loaded, **environment)
    assert "async_state" in found["plugins"]
    assert (found["given"], found["told"]) == (set(), [])


def test_accessors_that_await_by_themselves_are_left_alone() -> None:
    assert in_process(loaded_where_the_sdk_awaits, **{BACKEND: OURS})["given"] == set()


def test_a_bad_option_is_logged_and_breaks_nothing() -> None:
    found = in_process(loaded, **{BACKEND: OURS, "AIRFLOW__ASYNC_STATE__TIMEOUT": "soon"})
    assert "async_state" in found["plugins"]
    assert (found["errors"], found["given"]) == ({}, set())
    ((level, message),) = found["told"]
    assert level == "ERROR"
    assert "[async_state] timeout" in message


def test_without_a_backend_next_to_nothing_is_imported() -> None:
    options = {
        "components",
        "errors",
        "codec",
        "chunked_json",
        "keys",
        "settings",
        "misspelt",
        "urls",
        "threads",
        "provider_info",
    }
    expected = {"async_state", "async_state.plugin", *(f"async_state.{name}" for name in options)}
    assert in_process(loaded)["modules"] <= expected


def test_airflows_core_loads_the_plugin_too() -> None:
    assert "async_state" in in_process(loaded_by_core)


@pytest.mark.parametrize(("component", "preloaded"), [("scheduler", True), ("task", False)])
def test_a_component_that_forks_prepares_and_starts_nothing(component: str, preloaded: bool) -> None:
    environment = {BACKEND: OURS, "AIRFLOW__ASYNC_STATE__URL": "s3://state/preload"}
    found = in_process(started, component, **environment)
    assert found == {"preloaded": preloaded, "audited": set(), "threads": ["MainThread"], "left open": []}


@pytest.mark.parametrize(
    "environment", [{}, {BACKEND: OTHER}, {BACKEND: OURS}], ids=["none", "another", "ours on disk"]
)
def test_a_component_prepares_nothing_that_is_not_used(environment: dict[str, str]) -> None:
    assert not in_process(started, "scheduler", **environment)["preloaded"]


def test_a_forked_process_imports_and_loads_nothing_for_its_first_operation(moto: FakeS3) -> None:
    environment = {BACKEND: OURS, "AIRFLOW__ASYNC_STATE__URL": "s3://state/forked"}
    found = in_process(first_operation, moto.url, **environment)
    assert found == {"imported": [], "bundles": [], "error": None}


def test_a_forked_process_looks_everything_up_for_itself(moto: FakeS3, tmp_path: Path) -> None:
    from botocore.httpsession import where

    environment = {BACKEND: OURS, "AIRFLOW__ASYNC_STATE__URL": "s3://state/forked"}
    bundle = tmp_path / "bundle.pem"
    shutil.copy(where(), bundle)
    changed = {"AWS_ACCESS_KEY_ID": "AKIAFORKED", "AWS_DEFAULT_REGION": "eu-west-3", "AWS_CA_BUNDLE": str(bundle)}
    found = in_process(partial(first_operation, **changed), moto.url, **environment)
    # An endpoint without TLS needs none; test_credentials.py shows that one with TLS reads its own.
    assert (found["bundles"], found["error"]) == ([], None)
    (request,) = moto.requests
    assert "Credential=AKIAFORKED/" in request.headers["authorization"]
    assert "/eu-west-3/s3/" in request.headers["authorization"]


def test_a_component_starts_without_the_certificates(tmp_path: Path) -> None:
    environment = {BACKEND: OURS, "AIRFLOW__ASYNC_STATE__URL": "s3://state/preload"}
    assert in_process(started, "scheduler", AWS_CA_BUNDLE=str(tmp_path / "none"), **environment)["preloaded"]


def told_at_the_start() -> list[tuple[str, str]]:
    told = listened()
    started("scheduler")
    return told


def test_a_component_starts_where_nothing_can_be_prepared() -> None:
    environment = {BACKEND: OURS, "AIRFLOW__ASYNC_STATE__URL": "s3://state/preload", "AWS_PROFILE": "nobodys"}
    ((level, message),) = in_process(told_at_the_start, **environment)
    assert level == "WARNING"
    assert "s3://state/preload" in message
    assert "nobodys" in message


def event_loop_after_the_start(component: str) -> str:
    started(component)
    try:
        with warnings.catch_warnings():
            # Of Python 3.12 and 3.13, where there is none yet.
            warnings.simplefilter("ignore", DeprecationWarning)
            asyncio.get_event_loop().close()
    except RuntimeError as e:
        return str(e)
    return "there is one"


def test_forked_tasks_have_the_event_loop_that_they_would_have_without() -> None:
    environment = {BACKEND: OURS, "AIRFLOW__ASYNC_STATE__URL": "s3://state/preload"}
    unprepared, prepared = (in_process(event_loop_after_the_start, who, **environment) for who in ("task", "scheduler"))
    assert prepared == unprepared
    assert (prepared == "there is one") == (sys.version_info < (3, 14))


def test_the_sdk_is_the_one_that_the_patches_were_written_for() -> None:
    version, found = in_process(fingerprints)
    changed = [name for name, fingerprint in found.items() if fingerprint != PINNED[version][name]]
    assert not changed, (
        f"{', '.join(changed)} of airflow.sdk.execution_time.context changed: compare with task-sdk {version} what is "
        "asked, in which order, what is raised and which default is given; bring compat, accessors and patches "
        "up to it; and then pin the new source here"
    )
