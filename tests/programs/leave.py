"""Ends without closing anything, after each way of use that leaves something open."""

import asyncio
import sys

from async_state import AsyncStateBackend, Settings
from tests.programs.common import say, start, task, use


def main() -> None:
    backend = start()
    use(backend, "leaver")
    # Packing a large value takes a worker thread, and so does everything that is done to files.
    large = "x" * 200_000
    ref = backend.serialize_task_state_store_to_ref(value=large, key="large", scope=task("leaver"))
    assert backend.deserialize_task_state_store_from_ref(ref) == large
    files = AsyncStateBackend(Settings(url=sys.argv[3]))
    use(files, "leaver")
    asyncio.run(files.aset(task("leaver"), "row", "left"))
    say("used")


if __name__ == "__main__":
    main()
