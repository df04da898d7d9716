"""Every operation on state, in tasks that Airflow's services run: see tests/airflow/deployment.py."""

from __future__ import annotations

import logging
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Asset, get_current_context, task
from airflow.sdk.execution_time.comms import CommsDecoder

ORDERS = Asset(name="orders", uri="s3://orders/daily")
RETURNS = Asset(name="returns", uri="s3://returns/daily")

if messages := os.environ.get("SERVICES_MESSAGES"):
    # Only tasks have the variable. What they send to the supervisor, byte for byte, is kept for the test.
    sent = Path(messages) / str(os.getpid())
    make_frame = CommsDecoder._make_frame

    def recorded(self: Any, msg: Any) -> Any:
        frame = make_frame(self, msg)
        with sent.open("ab") as file:
            file.write(frame.as_bytes())
        return frame

    CommsDecoder._make_frame = recorded  # type: ignore[method-assign]


def value(name: str) -> Any:
    # From the worker's environment: this file's source is in the database, and a run's conf too.
    return {"name": name, "sentinel": os.environ["SERVICES_VALUE"]}


@task
def basics() -> None:
    state = get_current_context()["task_state_store"]
    assert state.get("watermark", "default") == "default"
    state.set("watermark", value("first"))
    state.set("watermark", value("watermark"))
    assert state.get("watermark") == value("watermark")
    state.set("gone", value("gone"))
    state.delete("gone")
    assert state.get("gone", "default") == "default"
    state.set("report/eu west", value("report"))


@task
def mapped(index: int) -> None:
    state = get_current_context()["task_state_store"]
    state.set("index", value(f"index {index}"))
    state.set("other", value(f"other {index}"))
    if index == 1:
        state.clear()
        assert state.get("index") is None
        assert state.get("other") is None
        state.set("after", value("after"))


@task(retries=1, retry_delay=timedelta(0))
def retried() -> None:
    context = get_current_context()
    state = context["task_state_store"]
    if context["ti"].try_number == 1:
        state.set("progress", value("progress"))
    else:
        assert state.get("progress") == value("progress")
    # The store refuses the first try's write, which fails that try.
    state.set("denied", value("denied"))


@task(outlets=[ORDERS, RETURNS])
def write_assets() -> str:
    context = get_current_context()
    orders = context["asset_state_store"][ORDERS]
    orders.set("cursor", value("first"))
    orders.set("cursor", value("cursor"))
    assert orders.get("cursor") == value("cursor")
    orders.set("gone", value("gone"))
    returns = context["asset_state_store"][RETURNS]
    returns.set("one", value("one"))
    returns.set("two", value("two"))
    returns.clear()
    assert returns.get("one", "default") == "default"
    marker: str = context["dag_run"].conf["marker"]  # type: ignore[index]
    logging.getLogger(__name__).info("The marker is %s", marker)
    return marker


@task(inlets=[ORDERS, Asset.ref(uri=RETURNS.uri)])
def read_assets() -> None:
    stores = get_current_context()["asset_state_store"]
    orders = stores[ORDERS]
    assert orders.get("cursor") == value("cursor")
    orders.delete("gone")
    assert orders.get("gone", "default") == "default"
    by_uri = stores[Asset.ref(uri=RETURNS.uri)]
    assert by_uri.get("two", "default") == "default"
    by_uri.set("by uri", value("by uri"))
    assert by_uri.get("by uri") == value("by uri")


with DAG("state_services", schedule=None):
    basics()
    mapped.expand(index=[0, 1])
    retried()
    write_assets() >> read_assets()
