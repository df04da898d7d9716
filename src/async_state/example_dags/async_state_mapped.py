"""Mapped tasks that count together: each adds to one key of an asset, and no update is lost.

With ``get`` and ``set``, two tasks that read at the same moment would write the same number. ``update`` writes only if
nobody has written meanwhile, and begins anew with the newer value otherwise. The store must know conditional writes:
``airflow async-state check`` says whether it does.
"""

from __future__ import annotations

from airflow.sdk import DAG, Asset, get_current_context, task

from async_state import StateStore

LOADED = Asset("async_state_loaded")

with DAG("async_state_mapped", schedule=None, catchup=False, tags=["async_state"], doc_md=__doc__) as dag:

    @task
    def batches() -> list[list[int]]:
        """Return the batches, each of which a task of its own loads."""
        return [list(range(size)) for size in range(1, 5)]

    @task(outlets=[LOADED])
    def load(batch: list[int]) -> None:
        """Load one batch, and add its rows to those of all others."""
        state = StateStore(get_current_context()["asset_state_store"][LOADED])
        state.update("rows", lambda rows: rows + len(batch), default=0)

    @task(inlets=[LOADED])
    def total() -> int:
        """Return how many rows all runs have loaded: state of an asset outlives a run."""
        rows = get_current_context()["asset_state_store"][LOADED].get("rows")
        return int(str(rows))

    load.expand(batch=batches()) >> total()
