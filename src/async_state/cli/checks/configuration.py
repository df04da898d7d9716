"""The options of ``[async_state]``, each with its source, and those of Airflow that matter for state."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from async_state import compat, components, misspelt
from async_state.cli.checks import Finding, fail, ok, warn
from async_state.settings import SECTION, Settings, problems


def options(conf: Any, settings: Settings | None) -> Iterator[Finding]:
    """Yield what is wrong with the options, or each option with its value and where that comes from."""
    for problem in problems(conf):
        yield fail(f"[{SECTION}]", problem)
    if settings is None:
        return
    for name, text in settings.texts().items():
        source = misspelt.source(conf, SECTION, name)
        yield ok(f"[{SECTION}] {name}", f"{text or 'not set'} ({source})")
    if settings.url.startswith("memory://"):
        yield warn(
            "state's place",
            "memory:// is one process's, for tests",
            "Set [async_state] url to s3://, gs://, az:// or file://",
        )
    elif local := components.local_files(settings.url):
        yield fail("state's place", local)


def of_airflow(conf: Any) -> Iterator[Finding]:
    """Yield the options of other sections: which backend is used, and when Airflow deletes state."""
    yield _backend(conf)
    for name in "clear_on_success", "default_retention_days":
        text = conf.get("state_store", name, fallback="")
        yield ok(f"[state_store] {name}", f"{text} ({misspelt.source(conf, 'state_store', name)})")


def _backend(conf: Any) -> Finding:
    from async_state.backend import AsyncStateBackend

    check = "[workers] state_store_backend"
    name = conf.get("workers", "state_store_backend", fallback="")
    source = misspelt.source(conf, "workers", "state_store_backend")
    advice = "Set it to async_state.AsyncStateBackend in every component that runs tasks, triggers or watchers"
    try:
        backend = compat.configured_backend()
    except ImportError as e:
        return fail(check, f"{name} ({source}) can't be imported: {e}", advice)
    if backend is None:
        return fail(check, "not set: what runs here gets references instead of values", advice)
    if not (isinstance(backend, type) and issubclass(backend, AsyncStateBackend)):
        return fail(check, f"{name} ({source}) is another backend", advice)
    return ok(check, f"{name} ({source})")
