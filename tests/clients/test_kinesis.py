"""Amazon's Kinesis trigger in Airflow's own triggerer: it keeps what it has read of a stream in its asset's state.

moto's server is both Kinesis and S3. Two streams are watched by one triggerer and then by another; of one of them, the
first one's checkpoint meets an outage of S3.
"""

from __future__ import annotations

import base64
import contextlib
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import boto3
import pytest

from async_state.testing import REGION, FakeS3, Request, faults
from tests.airflow.airflow_services import Services

pytest.importorskip("airflow.providers.amazon", reason="the dependency group clients is not installed")

BUCKET: Final = "state"
REFUSALS: Final = 4
EVENT_SECONDS: Final = 120.0


@dataclass
class Outcome:
    """What the triggerers left behind.

    Attributes:
        events: the records of each event, of both streams, in order.
    """

    events: list[list[str]] = field(default_factory=list)

    def of(self, stream: str) -> list[list[str]]:
        """Return the records of each of a stream's events."""
        return [records for records in self.events if records[0].startswith(stream)]


@pytest.fixture(scope="module")
def outcome(moto_server: FakeS3, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Run two triggerers, one after the other."""
    prefix = uuid.uuid4().hex
    services = Services(
        tmp_path_factory.mktemp("kinesis") / "airflow",
        Path(__file__).parent / "dags" / "streams.py",
        worker={
            **moto_server.environment,
            "AWS_ENDPOINT_URL_KINESIS": moto_server.url,
            "AIRFLOW__WORKERS__STATE_STORE_BACKEND": "async_state.AsyncStateBackend",
            "AIRFLOW__ASYNC_STATE__URL": f"s3://{BUCKET}/{prefix}",
        },
    )
    services.migrate()
    found = Outcome()
    refused: Counter[str] = Counter()

    def when(request: Request) -> bool:
        refused[request.path] += 1
        return refused[request.path] <= REFUSALS

    def stored(asset: str) -> bool:
        pages = s3.list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/v1/asset/name/{asset}/")
        return bool(pages["KeyCount"])

    def dropped() -> bool:
        return "Trigger failed" in (services.printed / "triggerer-1").read_text()

    def read(stream: str, record: str) -> bool:
        return any(f"{stream} {record}" in records for records in events(services))

    with contextlib.closing(made("kinesis", moto_server)) as kinesis, contextlib.closing(made("s3", moto_server)) as s3:
        for stream in "orders", "returns":
            kinesis.create_stream(StreamName=stream, ShardCount=1)
            put(kinesis, stream, "1", "2")
        with services.running(triggerer="triggerer-1", dag_processor_only=True):
            with moto_server.failing(
                faults.slow_down(), method="PUT", path=f"{prefix}/v1/asset/name/returns/", when=when
            ):
                services.wait_for("a checkpoint", EVENT_SECONDS, lambda: stored("orders"))
                services.wait_for("a checkpoint in an outage", EVENT_SECONDS, lambda: stored("returns") or dropped())
            services.stop("triggerer-1")
            for stream in "orders", "returns":
                put(kinesis, stream, "3")
            services.start_triggerer("triggerer-2")
            services.wait_for("the next event", EVENT_SECONDS, lambda: read("orders", "3"))
            services.wait_for("the next event of the other", EVENT_SECONDS, lambda: read("returns", "3") or dropped())
            services.stop("triggerer-2")
            found.events = events(services)
    # pytest shows what was printed if a test fails, and only then.
    print(services.tails())
    return found


def made(service: str, moto: FakeS3) -> Any:
    # With credentials of its own, for the reason that `tests.servers.s3_client` has.
    return boto3.client(  # type: ignore[call-overload]
        service, endpoint_url=moto.url, region_name=REGION, aws_access_key_id="x", aws_secret_access_key="x"
    )


def put(kinesis: Any, stream: str, *records: str) -> None:
    for record in records:
        kinesis.put_record(StreamName=stream, Data=f"{stream} {record}".encode(), PartitionKey="all")


def events(services: Services) -> list[list[str]]:
    """Return the records of each event so far."""
    return [
        [base64.b64decode(record["Data"]).decode() for record in event["message_batch"]]
        for event in services.asset_events()
    ]


@pytest.mark.parametrize("stream", ["orders", "returns"])
def test_every_record_is_told_once(outcome: Outcome, stream: str) -> None:
    assert outcome.of(stream) == [[f"{stream} 1", f"{stream} 2"], [f"{stream} 3"]]
