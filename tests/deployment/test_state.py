"""State that many tasks update at once, and state in triggers, in whole deployments."""

from __future__ import annotations

from typing import Any

from tests.deployment.conftest import SECONDS, Deployment


def test_fifty_mapped_tasks_count_to_fifty(deployment: Deployment) -> None:
    deployment.services.run_dag("counting", "counting", {})
    assert deployment.value("v1/asset/name/counted/worker/count") == 50


def test_a_trigger_goes_on_where_the_killed_triggerer_ended(deployment: Deployment) -> None:
    services = deployment.services
    progress = "v1/task/deferring/deferring/pages/-1/worker/progress"

    def come_to(page: int) -> Any:
        def come() -> Any:
            found = deployment.value(progress)
            return found if found is not None and found["page"] >= page else None

        return services.wait_for(f"page {page}", SECONDS, come)

    services.start_run("deferring", "deferring", {})
    assert come_to(3)["starts"] == 1
    services.kill("triggerer")
    killed_at = deployment.value(progress)["page"]
    services.start_triggerer("triggerer")
    services.wait_for_run("deferring", "deferring")
    assert killed_at < 20
    assert deployment.value(progress) == {"page": 20, "starts": 2}
