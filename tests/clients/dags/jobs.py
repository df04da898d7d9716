"""Operators of Airflow's providers that keep their job's id, or their steps, in the task's state.

See tests/clients/test_outages.py. The environment says where their servers are.
"""

from __future__ import annotations

import os
from datetime import timedelta

import httpx
from airflow.providers.amazon.aws.operators.glue import GlueJobOperator
from airflow.providers.apache.livy.operators.livy import LivyOperator
from airflow.providers.common.ai.operators.agent import AgentOperator
from airflow.sdk import DAG
from pydantic_ai import FunctionToolset


def look_up() -> str:
    """Look the customer up."""
    return run("look_up")


def order() -> str:
    """Order what the customer asks for."""
    return run("order")


def run(tool: str) -> str:
    return httpx.post(f"{os.environ['TOOLS_URL']}/tools/{tool}", trust_env=False).raise_for_status().text


RETRIES = {"retries": 1, "retry_delay": timedelta(0)}

with DAG("livy", schedule=None, default_args=RETRIES):
    LivyOperator(task_id="job", file="s3://jobs/job.jar", polling_interval=1)

with DAG("glue", schedule=None, default_args=RETRIES):
    GlueJobOperator(task_id="job", job_name="job", aws_conn_id=None, region_name="us-east-1", job_poll_interval=1)

with DAG("agent", schedule=None, default_args=RETRIES):
    AgentOperator(
        task_id="job",
        prompt="Order what the customer asks for.",
        llm_conn_id="model",
        durable=True,
        toolsets=[FunctionToolset([look_up, order], id="shop")],
    )
