"""What the process has imported from which those of `tests.airflow.processes` are forked."""

import gc

import aiohttp
import airflow.cli.cli_config
import airflow.sdk.execution_time.task_runner
import airflow.sdk.plugins_manager

__all__ = ["aiohttp", "airflow"]

# A forked process need not go through it.
gc.freeze()
