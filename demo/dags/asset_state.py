"""The proposal's second DAG: the state of an asset, which outlives tasks and runs."""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, Asset, task
from demo.watch import asset_state, tagged

WATCHED = Asset(name="watched_asset", uri="s3://demo/watched")

with DAG("asset_state", schedule=None):

    @task(inlets=[WATCHED])
    def set_and_get(**context: Any) -> None:
        state = asset_state(context, WATCHED)
        state.set("watermark", tagged("2026-05-01"))
        state.set("file_count", tagged("42"))
        assert state.get("watermark") == tagged("2026-05-01")
        assert state.get("file_count") == tagged("42")

    @task(inlets=[WATCHED])
    def delete(**context: Any) -> None:
        state = asset_state(context, WATCHED)
        state.set("to_delete", tagged("temporary_value"))
        assert state.get("to_delete") == tagged("temporary_value")
        state.delete("to_delete")
        assert state.get("to_delete") is None

    @task(inlets=[WATCHED])
    def clear(**context: Any) -> None:
        state = asset_state(context, WATCHED)
        state.set("key_a", tagged("value_a"))
        state.set("key_b", tagged("value_b"))
        state.clear()
        assert state.get("key_a") is None
        assert state.get("key_b") is None

    set_and_get() >> delete() >> clear()
