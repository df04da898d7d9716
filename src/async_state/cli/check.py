"""``check``: the configuration, the installation, the store and the deployment, line by line."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from async_state import compat, threads
from async_state.cli import context, output
from async_state.cli.checks import Add, Finding, Status, configuration, deployment, fail, installation, ok
from async_state.cli.checks.operations import Probe
from async_state.cli.output import Column
from async_state.cli.runner import DONE, FAILED
from async_state.connections import Connection
from async_state.errors import ConfigurationError
from async_state.settings import Settings
from async_state.stores import Store, open_store

#: An operation that takes longer is as good as failed, for the person who waits.
_TIMEOUT: Final = 10.0
_COLUMNS: Final = (Column("check"), Column("status"), Column("detail"), Column("advice"), Column("ms"))
#: How wide the names of checks are in a table.
_WIDTH: Final = 37


async def run(args: argparse.Namespace) -> int:
    """Print a line for each finding as it is found, and count them."""
    counts: Counter[Status] = Counter()
    with _printing(args.output, counts) as add:

        def count(finding: Finding) -> None:
            counts[finding.status] += 1
            add(finding)

        await _check(count)
    return FAILED if counts[Status.FAIL] else DONE


async def _check(add: Add) -> None:
    conf = compat.airflow_conf()
    try:
        settings = Settings.from_conf(conf)
    except ConfigurationError:
        settings = None
    for finding in await threads.call(_of_this_machine, conf, settings):
        add(finding)
    if settings is None:
        add(fail("store", "was not tried", "Correct the options first"))
        return
    try:
        connection = await context.connection_of(settings, settings.url)
    except ConfigurationError as e:
        add(fail("connection", str(e)))
        return
    if connection.conn_id:
        add(ok("connection", f"{connection.conn_id} was found"))
    if not await _of_the_store(settings, connection, add):
        add(fail("store", "what follows was left out", "Correct this first"))


def _of_this_machine(conf: Any, settings: Settings | None) -> list[Finding]:
    return [
        *configuration.of_airflow(conf),
        *configuration.options(conf, settings),
        *installation.findings(settings),
    ]


async def _of_the_store(settings: Settings, connection: Connection, add: Add) -> bool:
    """Return whether all operations succeeded."""
    timeout = min(settings.timeout, _TIMEOUT)
    if settings.url.startswith("s3://"):
        # It imports aiobotocore.
        from async_state.cli.checks import s3
        from async_state.stores.s3 import S3Options

        if not await s3.check(S3Options.of(settings.url, settings, connection), timeout, add):
            return False
    try:
        store = open_store(settings.url, settings, connection)
    except ConfigurationError as e:
        add(fail("credentials", str(e)))
        return False
    try:
        if settings.url.startswith(("gs://", "az://")) and not await _of_a_cloud(store, timeout, add):
            return False
        if not await Probe(store, settings.url, timeout, add).check():
            return False
        await deployment.check(settings, store, timeout, add)
    finally:
        await store.aclose()
    return True


async def _of_a_cloud(store: Store, timeout: float, add: Add) -> bool:
    # They import aiohttp.
    from async_state.cli.checks import cloud
    from async_state.stores.cloud.store import CloudStore

    assert isinstance(store, CloudStore)  # noqa: S101 - for mypy
    return await cloud.check(store.place, timeout, add)


@contextmanager
def _printing(form: str, counts: Counter[Status]) -> Iterator[Add]:
    if form != "table":
        with output.rows(form, _COLUMNS) as add_row:
            yield lambda finding: add_row({**finding._asdict(), "status": finding.status.value})
        return
    yield _print
    names = ((Status.OK, "ok"), (Status.WARN, "to look at"), (Status.FAIL, "failed"))
    output.result("\n" + ", ".join(f"{counts[status]} {name}" for status, name in names))


def _print(finding: Finding) -> None:
    status = finding.status.value if finding.status is Status.OK else finding.status.value.upper()
    took = "" if finding.ms is None else f"{finding.ms} ms, "
    output.result(output.printable(f"{status:4}  {finding.check:{_WIDTH}}  {took}{finding.detail}"))
    if finding.advice:
        output.result(f"      {'':{_WIDTH}}  -> {output.printable(finding.advice)}")
