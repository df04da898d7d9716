"""The backend in Airflow's own triggerer: an asset's watcher, and a task that defers.

It is on the workers' side alone, so what test_airflow_services.py tests with it on both sides is tested here as well.
Every request of a trigger's to S3 takes half a second. `print` shows how long the triggerer's loop stood still (pytest
-s); asserted is only what tells a loop that waits for a request from one that does not. bench/triggerer.py measures.
"""

from __future__ import annotations

import shutil
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from async_state.testing import Answer, FakeS3, Request
from tests.airflow.airflow_services import migrated
from tests.airflow.deployment import (
    DAG,
    RUN,
    TASK,
    TASK_VALUES,
    Deployment,
    everything,
    stored,
    value_objects,
)

# What holds with the backend on either side.
from tests.airflow.test_airflow_services import (
    test_a_refused_write_is_explained_in_the_tasks_log as test_a_refused_write_is_explained_in_the_tasks_log,
)
from tests.airflow.test_airflow_services import (
    test_all_tasks_succeed_and_the_refused_one_is_retried as test_all_tasks_succeed_and_the_refused_one_is_retried,
)
from tests.airflow.test_airflow_services import (
    test_credentials_are_used_and_found_nowhere as test_credentials_are_used_and_found_nowhere,
)
from tests.airflow.test_airflow_services import (
    test_every_tasks_messages_are_searched as test_every_tasks_messages_are_searched,
)
from tests.airflow.test_airflow_services import (
    test_the_search_finds_what_is_there as test_the_search_finds_what_is_there,
)
from tests.airflow.test_airflow_services import (
    test_values_are_in_the_bucket_and_nowhere_else as test_values_are_in_the_bucket_and_nowhere_else,
)
from tests.airflow.triggers.watching import VALUE

ROOT: Final = Path(__file__).parents[2]
ROUNDS: Final = 2
# Long, since a loop that waits for nothing was seen to stand still for 270 ms where nine processes shared two cores.
REQUEST_SECONDS: Final = 1.0
# A loop that waits for one request stands still for twice as long.
MOST_STANDSTILL_MS: Final = 500
EVENT_SECONDS: Final = 600.0
#: What the names of the packaged examples' objects have in common.
EXAMPLES: Final = "/async_state_"
#: What is in the names of the objects of those, and of the DAG that uses no trigger. Their requests take no longer than
#: they do.
QUICK: Final = (EXAMPLES, DAG, "orders", "returns")
#: What is in the names of the objects of the triggers and of the tasks that defer.
OF_TRIGGERS: Final = (EXAMPLES, "/measured/", "/deferring/")
FILE: Final = "2026-01-01.csv"
CURSOR: Final = "v1/asset/name/async_state_files/worker/cursor"


@dataclass
class Outcome:
    """What the triggerers and the deferring task left behind.

    Attributes:
        deployment: the services, in which the DAG that uses no trigger has run as well.
        events: what the watchers told.
        ended: what the triggerers ended with, on SIGTERM.
        stopped: seconds that took.
        slow_requests: how many requests took half a second.
        gathered_at_once: how many of the sets that are gathered were under way at once.
        returned: what the deferring task returned.
        example_returned: what the packaged example that defers returned.
        objects: what is in the bucket.
        logs: all log files' text, by path.
    """

    deployment: Deployment
    events: list[Any] = field(default_factory=list)
    ended: list[int] = field(default_factory=list)
    stopped: list[float] = field(default_factory=list)
    slow_requests: int = 0
    gathered_at_once: int = 0
    returned: Any = None
    example_returned: Any = None
    objects: dict[str, Any] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)


