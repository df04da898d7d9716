"""Why a sweep refuses to start, or stops. Nothing that could be live is deleted in either case."""

from __future__ import annotations

from async_state.errors import AsyncStateError


class SnapshotError(AsyncStateError):
    """The snapshot can't be trusted: empty, truncated, of another URL, or not what ``export-refs`` writes."""


class SourceError(AsyncStateError):
    """The rows can't be read."""


class RefusedError(AsyncStateError):
    """More would go than the sweep is allowed to delete."""
