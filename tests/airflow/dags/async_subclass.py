"""A worker's backend that is a subclass of ours."""

from __future__ import annotations

from async_state import AsyncStateBackend


class Subclass(AsyncStateBackend):
    """Nothing else."""
