"""How hypothesis is used here: the same examples each time, and no time limit on any, which a busy machine would break.

A module whose tests use hypothesis imports this one before it makes any.
"""

from __future__ import annotations

from typing import Final

from hypothesis import HealthCheck, settings

#: For a test of its own: what a fixture makes serves for all examples.
FUZZED: Final = settings(
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.register_profile("tests", FUZZED)
settings.load_profile("tests")
