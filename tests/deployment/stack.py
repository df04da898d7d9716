"""A whole deployment on this machine: what keeps the rows, what hands out the tasks, what keeps the objects."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import anyio

from tests.servers import ACCESS_KEY, SECRET_KEY, free_port, wait_for_port

_WEED_PARTS: Final = ("master", "volume", "filer", "s3", "admin")


def program(name: str) -> str | None:
    """Return the path of a program of the machine, or of this environment; ``None`` if it is not installed."""
    places = [os.environ["PATH"], sysconfig.get_path("scripts"), *map(str, Path("/usr/lib/postgresql").glob("*/bin"))]
    return shutil.which(name, path=os.pathsep.join(places))


@contextlib.contextmanager
def redis(directory: Path) -> Iterator[str]:
    """Run Redis, and yield its URL."""
    port = free_port()
    command = [str(program("redis-server")), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    with _running(command, directory / "redis.log", port, directory):
        yield f"redis://127.0.0.1:{port}"


@contextlib.contextmanager
def postgresql(directory: Path) -> Iterator[str]:
    """Run PostgreSQL with a new database, and yield its URL for SQLAlchemy."""
    data, port = directory / "postgresql", free_port()
    data.mkdir()
    # PostgreSQL refuses to run as root.
    user = "postgres" if os.getuid() == 0 else None
    if user:
        os.chown(data, pwd.getpwnam(user).pw_uid, -1)
        for parent in (directory, *directory.parents):
            if parent != Path("/"):
                parent.chmod(parent.stat().st_mode | 0o011)
    initdb = [str(program("initdb")), "--pgdata", str(data), "--username", "airflow", "--auth", "trust"]
    subprocess.run(initdb, user=user, check=True, capture_output=True, cwd="/")
    server = [str(program("postgres")), "-D", str(data), "-p", str(port), "-c", "listen_addresses=127.0.0.1"]
    server += ["-c", f"unix_socket_directories={data}", "-c", "fsync=off"]
    with _running(server, directory / "postgresql.log", port, data, user=user):
        create = [str(program("createdb")), "-h", "127.0.0.1", "-p", str(port), "-U", "airflow", "airflow"]
        subprocess.run(create, check=True, capture_output=True)
        yield f"postgresql+psycopg2://airflow@127.0.0.1:{port}/airflow"


@contextlib.contextmanager
def seaweedfs(directory: Path) -> Iterator[str]:
    """Run SeaweedFS's S3 gateway, which knows the tests' access key only, and yield its URL."""
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin"],
    }
    (directory / "s3.json").write_text(json.dumps({"identities": [identity]}))
    ports = {f"{part}.port{kind}": free_port() for part in _WEED_PARTS for kind in ("", ".grpc")}
    command = [str(program("weed")), "mini", "-dir=.", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3.config=s3.json"]
    command += [f"-{option}={port}" for option, port in ports.items()]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false"]
    command += ["-master.telemetry=false", "-master.volumeSizeLimitMB=64"]
    # In an environment of its own: it takes AWS_ACCESS_KEY_ID for an administrator's.
    with _running(command, directory / "seaweedfs.log", ports["s3.port"], directory, {"HOME": str(directory)}):
        yield f"http://127.0.0.1:{ports['s3.port']}"


@contextlib.contextmanager
def _running(
    command: list[str],
    log: Path,
    port: int,
    directory: Path,
    environment: Mapping[str, str] | None = None,
    user: str | None = None,
) -> Iterator[None]:
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=output, user=user, env=environment, cwd=directory) as process,
    ):
        try:
            anyio.run(wait_for_port, port)
            yield
        finally:
            process.kill()
