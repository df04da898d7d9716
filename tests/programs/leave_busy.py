"""Ends while a daemon thread and an event loop's task are in the middle of an operation."""

import asyncio
import threading

from tests.programs.common import hear, start, task


def main() -> None:
    backend = start()
    backend.set(task("leaver"), "row", "known")
    threading.Thread(target=backend.get, args=(task("leaver"), "held"), daemon=True).start()
    threading.Thread(target=asyncio.run, args=(backend.aget(task("leaver"), "held"),), daemon=True).start()
    hear("held")


if __name__ == "__main__":
    main()
