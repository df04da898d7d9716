"""A task for Celery's own pool: see tests/airflow/test_celery.py."""

from __future__ import annotations

import sys
from typing import Any

from celery import shared_task


@shared_task(name="probe")  # type: ignore[untyped-decorator]
def probe(endpoint_url: str) -> dict[str, Any]:
    """Return what this process of the pool has inherited, and what a first operation does in one forked from it."""
    inherited = "aiobotocore" in sys.modules
    from tests.airflow.test_patches import in_fork

    return {"inherited": inherited, "first operation": in_fork(endpoint_url)}
