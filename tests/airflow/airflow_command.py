"""Airflow's command, which collects garbage rarely: ``python airflow_command.py scheduler``.

Each of Airflow's services imports a million objects. With Python's own thresholds it goes through them again and again,
for a quarter of the CPU time that the tests of services take.
"""

import gc
import runpy

if __name__ == "__main__":
    gc.set_threshold(100_000, 50, 100)
    runpy.run_module("airflow", run_name="__main__", alter_sys=True)
