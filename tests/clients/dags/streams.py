"""Assets that Amazon's Kinesis trigger watches: see tests/clients/test_kinesis.py."""

from __future__ import annotations

from airflow.providers.amazon.aws.triggers.kinesis import KinesisTrigger
from airflow.sdk import DAG, Asset, AssetWatcher


def watched(stream: str) -> Asset:
    trigger = KinesisTrigger(
        stream_name=stream,
        aws_conn_id=None,
        region_name="us-east-1",
        shard_iterator_type="TRIM_HORIZON",
        waiter_delay=1,
    )
    return Asset(stream, watchers=[AssetWatcher(name="watcher", trigger=trigger)])


# Airflow starts a watcher only if a DAG is scheduled by its asset.
with DAG("streams", schedule=[watched("orders"), watched("returns")]):
    pass
