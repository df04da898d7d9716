"""Imported once, by the process that all those running Airflow are forked from: starting Airflow takes seconds.

Airflow's own executors fork their workers from such a process too.
"""

from __future__ import annotations

import asyncio
import importlib
import os

# Airflow talks a lot, from its first import on; all processes forked from this one write there too.
_log = os.open(os.environ["DEMO_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.dup2(_log, 1)
os.dup2(_log, 2)

from airflow.sdk.execution_time.supervisor import in_process_api_server  # noqa: E402


async def _warm_up() -> None:
    # What takes longest: the API server inside of dag.test() makes its routes at its first answer.
    transport = in_process_api_server().atransport
    # httpx, or httpx2 since task-sdk 1.4.
    httpx = importlib.import_module(type(transport).__module__.partition(".")[0])
    async with httpx.AsyncClient(transport=transport, base_url="http://in-process") as client:
        await client.get("/health")


asyncio.run(_warm_up())
