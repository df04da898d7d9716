"""What `bench.clouds` starts beside itself: Azurite and fake-gcs-server, and a delaying proxy before either."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.cloud_servers import AZURE_ACCOUNT, AZURE_KEY, azurite, fake_gcs

from bench.servers import BUCKET, DELAY, Processes, delayed

GOOGLE, AZURE = "gs", "az"


@dataclass(frozen=True)
class Cloud(Processes):
    """One cloud's server, and the processes that measure there.

    Attributes:
        name: the scheme of our URLs there.
        endpoints: the server's addresses, with Azure's account, by delay in milliseconds: 0 and `DELAY`.
    """

    name: str
    endpoints: dict[int, str]

    def client_settings(self, endpoint: str) -> dict[str, str]:
        if self.name == AZURE:
            string = f"DefaultEndpointsProtocol=http;AccountName={AZURE_ACCOUNT};AccountKey={AZURE_KEY}"
            return {
                "AZURE_STORAGE_CONNECTION_STRING": f"{string};BlobEndpoint={endpoint};",
                "AIRFLOW__COMMON_IO__STATE_STORE_OBJECTSTORAGE_PATH": f"abfs://{BUCKET}/common-io",
            }
        return {
            "STORAGE_EMULATOR_HOST": endpoint,
            "AIRFLOW__COMMON_IO__STATE_STORE_OBJECTSTORAGE_PATH": f"gs://{BUCKET}/common-io",
            # gcsfs looks for no credentials then.
            "FSSPEC_GS_TOKEN": "anon",
            # Or else it first asks over gRPC what kind of bucket this is, which the server does not know, for minutes.
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        }


@contextlib.contextmanager
def running() -> Iterator[dict[str, Cloud]]:
    """Start the servers, and stop them in the end. Yields them by `Cloud.name`."""
    with contextlib.ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="async-state-bench-")))
        google = stack.enter_context(fake_gcs())
        google.make_bucket(BUCKET)
        # adlfs's library is newer than Azurite.
        azure = stack.enter_context(azurite(any_version=True))
        azure.make_container(BUCKET)
        direct, with_account = google.direct_endpoint, azure.direct_endpoint
        before_azure = stack.enter_context(delayed(with_account))
        yield {
            GOOGLE: Cloud(home, GOOGLE, {0: direct, DELAY: stack.enter_context(delayed(direct))}),
            AZURE: Cloud(home, AZURE, {0: with_account, DELAY: f"{before_azure}/{AZURE_ACCOUNT}"}),
        }
