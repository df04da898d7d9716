"""Everything of botocore, aiobotocore and aiohttp that is touched beside their documented interfaces.

It makes operations faster and nothing else: where something is missing, renamed or different, one warning names it, and
the operations go through the client's documented interface. `INTERNALS` lists all of it, and
tests/stores/s3/test_internals.py takes each away in turn.

Importing this module imports aiobotocore, so it happens late, on the I/O thread or before a fork.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import logging
import os
import ssl
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from async_state import iothread
from async_state.stores import _aiohttp

if TYPE_CHECKING:
    from aiobotocore.session import AioSession

log = logging.getLogger(__name__)


class Internal(NamedTuple):
    """A name that is touched here, and what is lost without it."""

    module: str
    name: str
    loss: str


INTERNALS: Final = (
    Internal("botocore.httpsession", "create_urllib3_context", "requests over TLS are sent by the client"),
    Internal("botocore.httpsession", "get_cert_path", "requests over TLS are sent by the client"),
    Internal("botocore.credentials", "EnvProvider", "the whole chain of credentials is made at the first use"),
    Internal("botocore.credentials", "EnvProvider.load", "the whole chain of credentials is made at the first use"),
    Internal("botocore.loaders", "Loader.list_available_services", "a client takes longer to build"),
    Internal("botocore.loaders", "Loader.list_api_versions", "a client takes longer to build"),
    Internal("botocore.loaders", "JSONFileLoader.load_file", "a client takes longer to build"),
    Internal("aiohttp.client", "ClientSession._retry_connection", "aiohttp may send a request twice"),
)

#: Their DEBUG lines have the headers of requests, session tokens included, and the bodies of answers.
_LOGGERS_OF_SECRETS: Final = ("botocore.auth", "botocore.endpoint", "botocore.parsers")

_warned: set[str] = set()
#: botocore's loader, with the models that it has parsed: kept for the next session, and by forked processes.
_loader: Any = None
#: A session that has looked nothing up, for the first client of each forked process.
_next_session: AioSession | None = None
#: TLS contexts by the file that they trust and its state, for the next connection pool and for forked processes.
_contexts: dict[tuple[object, ...], ssl.SSLContext] = {}


@contextlib.contextmanager
def fast_path(what: str) -> Iterator[None]:
    """Let the block fail with one warning for ``what``, since it only makes something faster.

    Raises:
        botocore.exceptions.BotoCoreError: what botocore says of the environment, such as of a missing profile.
        OSError: the system lacks something, such as a file or descriptors.
    """
    from botocore.exceptions import BotoCoreError

    try:
        yield
    except (BotoCoreError, OSError):
        raise
    except Exception as e:  # whatever a new version of botocore does
        warn(what, f"{type(e).__name__}: {e}")


def warn(what: str, why: str) -> None:
    """Say, once in a process, that the fast path does without ``what``."""
    if what not in _warned:
        _warned.add(what)
        log.warning(
            "async_state does not know this version's %s (%s): operations work, but slower. Look for a newer release "
            "of airflow-async-state",
            what,
            why,
        )


def warned() -> list[str]:
    """Return what the fast path does without in this process, in the words of the warnings."""
    return sorted(_warned)


def new_session() -> AioSession:
    """Return a session that has looked nothing up."""
    global _next_session
    for name in _LOGGERS_OF_SECRETS:
        logging.getLogger(name).addFilter(_is_not_secret)
    session, _next_session = _next_session, None
    return session or _session_with_loader()


def keep_session() -> None:
    """Make the session that this process, or each that is forked from it, uses first."""
    global _next_session
    _next_session = _session_with_loader()


def _session_with_loader() -> AioSession:
    global _loader
    from aiobotocore.session import get_session

    session: AioSession = get_session()
    with fast_path("botocore.session.Session.get_component"):
        if _loader is None:
            _loader = _quick_loader(session)
        session.register_component("data_loader", _loader)
    return session


def _quick_loader(session: AioSession) -> Any:
    loader = session.get_component("data_loader")
    # For each client, botocore looks through the directories of all of AWS's services whether S3 is among them.
    if hasattr(loader, "list_available_services") and hasattr(loader, "list_api_versions"):
        loader.list_available_services = partial(_Services, loader)
    else:
        warn("botocore.loaders.Loader", "list_available_services or list_api_versions is missing")
    with fast_path("botocore.loaders.JSONFileLoader.load_file"):
        loader.file_loader.load_file = partial(_load_file, loader.file_loader.load_file)
    return loader


def _load_file(theirs: Callable[..., Any], *args: Any, **named: Any) -> Any:
    # botocore parses each JSON object into an `OrderedDict`, which is half of the time that loading its models takes.
    with contextlib.suppress(Exception):
        path = Path(f"{args[0]}.json")
        content = path.read_bytes() if path.exists() else gzip.decompress(Path(f"{path}.gz").read_bytes())
        return json.loads(content)
    return theirs(*args, **named)


class _Services:
    """The services that botocore has models of, looked for when they are asked for."""

    def __init__(self, loader: Any, type_name: str) -> None:
        self._loader = loader
        self._type_name = type_name

    def __contains__(self, name: str) -> bool:
        from botocore.exceptions import DataNotFoundError

        try:
            return bool(self._loader.list_api_versions(name, self._type_name))
        except DataNotFoundError:
            return False

    def __iter__(self) -> Iterator[str]:
        # For botocore's message about one that is not there.
        return iter(type(self._loader).list_available_services(self._loader, self._type_name))


def environment_credentials() -> tuple[str, str, str | None] | None:
    """Return the lasting credentials in the environment: key id, secret and token; or ``None``.

    botocore's own chain begins with them, but the whole chain is made first, which takes a third of a forked process's
    first operation. Credentials that expire are left to the chain, which reads them again.
    """
    with fast_path("botocore.credentials.EnvProvider"):
        from botocore.credentials import Credentials, EnvProvider
        from botocore.exceptions import PartialCredentialsError

        # The chain complains of a key without its secret.
        with contextlib.suppress(PartialCredentialsError):
            found = EnvProvider().load()
            if type(found) is Credentials:
                return str(found.access_key), str(found.secret_key), found.token
    return None


def send_once(http: Any) -> None:
    """Keep aiohttp from sending a request again by itself, as `_aiohttp.send_once`, or warn."""
    if not _aiohttp.send_once(http):
        warn("aiohttp.ClientSession._retry_connection", "it is missing")


def tls_context(ca_bundle: str | None) -> ssl.SSLContext | None:
    """Return what botocore's client would verify certificates with, or ``None`` if that is not known.

    A bundle that was replaced is read anew. Reading takes 25 ms of the processor, so it is not for an event loop.

    Args:
        ca_bundle: the file of trusted authorities; ``None`` for botocore's own.

    Raises:
        OSError: the bundle can't be read; `ssl.SSLError` is one, too.
    """
    with fast_path("botocore.httpsession.get_cert_path"):
        from botocore.httpsession import create_urllib3_context, get_cert_path

        verify: Any = ca_bundle or True
        trusted: Any = get_cert_path(verify)
        file, context = Path(trusted), create_urllib3_context()
        if not isinstance(context, ssl.SSLContext):
            raise TypeError(f"{context!r}")
        status = file.stat()
        key = (file, status.st_ino, status.st_size, status.st_mtime_ns)
        if key not in _contexts:
            context.check_hostname = True
            context.load_verify_locations(file)
            _contexts[key] = context
        return _contexts[key]
    # Where the block failed.
    return None  # type: ignore[unreachable]


def ca_bundle(session: AioSession) -> str | None:
    """Return the file of authorities that botocore's client is told to trust, if any."""
    return session.get_config_variable("ca_bundle") or os.environ.get("REQUESTS_CA_BUNDLE") or None


def _is_not_secret(record: logging.LogRecord) -> bool:
    # What others do with botocore in this process is theirs to log.
    return record.levelno > logging.DEBUG or record.threadName != iothread.THREAD_NAME
