"""A process of `multiprocessing`, started by the method on the command line."""

import multiprocessing
import sys

from async_state import AsyncStateBackend
from tests.programs.common import say, start, use

# A forked process has the one that its parent has used; a spawned one imports this module anew, and has another.
BACKEND: AsyncStateBackend = start()


def work(name: str) -> str:
    use(BACKEND, name)
    return name


def main() -> None:
    use(BACKEND, "parent")
    with multiprocessing.get_context(sys.argv[3]).Pool(1) as pool:
        say(pool.apply(work, ("child",)))
        pool.close()
        pool.join()
    use(BACKEND, "parent")


if __name__ == "__main__":
    main()
