"""What is installed in this environment, and whether Airflow has loaded it."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Iterator
from importlib import metadata
from typing import Final

from async_state import compat, patches
from async_state.cli.checks import Finding, fail, ok, warn
from async_state.errors import ConfigurationError
from async_state.settings import Settings

_PACKAGES: Final = (
    "airflow-async-state",
    "apache-airflow-core",
    "apache-airflow-task-sdk",
    "aiobotocore",
    "botocore",
    "aiohttp",
)
#: What asks for tokens, and how it is installed.
_CLOUDS: Final = {
    "gs": ("google-auth", "airflow-async-state[gcs]"),
    "az": ("azure-identity", "airflow-async-state[azure]"),
}


def findings(settings: Settings | None) -> Iterator[Finding]:
    """Yield the versions, and whether the plugin is loaded and has patched the accessors."""
    yield ok("python", platform.python_version())
    for package in _PACKAGES:
        try:
            yield ok(package, metadata.version(package))
        except metadata.PackageNotFoundError:
            # Not apache-airflow-core, without which a worker can do.
            if package != "apache-airflow-core":
                yield warn(package, "not found by its name", f"pip install {package}")
    if settings is not None:
        yield from _of_the_cloud(settings)
    try:
        loaded, errors = compat.load_plugins()
    except Exception as e:  # whatever a new version of the SDK does
        yield warn("plugin", f"this SDK does not say which plugins it loads: {type(e).__name__}: {e}")
        return
    if "async_state" not in loaded:
        why = "".join(f": {error}" for name, error in errors.items() if "async_state" in name)
        yield fail(
            "plugin",
            f"Airflow does not load the plugin async_state{why}",
            "Install airflow-async-state into the environment of every component, with pip",
        )
        return
    yield ok("plugin", "loaded")
    if settings is not None:
        yield _accessors(settings)


def _of_the_cloud(settings: Settings) -> Iterator[Finding]:
    """Yield the version of the library that asks a cloud for tokens, or say whether it is needed."""
    scheme = settings.url.partition("://")[0]
    if scheme not in _CLOUDS:
        return
    package, extra = _CLOUDS[scheme]
    try:
        yield ok(package, metadata.version(package))
    except metadata.PackageNotFoundError:
        # It imports aiohttp.
        from async_state.stores import cloud

        needed = False
        # What can't be used is told with the credentials.
        with contextlib.suppress(ConfigurationError):
            needed = cloud.needs_library(settings)
        if needed:
            yield fail(package, "not installed: no token can be asked for", f"pip install {extra!r}")
        else:
            yield ok(package, f"not installed, and not needed without tokens (pip install {extra!r})")


def _accessors(settings: Settings) -> Finding:
    if compat.sdk_awaits_hooks():
        return ok("accessors", "the SDK awaits the backend's coroutines itself")
    if not settings.patch_accessors:
        return warn(
            "accessors",
            "not patched ([async_state] patch_accessors = False): aget and aset block their event loop",
            "Set [async_state] patch_accessors = True, or use async_state.AsyncStateStore in tasks and watchers",
        )
    if not patches.are_installed():
        return fail(
            "accessors",
            "not patched: aget and aset block their event loop",
            "Set [workers] state_store_backend, without which the plugin patches nothing",
        )
    return ok("accessors", "patched")
