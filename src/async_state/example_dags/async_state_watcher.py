"""A watcher that keeps a cursor, so that it tells of each file once, also after a triggerer has been killed.

The trigger looks into a directory again and again. Its cursor is the name of the last file that it has told of, and
lies in the state of the asset. A triggerer that starts anew reads it and goes on there. Names must sort in the order in
which the files come, as names that begin with a time do.

The directory is ``inbox`` in ``AIRFLOW_HOME``, on the machine of the triggerer.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Asset, AssetWatcher, task
from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from async_state import AsyncStateStore

INBOX = Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser() / "inbox"


def _names(directory: str) -> list[str]:
    path = Path(directory)
    return sorted(file.name for file in path.iterdir()) if path.is_dir() else []


class NewFilesTrigger(BaseEventTrigger):
    """Tells of each new file in a directory.

    Args:
        directory: Where the files come.
        seconds: How long it waits before it looks again.
    """

    def __init__(self, directory: str, seconds: float = 5) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.directory = directory
        self.seconds = seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return what Airflow makes the trigger of, in each triggerer that runs it."""
        # A module that the triggerer can import, which a file in the folder of DAGs is not.
        return "async_state.example_dags.async_state_watcher.NewFilesTrigger", {
            "directory": self.directory,
            "seconds": self.seconds,
        }

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Tell of what is behind the cursor, and move it."""
        if self.asset_state_store is None:
            raise LookupError("NewFilesTrigger watches an asset, whose state has its cursor")
        state = AsyncStateStore(self.asset_state_store)
        while True:
            cursor: Any = await state.aget("cursor", "")
            for name in await asyncio.to_thread(_names, self.directory):
                if name > cursor:
                    yield TriggerEvent(name)  # type: ignore[no-untyped-call]
                    # Afterwards: a triggerer that is killed between the two tells of a file twice, and loses none.
                    await state.aset("cursor", name)
            await asyncio.sleep(self.seconds)


FILES = Asset(
    "async_state_files", watchers=[AssetWatcher(name="new_files", trigger=NewFilesTrigger(directory=str(INBOX)))]
)

with DAG("async_state_watcher", schedule=[FILES], catchup=False, tags=["async_state"], doc_md=__doc__) as dag:

    @task
    def report(triggering_asset_events: Any = None) -> list[str]:
        """Return the names of the files that have come."""
        events = triggering_asset_events[FILES]
        return [str(event.extra["payload"]) for event in events]

    report()
