"""Runs another program, in the environment that the first argument holds as JSON."""

import json
import os
import runpy
import sys

if __name__ == "__main__":
    environment, name = sys.argv[1:3]
    os.environ.clear()
    os.environ.update(json.loads(environment))
    sys.argv[1:] = sys.argv[3:]
    runpy.run_module(f"tests.programs.{name}", run_name="__main__", alter_sys=True)
