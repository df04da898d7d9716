"""A process that measures: ``python -m bench.child <module>.<function> <arguments as JSON>``.

It prints what the function returns as JSON, or a line for each thing that a generator yields. `bench.servers` starts
it, with the environment that clients need.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterator


def main() -> None:
    """Call the function."""
    module, _, function = sys.argv[1].rpartition(".")
    # Nobody else's output gets between.
    told = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    result = getattr(importlib.import_module(f"bench.{module}"), function)(**json.loads(sys.argv[2]))
    for line in result if isinstance(result, Iterator) else [result]:
        print(json.dumps(line), file=told, flush=True)
    told.close()


if __name__ == "__main__":
    main()
