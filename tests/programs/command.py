"""``python -m async_state`` with the environment and the arguments that the first argument has, as JSON."""

import json
import os
import runpy
import sys
import tempfile
from typing import Any


def main() -> None:
    environment, arguments, directory = json.loads(sys.argv[1])
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    # Of the environment before, as is Airflow's database where airflow-core is installed.
    tempfile.tempdir = None
    settings: Any = sys.modules.get("airflow.settings")
    if settings is not None:
        settings.configure_vars()
        settings.engine = None
    # As an interpreter has it that starts there.
    output: Any = sys.stdout
    output.reconfigure(line_buffering=output.isatty())
    sys.argv[1:] = arguments
    runpy.run_module("async_state", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
