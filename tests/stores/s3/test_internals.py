"""What is touched of botocore, aiobotocore and aiohttp beside their documented interfaces, taken away piece by piece.

Each case runs in a process of its own, which breaks one of `_botocore.INTERNALS` before we import it, and then does
everything there is: in itself, in a forked process, and in one whose parent was prepared. The operations must work, and
one warning must name what is broken.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import subprocess
import sys
import textwrap
from importlib import import_module
from typing import Any

import botocore.session
import pytest
from botocore.exceptions import UnknownServiceError

from async_state.stores.s3 import _botocore
from async_state.stores.s3._botocore import INTERNALS, Internal
from async_state.testing import FakeS3

PROGRAM = textwrap.dedent(
    """
    import logging, os, sys
    from importlib import import_module

    # What it imports of botocore by name is there: a botocore without that would be another aiobotocore's.
    import aiobotocore.session, aiobotocore.httpsession, aiohttp

    # botocore goes on with what we no longer find, as if under another name.
    from botocore import httpsession
    context, path = httpsession.create_urllib3_context, httpsession.get_cert_path
    httpsession.URLLib3Session._get_ssl_context = lambda self: context()

    module, name, how, url = sys.argv[1:]
    owner = import_module(module)
    *path, last = name.split(".")
    for part in path:
        owner = getattr(owner, part)
    if last == "_retry_connection":
        # An attribute of each object, and not of the class.
        init = owner.__init__
        def __init__(self, *args, **kwargs):
            init(self, *args, **kwargs)
            del self._retry_connection
        owner.__init__ = __init__
    elif how == "missing":
        delattr(owner, last)
    elif how == "raising":
        def broken(*args, **kwargs):
            raise TypeError("not what it was")
        setattr(owner, last, broken)
    else:
        setattr(owner, last, lambda *args, **kwargs: None)

    from airflow.sdk.state import TaskScope
    from async_state import AsyncStateBackend, Settings
    from async_state.stores import prepare

    class Warnings(logging.Handler):
        def emit(self, record):
            if record.levelno >= logging.WARNING:
                print("warned:", record.getMessage(), flush=True)

    logging.getLogger("async_state.stores").addHandler(Warnings())

    def use(backend, name):
        task = TaskScope(dag_id="internals", run_id="run", task_id=name)
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

    def forked(name):
        pid = os.fork()
        if not pid:
            try:
                use(AsyncStateBackend(settings), name)
            except BaseException:
                import traceback
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0, name

    settings = Settings(url="s3://state/internals", endpoint_url=url)
    forked("fork of a process that did nothing")
    prepare(settings)
    forked("fork of a prepared process")
    use(AsyncStateBackend(settings), "the process itself")
    print("fine", flush=True)
    """
)

#: botocore's client calls these itself, on the same objects: without them it would not work either.
SHARED = {"Loader.list_available_services", "Loader.list_api_versions"}
#: There is another name to break for these, or nothing to call.
WAYS = {"ClientSession._retry_connection": ["missing"]}
CASES = [
    pytest.param(internal, how, id=f"{internal.name}-{how}")
    for internal in INTERNALS
    if internal.name not in SHARED
    for how in WAYS.get(internal.name, ["missing", "raising", "returning nothing"])
]


@pytest.mark.parametrize(("internal", "how"), CASES)
def test_operations_do_without_it(internal: Internal, how: str, moto: FakeS3) -> None:
    command = [sys.executable, "-c", PROGRAM, internal.module, internal.name, how, moto.url]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("fine\n")
    # Nothing is wrong with an environment that has no credentials.
    if (internal.name, how) != ("EnvProvider.load", "returning nothing"):
        assert "warned: async_state does not know this version's" in done.stdout, done.stdout


def test_nothing_is_warned_of_as_it_is(moto: FakeS3) -> None:
    command = [sys.executable, "-c", PROGRAM, "os", "getloadavg", "missing", moto.url]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    assert done.stdout.endswith("fine\n")
    assert "warned" not in done.stdout


#: The sources as they were when this was last read against them. A difference is not a defect, since everything fails
#: open: it says on the day of an upgrade what to read again. ``python -m tests.stores.s3.test_internals`` prints them.
PINS: dict[str, dict[str, str | None]] = {
    "1.43.117": {
        "S3SigV4Auth": "223a49dbb554acde",
        "create_urllib3_context": "32445e637d54e6b5",
        "get_cert_path": "142075cf59813df4",
        "EnvProvider": "1c38b0e301813b85",
        "EnvProvider.load": "668d3c9726e149ae",
        "Loader.list_available_services": "ba2bafd04efdbf18",
        "Loader.list_api_versions": "ba2bafd04efdbf18",
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


def test_services_are_found_as_botocore_finds_them() -> None:
    ours = _botocore.new_session().get_component("data_loader")
    botocores = botocore.session.get_session().get_component("data_loader")
    # STS and SSO are those that credentials come from.
    for service in "s3", "sts", "sso", "sso-oidc":
        found, wanted = (loader.load_service_model(service, "service-2") for loader in (ours, botocores))
        assert found["metadata"] == wanted["metadata"]
    with pytest.raises(UnknownServiceError, match="nothing"):
        ours.load_service_model("nothing", "service-2")


if __name__ == "__main__":
    print(
        json.dumps({botocore.__version__: {internal.name: source_hash(internal) for internal in INTERNALS}}, indent=2)
    )
