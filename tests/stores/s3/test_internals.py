"""What is touched of botocore, aiobotocore and aiohttp beside their documented interfaces, taken away piece by piece.

Each case runs in a process of its own, which breaks one of `_botocore.INTERNALS` and then does everything there is: in
a fork of a process that did nothing, in a fork of one that was prepared, and in itself. The operations must work, and
one warning must name what is broken. All are forked from one process that has imported what they need.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import botocore.session
import pytest
from airflow.sdk.state import TaskScope
from botocore.auth import S3SigV4Auth
from botocore.exceptions import UnknownServiceError

from async_state import AsyncStateBackend, Settings
from async_state.stores import prepare
from async_state.stores.s3 import _botocore
from async_state.stores.s3._botocore import INTERNALS, Internal
from async_state.testing import FakeS3, Request, faults
from tests.programs.common import fork, outcome
from tests.stores.s3.direct import went_directly

#: aiohttp, or botocore's client, needs them itself: without them nothing would work, ours or not.
SHARED = {
    "Loader.list_available_services",
    "Loader.list_api_versions",
    "JSONFileLoader.load_file",
    "ClientSession._retry_connection",
}
#: An environment without credentials is nothing to warn of; the base class finds none either.
SILENT = {("EnvProvider.load", "missing"), ("EnvProvider.load", "returning nothing")}
CASES = [
    (internal, how)
    for internal in INTERNALS
    if internal.name not in SHARED
    for how in ("missing", "raising", "returning nothing")
]


def take_away(internal: Internal, how: str) -> None:
    # What aiobotocore imports by name is there: a botocore without it would be another aiobotocore's.
    for module in "aiobotocore.httpsession", "aiobotocore.config", "aiobotocore.session":
        import_module(module)
    # botocore goes on with what we no longer find, as if it were under another name.
    httpsession: Any = import_module("botocore.httpsession")
    make_context = httpsession.create_urllib3_context
    httpsession.URLLib3Session._get_ssl_context = lambda _: make_context()

    owner: Any = import_module(internal.module)
    *path, last = internal.name.split(".")
    for part in path:
        owner = getattr(owner, part)

    def raising(*_: object, **__: object) -> None:
        raise TypeError("not what it was")

    if how == "missing":
        delattr(owner, last)
    else:
        setattr(owner, last, raising if how == "raising" else lambda *_, **__: None)


def use(settings: Settings, name: str) -> None:
    backend, task = AsyncStateBackend(settings), TaskScope(dag_id="internals", run_id="run", task_id=name)
    ref = backend.serialize_task_state_store_to_ref(value=[name], key="key", scope=task)
    assert backend.deserialize_task_state_store_from_ref(ref) == [name]
    backend.set(task, "row", "1")
    assert backend.get(task, "row") == "1"
    backend.delete(task, "row")
    assert backend.get(task, "row") is None
    backend.set(task, "row", "1")
    backend.clear(task)
    assert backend.get(task, "row") is None
    assert backend.deserialize_task_state_store_from_ref(ref) is None


def use_everywhere(settings: Settings, log: Path) -> None:
    with log.open("a") as file:
        handler = logging.StreamHandler(file)
        handler.setLevel(logging.WARNING)
        logging.getLogger("async_state.stores").addHandler(handler)
        try:
            assert outcome(fork(lambda: use(settings, "fork of a process that did nothing"), "task")) == "fine"
            prepare(settings)
            assert outcome(fork(lambda: use(settings, "fork of a prepared process"), "task")) == "fine"
            use(settings, "the process itself")
        except BaseException:
            traceback.print_exc(file=file)
            raise


@pytest.fixture
def settings(moto: FakeS3) -> Settings:
    return Settings(url="s3://state/internals", endpoint_url=moto.url)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has used nothing yet."""
    monkeypatch.setattr("async_state.stores.s3.prefork._endpoints", {})
    for name, value in (("_loader", None), ("_next_session", None), ("_contexts", {}), ("_warned", set())):
        monkeypatch.setattr(_botocore, name, value)


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(("internal", "how"), CASES, ids=[f"{internal.name}-{how}" for internal, how in CASES])
def test_operations_do_without_it(internal: Internal, how: str, settings: Settings, tmp_path: Path) -> None:
    log = tmp_path / "log"

    def case() -> None:
        take_away(internal, how)
        use_everywhere(settings, log)

    assert outcome(fork(case, "task")) == "fine", log.read_text()
    if (internal.name, how) not in SILENT:
        assert "async_state does not know this version's" in log.read_text()


SIGNER: Any = S3SigV4Auth


def add_a_header() -> None:
    modify = SIGNER._modify_request_before_signing

    def modify_more(self: object, request: Any) -> None:
        modify(self, request)
        request.headers["x-amz-new"] = "1"

    SIGNER._modify_request_before_signing = modify_more


def sign_otherwise() -> None:
    SIGNER.signature = lambda *_: 64 * "0"


