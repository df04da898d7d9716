"""For tests: the contract of a state-store backend as a pytest class, and a real S3 server that fails on demand.

`StateBackendContract` needs pytest and the task SDK alone. `fake_s3` needs ``moto[s3,server]``, and imports it when it
is called.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from async_state.testing import faults as faults
from async_state.testing.faults import Answer, Request
from async_state.testing.s3 import CREDENTIALS, REGION, FakeS3, fake_s3
from async_state.testing.server import Failing

if TYPE_CHECKING:
    from async_state.testing.contract import SlowStoreContract, StateBackendContract

__all__ = [
    "StateBackendContract",
    "SlowStoreContract",
    "fake_s3",
    "faults",
    "FakeS3",
    "Failing",
    "Request",
    "Answer",
    "CREDENTIALS",
    "REGION",
]


if "pytest" in sys.modules:
    import pytest

    # Before that module is imported by anyone, so that an assertion that fails there shows its values.
    pytest.register_assert_rewrite(f"{__name__}.contract")


def __getattr__(name: str) -> Any:
    # Late, since it needs pytest and Airflow, which programs that only want the server may not have.
    if name not in ("StateBackendContract", "SlowStoreContract"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from async_state.testing import contract

    return getattr(contract, name)
