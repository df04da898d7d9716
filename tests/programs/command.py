"""``python -m async_state`` with the environment and the arguments that the first argument has, as JSON."""

import json
import os
import runpy
import sys
import tempfile


def main() -> None:
    environment, arguments = json.loads(sys.argv[1])
    os.environ.clear()
    os.environ.update(environment)
    # Of the environment before.
    tempfile.tempdir = None
    sys.argv[1:] = arguments
    runpy.run_module("async_state", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
