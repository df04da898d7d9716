"""What this package does where a component of Airflow starts: it prepares, and it warns of what can't work.

A component is a process of ``airflow scheduler``, ``triggerer``, ``api-server``, ``celery worker`` or ``edge worker``.
Airflow tells listeners only that *some* job starts, and nothing where a worker or an API server does. Its command
line, however, calls back before each command (`commands`), in the process from which a worker's pool is forked.

Nothing here happens in a task, and nothing here fails a component. This module is not part of the public interface.
"""

from __future__ import annotations

import logging
import re
import sys
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from async_state.settings import Settings

log = logging.getLogger(__name__)

_COMPONENTS: Final = ("scheduler", "triggerer", "api-server", "celery worker", "edge worker")
_LOCAL_EXECUTORS: Final = ("LocalExecutor", "SequentialExecutor")


def commands() -> list[Any]:
    """Return the command that this provider adds to ``airflow``, and have `_before_command` called.

    Airflow calls this once in each process of its command line (``cli`` in the provider info).
    """
    from async_state import compat
    from async_state.cli import definition

    compat.before_commands(_before_command)
    return [definition.group()]


def configured() -> Settings | None:
    """Return the settings of the worker's backend if that is an `AsyncStateBackend`, or ``None``.

    A configuration that can't be used is logged as an error. The backend's constructor raises it.
    """
    from airflow.sdk.configuration import conf

    name = conf.get("workers", "state_store_backend", fallback="")
    if not name:
        return None
    from async_state import compat
    from async_state.backend import AsyncStateBackend
    from async_state.settings import Settings

    try:
        backend = compat.configured_backend()
        return Settings.from_conf(conf) if issubclass(backend, AsyncStateBackend) else None
    except ImportError as e:
        # The module may be next to the DAGs. If it can't be imported at its first use either, Airflow says so.
        log.debug("[workers] state_store_backend = %s can't be imported yet: %s", name, e)
        return None
    except Exception as e:
        log.error("[workers] state_store_backend = %s can't be used: %s", name, e)
        return None


def prepare(settings: Settings) -> None:
    """Import, parse and resolve what every task's process needs that is forked from this one."""
    from async_state import stores, telemetry

    telemetry.prepare()
    try:
        stores.prepare(settings)
    except Exception as e:
        # The first operation of a task does without, or fails with an error of its own.
        log.warning("Nothing was prepared for tasks' state in %s: %s: %s", settings.url, type(e).__name__, e)


def _before_command(**_: Any) -> None:
    command = " ".join(sys.argv[1:3])
    component = next((name for name in _COMPONENTS if f"{command} ".startswith(f"{name} ")), None)
    if component is None:
        return
    settings = configured()
    if settings is None:
        if component != "api-server":
            _warn_of_references()
        return
    if component != "api-server" and (local := local_files(settings.url)):
        log.warning("%s", local)
    if not settings.url.startswith("memory://"):
        from async_state import ownership

        ownership.check_in_background(settings, component)
    # The scheduler and the triggerer prepare in the plugin's listener.
    if component.endswith("worker"):
        prepare(settings)


def _warn_of_references() -> None:
    from airflow.sdk.configuration import conf

    # Every default is a file:// URL, and the API server alone may use this package.
    url = conf.get("async_state", "url", fallback="") or ""
    server = conf.get("state_store", "backend", fallback="") or ""
    backend = conf.get("workers", "state_store_backend", fallback="")
    if not backend and not url.startswith("file:") and url and not server.startswith("async_state."):
        log.warning(
            "[async_state] url is %s, but [workers] state_store_backend is not set: tasks that run here get references "
            "instead of the values that tasks elsewhere have stored. Set it to async_state.AsyncStateBackend in every "
            "component",
            url,
        )


def local_files(url: str) -> str:
    """Return what is wrong with keeping state on this machine's disk below ``url``, or an empty string."""
    from airflow.sdk.configuration import conf

    names = re.findall(r"[\w.]*Executor\b", conf.get("core", "executor", fallback=""))
    distributed = [name for name in names if name.rpartition(".")[2] not in _LOCAL_EXECUTORS]
    if not url.startswith("file://") or not distributed:
        return ""
    return (
        f"State is kept in {url}, on this machine's disk, but tasks run on other machines too ([core] executor = "
        f"{','.join(distributed)}) and read None there: set [async_state] url to an object store, such as "
        "s3://bucket/prefix, gs://bucket/prefix or az://container/prefix. A directory that every machine mounts at "
        "this path works, too"
    )
