"""Airflow's execution API in its newest version alone, which is the one that the SDK beside it speaks.

Whatever serves it, the API server, a triggerer or a supervisor of tasks, otherwise builds the routes of every older one
as well when it is first asked: three seconds of CPU time in each of their processes. Where Cadwyn's private names have
changed, they do so again, and nothing else changes.
"""

from __future__ import annotations


def build_it_alone() -> None:
    """Let applications with versions answer 404 in all but the newest, in this process and its forks."""
    try:
        from cadwyn import Cadwyn, HeadVersion, Version, VersionBundle
        from cadwyn.route_generation import _DELETED_ROUTE_TAG

        initialize = Cadwyn._cadwyn_initialize
    except (ImportError, AttributeError):
        return

    def initialize_newest(self: Cadwyn) -> None:
        newest = Version(self.versions.versions[0].value)
        self.versions = VersionBundle(HeadVersion(), newest, api_version_var=self.versions.api_version_var)
        router = self._latest_version_router
        # What only exists in older versions has to be in one of them.
        router.routes = [r for r in router.routes if _DELETED_ROUTE_TAG not in getattr(r, "tags", ())]
        initialize(self)

    Cadwyn._cadwyn_initialize = initialize_newest