@pytest.fixture(scope="module")
def outcome(moto_server: FakeS3, shared_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """Run two triggerers, one after the other, and the tasks that defer with the second."""
    holding, release = threading.Event(), threading.Event()
    deployment = Deployment(
        tmp_path_factory.mktemp("triggerer"),
        moto_server,
        migrated(shared_directory),
        both_sides=False,
        common={
            "PYTHONPATH": str(ROOT),
            "TRIGGERER_ROUNDS": str(ROUNDS),
            # Below a request's time, and far above what blocks the loop on a quiet machine.
            "AIRFLOW__TRIGGERER__BLOCKED_MAIN_THREAD_WARNING_THRESHOLD": "0.45",
        },
        other_objects=OF_TRIGGERS,
    )
    services = deployment.services
    found = Outcome(deployment)
    gathered: list[Request] = []

    def delay(request: Request) -> Answer | None:
        if "/endless" in request.path:
            holding.set()
            release.wait(EVENT_SECONDS)
            return None
        if any(part in f"{request.path}?{request.query}" for part in QUICK):
            return deployment.refuse_once(request)
        found.slow_requests += 1
        counted = request.method == "PUT" and "/gathered" in request.path
        if counted:
            gathered.append(request)
            found.gathered_at_once = max(found.gathered_at_once, len(gathered))
        time.sleep(REQUEST_SECONDS)
        if counted:
            gathered.remove(request)
        return None

    def stop(triggerer: str) -> None:
        begun = time.monotonic()
        found.ended.append(services.stop(triggerer))
        found.stopped.append(time.monotonic() - begun)

    def told() -> list[Any]:
        return [payload for payload in services.asset_events() if payload != FILE]

    def returned(dag_id: str, task_id: str) -> Any:
        services.wait_for_run(dag_id, RUN)
        return services.get(f"dags/{dag_id}/dagRuns/{RUN}/taskInstances/{task_id}/xcomEntries/return_value")["value"]

    for dags in (
        ROOT / "tests" / "airflow" / "triggers" / "dags.py",
        ROOT / "src" / "async_state" / "example_dags" / "async_state_trigger.py",
        ROOT / "src" / "async_state" / "example_dags" / "async_state_watcher.py",
    ):
        shutil.copy(dags, services.home / "dags")
    (services.home / "inbox").mkdir()
    (services.home / "inbox" / FILE).touch()
    moto_server.intercept = delay
    try:
        with services.running(triggerer="triggerer-1"):
            deployment.run_dag()
            services.wait_for("the watcher's events", EVENT_SECONDS, lambda: len(told()) >= 2)
            services.wait_for("a request that is held", EVENT_SECONDS, holding.is_set)
            services.wait_for("the event of a file", EVENT_SECONDS, lambda: FILE in services.asset_events())
            services.wait_for("its cursor", EVENT_SECONDS, lambda: everything(deployment, CURSOR))
            stop("triggerer-1")
            for dag_id in "async_state_trigger", "deferring":
                services.start_run(dag_id, RUN, {})
            for dag_id in "async_state_trigger", "deferring":
                services.wait_for_deferral(dag_id)
            services.start_triggerer("triggerer-2")
            found.example_returned = returned("async_state_trigger", "pages")
            found.returned = returned("deferring", "deferring")
            services.wait_for("its first event", EVENT_SECONDS, lambda: len(told()) >= 3)
            stop("triggerer-2")
            found.events = told()
    finally:
        moto_server.intercept = None
        release.set()
    found.objects = everything(deployment)
    found.logs = {str(p.relative_to(services.home)): p.read_text(errors="replace") for p in services.log_files()}
    print_figures(found)
    # pytest shows what was printed if a test fails, and only then.
    print(services.tails())
    return found


@pytest.fixture
def deployment(outcome: Outcome) -> Deployment:
    # As above.
    print(outcome.deployment.services.tails())
    return outcome.deployment


def print_figures(outcome: Outcome) -> None:
    for phase, figures in outcome.events[1].items():
        if isinstance(figures, dict) and "gap" in figures:
            print(
                f"{phase}: worst gap {figures['gap']} ms, wall time {figures['wall']} ms, longest gc {figures['gc']} ms"
            )
    print(f"SIGTERM to the end: {', '.join(f'{seconds:.2f}' for seconds in outcome.stopped)} s")


def test_watcher_reads_what_it_wrote(outcome: Outcome) -> None:
    told = outcome.events[1]
    assert "failed" not in told
    assert "failed at first" not in told
    assert told["watermark"] == VALUE
    assert told["deleted"] == "nothing"
    assert told["gathered values"] == list(range(8))
    assert told["count"] == 3
    assert (told["of another task"], told["its keys"]) == ("nothing", [])


def test_values_are_in_the_bucket_and_deleted_ones_are_not(outcome: Outcome) -> None:
    asset = "v1/asset/name/measured/worker"
    task = f"v1/task/deferring/{RUN.replace('+', '%2B')}/deferring/-1/worker"
    others = ("endless", "cursor", *QUICK)
    values = {name: value for name, value in outcome.objects.items() if not any(part in name for part in others)}
    # The deployment, as each triggerer and the scheduler have found it.
    assert values.pop("v1/owner")["database"].endswith("/airflow/airflow.db")
    assert not [name for name, text in outcome.logs.items() if "belongs to another deployment" in text]
    assert values == {
        f"{asset}/watermark": VALUE,
        f"{asset}/count": 3,
        **{f"{asset}/gathered%20{i}": i for i in range(8)},
        f"{task}/job": VALUE,
        f"{task}/done": True,
    }


def test_watcher_in_a_new_triggerer_resumes_with_the_old_ones_state(outcome: Outcome) -> None:
    assert outcome.events[0]["resumed with"] == "nothing"
    assert outcome.events[2]["resumed with"] == VALUE


@pytest.mark.parametrize("phase", ["first use", "afterwards", "gathered", "updates", "by scope"])
def test_triggerers_loop_goes_on_while_requests_take_their_time(outcome: Outcome, phase: str) -> None:
    figures = outcome.events[1][phase]
    assert figures["wall"] > REQUEST_SECONDS * 1000
    assert figures["standstill"] < MOST_STANDSTILL_MS


def test_airflow_finds_no_trigger_that_blocks(outcome: Outcome) -> None:
    """Airflow would warn at each request. On a machine that is busy with something else, it does so once in a while."""
    # What the process of the triggers says is in the log. Its last words may be lost when the triggerer is stopped.
    assert "Trigger fired event" in outcome.logs["printed/triggerer-1"]
    blocked = sum(text.count("async thread was blocked") for text in outcome.logs.values())
    assert outcome.slow_requests >= 20
    assert blocked <= outcome.slow_requests / 4


def test_sets_that_are_gathered_overlap(outcome: Outcome) -> None:
    assert outcome.gathered_at_once > 1


def test_state_set_before_deferral_is_read_after_it(outcome: Outcome) -> None:
    assert outcome.returned["job"] == VALUE


def test_triggerer_stops_in_the_middle_of_an_operation(outcome: Outcome) -> None:
    assert outcome.ended == [0, 0]
    for triggerer in "printed/triggerer-1", "printed/triggerer-2":
        # Had the process that runs the triggers not ended by itself, it would have been sent SIGTERM and SIGKILL.
        (line,) = (line for line in outcome.logs[triggerer].splitlines() if "Process exited" in line)
        assert "exit_code=0" in line
        assert "signal_sent=SIGINT" in line


def test_the_example_of_a_trigger_keeps_its_progress(outcome: Outcome) -> None:
    assert outcome.example_returned == {"page": 10, "starts": 1}


def test_the_example_of_a_watcher_keeps_its_cursor(outcome: Outcome) -> None:
    assert outcome.objects[CURSOR] == FILE


@pytest.mark.parametrize("complaint", ["Unclosed", "never awaited", "different loop", "Task was destroyed"])
def test_nothing_in_any_log_complains(outcome: Outcome, complaint: str) -> None:
    assert not [name for name, text in outcome.logs.items() if complaint in text]


def test_backend_on_the_workers_side_stores_values_alone(deployment: Deployment) -> None:
    assert stored(deployment) == value_objects(deployment)


def test_airflows_rest_api_lists_readable_references(deployment: Deployment) -> None:
    listed = {scope: deployment.answers[scope]["task_state_store"] for scope, _ in TASK_VALUES}
    values = {(scope, entry["key"]): entry["value"] for scope, entries in listed.items() for entry in entries}
    task = f"{deployment.url}/v1/task/state_services/manual__2026-01-01T00:00:00%2B00:00"
    refs = {
        (f"{TASK}/basics/-1", "report/eu west"): f"{task}/basics/-1/worker/report%2Feu%20west",
        (f"{TASK}/basics/-1", "watermark"): f"{task}/basics/-1/worker/watermark",
        (f"{TASK}/mapped/0", "index"): f"{task}/mapped/0/worker/index",
        (f"{TASK}/mapped/0", "other"): f"{task}/mapped/0/worker/other",
        (f"{TASK}/mapped/1", "after"): f"{task}/mapped/1/worker/after",
        (f"{TASK}/retried/-1", "denied"): f"{task}/retried/-1/worker/denied",
        (f"{TASK}/retried/-1", "progress"): f"{task}/retried/-1/worker/progress",
    }
    assert values == {key: {"__airflow_state_ref__": deployment.named(ref)} for key, ref in refs.items()}


def test_airflows_rest_api_lists_readable_references_of_assets(deployment: Deployment) -> None:
    values = {
        (asset, entry["key"]): entry["value"]
        for asset in ("orders", "returns")
        for entry in deployment.answers[asset]["asset_state_store"]
    }
    refs = {
        ("orders", "cursor"): f"{deployment.url}/v1/asset/name/orders/worker/cursor",
        ("returns", "by uri"): f"{deployment.url}/v1/asset/uri/s3:%2F%2Freturns%2Fdaily/worker/by%20uri",
    }
    assert values == {key: {"__airflow_state_ref__": ref} for key, ref in refs.items()}


def test_references_are_in_the_database_where_values_are_not(deployment: Deployment) -> None:
    assert "row task_state_store.value" in deployment.found(f"{deployment.url}/{TASK}/basics/-1/worker/watermark")
    assert "row asset_state_store.value" in deployment.found(f"{deployment.url}/v1/asset/name/orders/worker/cursor")
