"""The process's first operations come from an event loop: nothing blocks it, even where the first one is cancelled."""

import asyncio

import greenback
from blockbuster import BlockBuster

from tests.programs.common import ause, say, start, task


async def main() -> None:
    first = asyncio.create_task(backend.aget(task("first"), "row"))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    assert first.cancelled()
    say("cancelled")
    await ause(backend, "loop")
    say("awaited")
    await greenback.ensure_portal()
    scope = task("hook")
    ref = backend.serialize_task_state_store_to_ref(value=1, key="value", scope=scope)
    assert backend.deserialize_task_state_store_from_ref(ref) == 1
    backend.clear(scope)
    say("called in place")


if __name__ == "__main__":
    backend = start()
    blockbuster = BlockBuster()
    for function in blockbuster.functions.values():
        # The one loop that may be kept waiting, by a configuration file and the like: nobody shares it.
        function.can_block_in("async_state/iothread.py", "_main")
        # Nor does anybody wait for a line to the test.
        function.can_block_in("tests/programs/common.py", "say")
    blockbuster.activate()
    asyncio.run(main())