def rename_the_event() -> None:
    emitter: Any = import_module("aiobotocore.hooks").AioHierarchicalEmitter
    emit = emitter.emit

    async def emit_renamed(self: object, event_name: str, **arguments: object) -> Any:
        return await emit(self, event_name.replace("before-send.", "sending."), **arguments)

    emitter.emit = emit_renamed


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("change", [add_a_header, sign_otherwise, rename_the_event])
def test_a_client_that_composes_requests_otherwise(
    change: Callable[[], None], settings: Settings, moto: FakeS3, tmp_path: Path
) -> None:
    log = tmp_path / "log"

    def case() -> None:
        change()
        use_everywhere(settings, log)

    def is_composed_only(request: Request) -> bool:
        return "Credential=prefork/" in request.headers["authorization"]

    with moto.failing(faults.error(403, "InvalidAccessKeyId"), when=is_composed_only):
        assert outcome(fork(case, "task")) == "fine", log.read_text()
    assert "async_state does not know this version's way of composing requests" in log.read_text()
    assert not any(map(went_directly, moto.requests))


@pytest.mark.usefixtures("fresh")
def test_nothing_is_warned_of_as_it_is(settings: Settings, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert outcome(fork(lambda: use_everywhere(settings, log), "task")) == "fine", log.read_text()
    assert log.read_text() == ""


def test_an_aiohttp_that_can_not_be_told_to_send_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_botocore, "_warned", set())
    _botocore.send_once(object())
    assert "_retry_connection" in caplog.text


def test_a_loader_that_asks_for_files_in_another_way(loaders: tuple[Any, Any]) -> None:
    ours, botocores = (loader.file_loader.load_file for loader in loaders)
    path = str(Path(botocore.session.__file__).parent / "data" / "partitions")
    assert ours(file_path=path) == botocores(file_path=path)


def test_a_loader_that_is_not_known(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(_botocore, "_warned", set())
    loader = object()
    session: Any = SimpleNamespace(get_component=lambda _: loader)
    assert _botocore._quick_loader(session) is loader
    assert "list_available_services" in caplog.text
    assert "JSONFileLoader.load_file" in caplog.text


#: The sources as they were when this was last read against them. A difference is not a defect, since everything fails
#: open: it says on the day of an upgrade what to read again. ``python -m tests.stores.s3.test_internals`` prints them.
PINS: dict[str, dict[str, str | None]] = {
    "1.43.117": {
        "create_urllib3_context": "32445e637d54e6b5",
        "get_cert_path": "142075cf59813df4",
        "EnvProvider": "1c38b0e301813b85",
        "EnvProvider.load": "668d3c9726e149ae",
        "Loader.list_available_services": "ba2bafd04efdbf18",
        "Loader.list_api_versions": "ba2bafd04efdbf18",
        "JSONFileLoader.load_file": "4b6735d5cf3c559f",
        "ClientSession._retry_connection": None,
    },
}


def source_hash(internal: Internal) -> str | None:
    owner: Any = import_module(internal.module)
    for part in internal.name.split("."):
        owner = getattr(owner, part, None)
    return hashlib.sha256(inspect.getsource(owner).encode()).hexdigest()[:16] if owner is not None else None


@pytest.mark.skipif(botocore.__version__ not in PINS, reason="the pins are of other versions of botocore; see PINS")
def test_the_sources_are_those_that_were_read() -> None:
    assert {internal.name: source_hash(internal) for internal in INTERNALS} == PINS[botocore.__version__]


@pytest.fixture
def loaders(fresh: None) -> tuple[Any, Any]:
    """Ours and botocore's."""
    ours, botocores = _botocore.new_session(), botocore.session.get_session()
    return ours.get_component("data_loader"), botocores.get_component("data_loader")


def test_services_are_found_as_botocore_finds_them(loaders: tuple[Any, Any]) -> None:
    # STS and SSO are those that credentials come from.
    for service in "s3", "sts", "sso", "sso-oidc":
        for kind in "service-2", "endpoint-rule-set-1":
            found, wanted = (loader.load_service_model(service, kind) for loader in loaders)
            assert json.dumps(found) == json.dumps(wanted)
    for name in "endpoints", "partitions", "sdk-default-configuration":
        found, wanted = (loader.load_data(name) for loader in loaders)
        assert json.dumps(found) == json.dumps(wanted)
    with pytest.raises(UnknownServiceError, match="nothing"):
        loaders[0].load_service_model("nothing", "service-2")


def test_a_model_that_is_no_json_is_left_to_botocore(loaders: tuple[Any, Any], tmp_path: Path) -> None:
    model = tmp_path / "endpoints.json"
    model.write_text("{")
    for loader in loaders:
        loader.search_paths.insert(0, str(tmp_path))
        with pytest.raises(json.JSONDecodeError):
            loader.load_data("endpoints")


if __name__ == "__main__":
    print(
        json.dumps({botocore.__version__: {internal.name: source_hash(internal) for internal in INTERNALS}}, indent=2)
    )
