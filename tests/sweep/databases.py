"""Airflow's own tables in a database server of each kind, started for the tests; what is not installed is skipped."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from sqlalchemy import Engine, create_engine

from tests.servers import free_port, wait_for_port


@contextlib.contextmanager
def engine_of(kind: str) -> Iterator[Engine]:
    """Run a database of the kind ``sqlite``, ``postgresql`` or ``mysql``, and yield an engine with Airflow's tables."""
    with contextlib.ExitStack() as stack:
        # Of short paths, as sockets need them, and open to the servers' users.
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="db-", ignore_cleanup_errors=True)))
        directory.chmod(0o777)
        if kind == "sqlite":
            url = f"sqlite:///{directory / 'airflow.db'}"
        else:
            url = stack.enter_context({"postgresql": _postgresql, "mysql": _mysql}[kind](directory))
        engine = create_engine(url)
        stack.callback(engine.dispose)
        _create_tables(engine)
        yield engine


def _create_tables(engine: Engine) -> None:
    import airflow.models
    from airflow.models.base import Base

    airflow.models.import_all_models()
    if engine.dialect.name != "mysql":
        Base.metadata.create_all(engine)
        return
    # Of all tables, some have longer indexes than MariaDB takes unless Airflow is configured for it from the start.
    tables = [Base.metadata.tables[name] for name in ("task_state_store", "asset_state_store")]
    with engine.begin() as connection:
        connection.exec_driver_sql("SET foreign_key_checks = 0")
        Base.metadata.create_all(connection, tables=tables)


@contextlib.contextmanager
def _postgresql(directory: Path) -> Iterator[str]:
    # Where Debian has it, nobody's PATH leads.
    places = [os.environ["PATH"], *map(str, Path("/usr/lib/postgresql").glob("*/bin"))]
    found = shutil.which("postgres", path=os.pathsep.join(places))
    if found is None or importlib.util.find_spec("psycopg2") is None:
        pytest.skip("PostgreSQL or psycopg2 is not installed")
    programs, data = Path(found).resolve().parent, directory / "data"
    # It does not run as root.
    user = "postgres" if os.geteuid() == 0 else None
    # To start slowly and survive a crash is not what this is for.
    settings = [
        "-F",
        "-c",
        "full_page_writes=off",
        "-c",
        "unix_socket_directories=",
        "-c",
        "listen_addresses=127.0.0.1",
    ]
    init: list[str | Path] = [
        programs / "initdb",
        "--no-sync",
        "--auth",
        "trust",
        "--username",
        "airflow",
        "--pgdata",
        data,
    ]
    subprocess.run(init, user=user, cwd=directory, check=True, capture_output=True)
    port = free_port()
    with _running([programs / "postgres", "-D", data, "-p", str(port), *settings], user, directory, port):
        yield f"postgresql+psycopg2://airflow@127.0.0.1:{port}/postgres"


@contextlib.contextmanager
def _mysql(directory: Path) -> Iterator[str]:
    server = shutil.which("mariadbd")
    if server is None or importlib.util.find_spec("pymysql") is None:
        pytest.skip("MariaDB or pymysql is not installed")
    user = pwd.getpwuid(os.geteuid()).pw_name
    data, port = directory / "data", free_port()
    # Without users and their rights, it needs no system tables.
    (data / "mysql").mkdir(parents=True)
    options = [f"--datadir={data}", f"--port={port}", "--bind-address=127.0.0.1", f"--socket={directory / 'socket'}"]
    with _running([server, "--no-defaults", *options, "--skip-grant-tables", f"--user={user}"], None, directory, port):
        url = f"mysql+pymysql://root@127.0.0.1:{port}"
        engine = create_engine(url)
        with engine.connect() as connection:
            connection.exec_driver_sql("CREATE DATABASE airflow CHARACTER SET utf8mb4 COLLATE utf8mb4_bin")
        engine.dispose()
        yield f"{url}/airflow?charset=utf8mb4"


@contextlib.contextmanager
def _running(command: list[str | Path], user: str | None, directory: Path, port: int) -> Iterator[None]:
    with (directory / "log").open("wb") as log, subprocess.Popen(command, user=user, stdout=log, stderr=log) as process:
        try:
            anyio.run(wait_for_port, port)
            yield
        finally:
            process.terminate()
