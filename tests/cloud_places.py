"""Options of ``[async_state]`` for the servers of both clouds, for tests of what works on every store."""

from __future__ import annotations

from typing import Any

import pytest

from tests import cloud_servers

#: The clouds whose servers are installed, by the scheme of their URLs.
CLOUDS = ["gs"] * cloud_servers.fake_gcs_is_installed() + ["az"] * cloud_servers.azurite_is_installed()


def options(request: pytest.FixtureRequest, scheme: str, path: str) -> dict[str, Any]:
    """Return the options for state at ``path`` in the bucket or container ``state`` of the scheme's server."""
    url = f"{scheme}://state/{path}"
    if scheme == "gs":
        return {"url": url, "endpoint_url": request.getfixturevalue("gcs").url}
    azure = request.getfixturevalue("azure")
    return {"url": url, "endpoint_url": azure.endpoint, "azure_account": azure.account}
