"""What the own settings of a container and of its account do to state, in Azure Blob Storage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from async_state.cli.checks import Finding, fail, ok, warn
from async_state.stores.cloud.diagnose import Answer

_ACTION: Final = "Microsoft.Storage/storageAccounts/blobServices"
_HOLDS: Final = {
    "x-ms-has-immutability-policy": "an immutability policy",
    "x-ms-has-legal-hold": "a legal hold",
}


def of_container(answer: Answer) -> Iterator[Finding]:
    """Yield a finding for each setting of the container."""
    if answer.refused:
        yield _unknown("container's settings", answer, f"{_ACTION}/containers/read on the container")
        return
    found = answer.found
    holds = [what for header, what in _HOLDS.items() if found.get(header) == "true"]
    if holds:
        yield fail(
            "immutability",
            f"the container has {' and '.join(holds)}: no key can be set again or deleted meanwhile",
            "Keep state in a container without one",
        )
    elif found.get("x-ms-immutable-storage-with-versioning-enabled") == "true":
        yield warn(
            "immutability",
            "the container supports policies for versions, so that the account keeps every earlier value of every key",
            "Keep state in a container without them",
        )
    else:
        yield ok("immutability", "neither a policy nor a legal hold")
    if access := found.get("x-ms-blob-public-access"):
        yield fail(
            "public access",
            f"anybody may read values without credentials (access level {access})",
            "Set the container's access level to private",
        )
    leased = found.get("x-ms-lease-state") == "leased"
    yield ok("lease", "leased: the container can't be deleted, its blobs can" if leased else "none")


def of_service(answer: Answer) -> Iterator[Finding]:
    """Yield a finding for each setting of the account's blobs, and say what these requests can't tell."""
    if answer.refused:
        yield _unknown("soft delete", answer, f"{_ACTION}/read on the storage account")
    elif answer.found.get("DeleteRetentionPolicy/Enabled") == "true":
        days = answer.found.get("DeleteRetentionPolicy/Days")
        yield warn(
            "soft delete",
            f"each value that is set anew or deleted is kept, and billed, for {days} d more",
            "Unless values are to be restored, turn it off, or keep state in an account without it",
        )
    else:
        yield ok("soft delete", "off")
    yield ok(
        "versioning, lifecycle",
        "not asked, as only Azure's management interface tells them: look there that no rule deletes or archives what "
        "is below the prefix, and that a rule ends old versions",
    )


def _unknown(check: str, answer: Answer, action: str) -> Finding:
    return warn(check, f"not known: {answer.refused}", f"Allow {action} to whoever runs this, or look there")
