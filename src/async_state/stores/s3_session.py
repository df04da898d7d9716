"""botocore's session: cheap to make a client of, and discreet.

Imports aiobotocore, so it is imported late itself.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from typing import Any, Final

from aiobotocore.session import get_session
from botocore.credentials import Credentials, EnvProvider
from botocore.exceptions import DataNotFoundError
from botocore.utils import parse_timestamp

from async_state import iothread

#: Their debug lines have the headers of requests, session tokens included, and the bodies of answers: credentials, too,
#: where these come from another AWS service.
_TELLING_LOGGERS: Final = ("botocore.auth", "botocore.endpoint", "botocore.parsers")

#: botocore's loader, with the models that it has parsed: kept for the next session, and by forked processes.
_loader: Any = None
#: A session that has made no client and looked nothing up, for the first client of each forked process.
_spare: Any = None


def make_session() -> Any:
    """Return an `aiobotocore.session.AioSession` that has looked nothing up."""
    global _loader, _spare
    for name in _TELLING_LOGGERS:
        logging.getLogger(name).addFilter(_discreet)
    session, _spare = _spare or get_session(), None
    # A listing has a thousand of them, and reading them with dateutil is half of what a clear computes.
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_timestamp)
    if _loader is None:
        _loader = session.get_component("data_loader")
        # Otherwise it looks through the directories of all of AWS's services, to find out whether S3 is among them.
        _loader.list_available_services = partial(_Services, _loader)
    else:
        session.register_component("data_loader", _loader)
    return session


def keep_spare() -> None:
    """Make the session that this process, or each that is forked from it, uses first."""
    global _spare
    _spare = make_session()


def environments_credentials() -> tuple[str, str, str | None] | None:
    """Return key id, secret and token that the environment has, or ``None`` if it has none, or none that last.

    botocore's own chain begins there, but is made in whole first, which takes a third of a forked process's first
    operation.

    Raises:
        botocore.exceptions.PartialCredentialsError: a key's id has no secret.
    """
    found = EnvProvider().load()
    # Not those that end: the chain's own are read again then.
    if type(found) is not Credentials:
        return None
    return found.access_key, found.secret_key, found.token


class _Services:
    """Those that botocore has models of some type of, looked for when asked for."""

    def __init__(self, loader: Any, type_name: str) -> None:
        self._loader = loader
        self._type_name = type_name

    def __contains__(self, name: str) -> bool:
        try:
            return bool(self._loader.list_api_versions(name, self._type_name))
        except DataNotFoundError:
            return False

    def __iter__(self) -> Iterator[str]:
        # For botocore's message about one that is not there.
        return iter(type(self._loader).list_available_services(self._loader, self._type_name))


def _discreet(record: logging.LogRecord) -> bool:
    # What others do with botocore in this process is theirs to log.
    return record.levelno > logging.DEBUG or record.threadName != iothread.THREAD_NAME


def _timestamp(value: Any) -> datetime:
    # As S3 writes it; anything else, of the services that credentials come from say, is botocore's to read.
    if isinstance(value, str) and value.endswith("Z"):
        with contextlib.suppress(ValueError):
            return datetime.fromisoformat(value[:-1] + "+00:00")
    found: datetime = parse_timestamp(value)
    return found
