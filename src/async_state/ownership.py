"""Which deployment a base URL belongs to: a small object below it says so, and a component that starts compares.

Two deployments with the same ids below one URL would read and clear each other's state. What names a deployment:

* ``[async_state] owner``, where both the component and the object have one. Nothing else counts then.
* The location of the metadata database, which holds the references to the objects: what makes a deployment one. The
  scheduler and the triggerer know it.
* The location of Celery's broker: two deployments that shared one would run each other's tasks. Celery's worker, which
  does not know the database, knows it.

Each location is compared with one of its own kind, without credentials, driver and parameters. Keys such as
``[core] fernet_key`` and the secret of JSON web tokens do not name a deployment: they are copied together with the
rest of a configuration, they are rotated, and where they are generated, each component has its own. A location can
change too: a false alarm is possible, and so a component is never kept from starting. It logs an error.

Two deployments whose databases have the same address in networks of their own (``postgres:5432/airflow`` in two
projects of Docker Compose) are told apart by ``[async_state] owner`` only.

The check runs in a process of its own that ends with it: a scheduler must not have used the I/O thread, a client or a
socket of this package before it forks. This module is not part of the public interface.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
import time
import warnings
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from async_state import compat, iothread
from async_state.errors import AsyncStateError, StoreAccessError
from async_state.objects import Objects, Operation
from async_state.settings import options

if TYPE_CHECKING:
    from async_state.settings import Settings

log = logging.getLogger(__name__)

#: The object's name. The names of state begin with v1/task/ or v1/asset/: no clear lists it, and no reference names it.
NAME: Final = "v1/owner"
#: What takes the place of a component's name where a command compares.
COMMAND: Final = "command"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a component knows of its deployment.

    Args:
        component: The component's name, for messages.
        owner: ``[async_state] owner``, or empty.
        locations: What the deployment is known by, by kind: ``database`` or ``broker``.
        clear_on_success: ``[state_store] clear_on_success`` by what acts upon it: ``workers`` delete objects, and the
            ``api-server`` deletes rows. Empty in a component that does neither.
        options: The options of ``[async_state]`` that the component has beside their defaults, as texts.
    """

    component: str
    owner: str
    locations: dict[str, str]
    clear_on_success: dict[str, bool]
    options: dict[str, str]


def check_in_background(settings: Settings, component: str) -> None:
    """Compare the component's deployment with the one that `settings.url` belongs to, and log what is wrong.

    Returns at once. A process that is no child of this one, and that ends by itself, does the work.

    Args:
        settings: The backend's settings.
        component: The command of ``airflow`` that runs it, such as ``celery worker``.
    """
    try:
        claim = claim_of(settings, component)
        _in_process_of_its_own(settings, claim)
    except Exception as e:
        log.warning("The owner of %s was not checked: %s: %s", settings.url, type(e).__name__, e)


def claim_of(settings: Settings, component: str) -> Claim:
    """Return what the component's own configuration says of its deployment."""
    conf = compat.airflow_conf()
    executor = conf.get("core", "executor", fallback="")
    locations = {}
    if component in ("scheduler", "triggerer") or (component == COMMAND and _knows_database(executor)):
        locations["database"] = _database(conf.get("database", "sql_alchemy_conn", fallback="") or "")
    if component == "celery worker" or (component == COMMAND and "Celery" in executor):
        locations["broker"] = _broker(conf.get("celery", "broker_url", fallback="") or "")
    clears = None
    if component == "api-server":
        clears = "api-server"
    elif component.endswith("worker") or (component == "scheduler" and executor == "LocalExecutor"):
        clears = "workers"
    return Claim(
        component=component,
        owner=settings.owner,
        locations={kind: location for kind, location in locations.items() if location},
        clear_on_success={clears: compat.clear_on_success()} if clears else {},
        options=options_of(settings),
    )


def options_of(settings: Settings) -> dict[str, str]:
    """Return the options that differ from their defaults, as texts, but for the URL, below which they are recorded."""
    defaults = {option.name: option.default for option in options()}
    return {name: text for name, text in settings.texts().items() if name != "url" and text != defaults[name]}


async def check(settings: Settings, claim: Claim) -> None:
    """Compare the claim with the object at `NAME`, log what is wrong, and write what the object lacks.

    Raises:
        StoreError: the store failed.
        CorruptObjectError: the object is damaged.
    """
    objects = Objects(settings)
    # Not measured: it is no operation of a task, and not what a timer of gets and sets should have in it.
    operation = Operation(objects.slot(), time.monotonic() + settings.timeout)
    try:
        async with operation:
            found = parsed(await objects.read(settings.url, NAME, operation))
            if not is_same(found, claim):
                log.error("%s", other(settings.url, found, claim))
                return
            _log_unequal_clears(found, claim)
            updated = _merged(found, claim)
            if updated != found:
                await objects.write(NAME, json.dumps(updated), operation)
    finally:
        await objects.aclose()


