"""``python -m async_state`` with the environment and the arguments that the first argument has, as JSON."""

import json
import os
import runpy
import sys
import tempfile


def main() -> None:
    environment, arguments, directory = json.loads(sys.argv[1])
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    # Of the environment before, as is Airflow's database where airflow-core is installed.
    tempfile.tempdir = None
    if settings := sys.modules.get("airflow.settings"):
        settings.configure_vars()
        settings.engine = None
    # What an interpreter does that starts on a terminal.
    sys.stdout.reconfigure(line_buffering=sys.stdout.isatty())
    sys.argv[1:] = arguments
    runpy.run_module("async_state", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
