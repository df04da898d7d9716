"""TEMP"""

import anyio.to_thread


async def call(function, *args):
    return await anyio.to_thread.run_sync(function, *args, abandon_on_cancel=True)