def _in_process_of_its_own(settings: Settings, claim: Claim) -> None:
    for stream in sys.stdout, sys.stderr:
        stream.flush()
    with warnings.catch_warnings():
        # Python 3.12 warns of a fork beside other threads. This one needs nothing that they may have locked but
        # logging, which takes care of forks, and it is what Airflow does for each task.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child:
        # Airflow's daemons may ignore SIGCHLD.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(child, 0)
        return
    try:
        # Twice, so that nobody has to wait for it.
        if not os.fork():
            _main(settings, claim)
    finally:
        os._exit(0)


def _main(settings: Settings, claim: Claim) -> None:
    for number in signal.SIGTERM, signal.SIGINT, signal.SIGALRM:
        signal.signal(number, signal.SIG_DFL)
    # It ends in any case: a read, a write and closing have `timeout` each.
    signal.alarm(int(3 * settings.timeout) + 10)
    try:
        iothread.run(check, settings, claim)
    except StoreAccessError as e:
        # Some give credentials for the store to workers only, and rightly so.
        log.info("The owner of %s was not checked, as the %s has no access to it: %s", settings.url, claim.component, e)
    except AsyncStateError as e:
        log.warning("The owner of %s was not checked: %s", settings.url, e)
    except Exception as e:
        log.warning("The owner of %s was not checked: %s: %s", settings.url, type(e).__name__, e)
    with contextlib.suppress(Exception):
        logging.shutdown()


def parsed(text: str | None) -> dict[str, Any]:
    """Return what the object at `NAME` says; nothing where there is none."""
    found = json.loads(text) if text is not None else {}
    if not isinstance(found, dict):
        raise ValueError(f"{NAME} holds no JSON object")
    return found


def is_same(found: dict[str, Any], claim: Claim) -> bool:
    """Tell whether the object may be that of the claim's deployment."""
    if found.get("owner") and claim.owner:
        return bool(found["owner"] == claim.owner)
    return all(found.get(kind, location) == location for kind, location in claim.locations.items())


def _merged(found: dict[str, Any], claim: Claim) -> dict[str, Any]:
    return {
        "owner": claim.owner or found.get("owner", ""),
        "since": found.get("since") or datetime.now(tz=timezone.utc).isoformat(timespec="seconds"),
        # What the object has stays: deployments that share a URL on purpose would overwrite each other's.
        **{kind: found.get(kind, location) for kind, location in claim.locations.items()},
        **{kind: found[kind] for kind in ("database", "broker") if kind in found},
        "clear_on_success": {**found.get("clear_on_success", {}), **claim.clear_on_success},
        "options": {**found.get("options", {}), claim.component: claim.options},
    }


def other(url: str, found: dict[str, Any], claim: Claim) -> str:
    """Return what to say where `is_same` is false."""
    return (
        f"{url} belongs to another deployment: {named(found)} has it since {found.get('since')}, and this "
        f"{claim.component} is of {_named(claim.owner, claim.locations)}. Deployments below one URL read and clear "
        "each other's state. Give each an [async_state] url of its own. If both are the same deployment, or share the "
        f"URL on purpose, delete the object {url}/{NAME} and set [async_state] owner to one name in all their "
        "components"
    )


def named(found: dict[str, Any]) -> str:
    """Return the name of the deployment that the object names."""
    return _named(found.get("owner"), found)


def _named(owner: Any, locations: dict[str, Any]) -> str:
    if owner:
        return repr(owner)
    known = [f"{kind} {locations[kind]}" for kind in ("database", "broker") if kind in locations]
    return f"the deployment with the {' and the '.join(known)}" if known else "a deployment without a name"


def _log_unequal_clears(found: dict[str, Any], claim: Claim) -> None:
    for here, value in claim.clear_on_success.items():
        for there, recorded in found.get("clear_on_success", {}).items():
            if there != here and recorded != value:
                log.warning(
                    "[state_store] clear_on_success is %s in the %s and was %s in the %s when that last started: a "
                    "task's success then deletes its objects and leaves the rows, or the reverse. Set it to the same "
                    "in both",
                    value,
                    here,
                    recorded,
                    there,
                )


def _knows_database(executor: str) -> bool:
    """Tell whether the configuration of this machine, which may be a worker's, has the location of the database."""
    if find_spec("sqlalchemy") is None:
        return False
    # SQLite is the default where nobody has set it, and no other executor works with it.
    url = compat.airflow_conf().get("database", "sql_alchemy_conn", fallback="") or ""
    return executor == "LocalExecutor" or not url.startswith("sqlite:")


def _database(url: str) -> str:
    from sqlalchemy.engine import make_url

    parsed = make_url(url)
    backend = parsed.get_backend_name()
    if backend == "sqlite":
        return f"sqlite:///{parsed.database}"
    hosts = parsed.host or parsed.query.get("host")
    if not hosts:
        return ""
    host = hosts if isinstance(hosts, str) else ",".join(hosts)
    return f"{backend}://{host}{f':{parsed.port}' if parsed.port else ''}/{parsed.database or ''}"


def _broker(urls: str) -> str:
    places = []
    for url in urls.split(";"):
        parts = urlsplit(url.strip())
        place = parts.netloc.rpartition("@")[2]
        # A hosted queue, such as sqs://, has no address.
        if not place:
            return ""
        places.append(f"{parts.scheme}://{place}{parts.path}")
    return ";".join(places)
