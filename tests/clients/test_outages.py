"""What an outage of S3, and a kill, cost operators that nobody here wrote: Livy's, Glue's and common-ai's agent.

They keep a job's id, or the steps of a durable agent, in the task's state. Each scene is a run of its own: real tasks
below Airflow's own supervisor (tests/airflow/dags/async_worker.py), all started once, with S3 as moto's server and
their own service as a small server that counts what was submitted (tests/clients/fakes.py).

Set ``OUTAGES_LONG`` in the environment for the scenes that take a minute and more.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest

from async_state.testing import REGION, Answer, FakeS3, Request, faults
from tests.airflow.airflow_services import processes_of_session
from tests.airflow.dags.async_worker import Run, environment_of
from tests.clients.fakes import Fake, Glue, Livy, Model
from tests.servers import s3_client

pytest.importorskip("airflow.providers.apache.livy", reason="the dependency group clients is not installed")

ROOT: Final = Path(__file__).parents[2]
WORKER: Final = ROOT / "tests" / "airflow" / "dags" / "async_worker.py"
BACKEND: Final = "async_state.AsyncStateBackend"
# Most of a scene is waiting.
AT_ONCE: Final = "6"
WORKER_SECONDS: Final = 900
LONG: Final = bool(os.environ.get("OUTAGES_LONG"))


@dataclass(frozen=True)
class Trouble:
    """What befalls requests to a scene's bucket: see `FakeS3.failing`."""

    fault: faults.Fault
    when: Callable[[Request], bool]
    times: int | None = None


def outage(seconds: float) -> Trouble:
    """S3 answers 503 from a scene's first request on, for so many seconds."""
    began: list[float] = []

    def when(_: Request) -> bool:
        began.append(time.monotonic())
        return began[-1] < began[0] + seconds

    return Trouble(faults.slow_down(), when=when)


def refusals(count: int, *methods: str) -> Trouble:
    """S3 answers 503 to the first ``count`` requests of these methods for each path."""
    counted: Counter[str] = Counter()

    def when(request: Request) -> bool:
        counted[request.path] += request.method in methods
        return request.method in methods and counted[request.path] <= count

    return Trouble(faults.slow_down(), when=when)


def killed_at_put(server: Fake, *, carried_out: bool) -> Trouble:
    """The task's process is killed at its first write, before or after S3 has carried that out."""

    def answer(exchange: faults.Exchange) -> Answer:
        if carried_out:
            exchange.carry_out(exchange.body)
        server.kill_client()
        raise faults.ConnectionDropped(reset=True)

    return Trouble(faults.Fault(answer=answer), when=lambda request: request.method == "PUT", times=1)


@dataclass
class Scene:
    """A run of one task, and what befalls it.

    Attributes:
        dag_id: the DAG in tests/clients/dags/jobs.py.
        server: what its job is submitted to.
        troubles: what befalls its requests to S3.
        options: of ``[async_state]``, beside the defaults.
        environment: more for its processes.
        name: of the run and of its bucket.
        home: the run's directory.
    """

    dag_id: str
    server: Fake
    troubles: tuple[Trouble, ...] = ()
    options: Mapping[str, object] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    name: str = ""
    home: Path = Path()

    @property
    def bucket(self) -> str:
        return f"clients-{self.name}"

    def hit_by(self, trouble: Trouble) -> Callable[[Request], bool]:
        """Return what tells whether a request is this scene's and meets the trouble."""
        return lambda request: f"{request.path}/".startswith(f"/{self.bucket}/") and trouble.when(request)

    def run(self, moto: FakeS3) -> Run:
        """Return the run, as the worker takes it, and make its bucket."""
        with contextlib.closing(client(moto)) as s3:
            s3.create_bucket(Bucket=self.bucket)
        options = {"url": f"s3://{self.bucket}/state", **self.options}
        model = {"model": "bedrock:amazon.nova-lite-v1:0", "region_name": REGION, "base_url": self.server.url}
        return Run(
            self.name,
            self.dag_id,
            {
                **moto.environment,
                "AIRFLOW__WORKERS__STATE_STORE_BACKEND": BACKEND,
                **{f"AIRFLOW__ASYNC_STATE__{name.upper()}": str(value) for name, value in options.items()},
                "AIRFLOW_CONN_LIVY_DEFAULT": json.dumps({"conn_type": "livy", "host": self.server.url}),
                "AIRFLOW_CONN_MODEL": json.dumps({"conn_type": "pydanticai_bedrock", "extra": model}),
                "AWS_ENDPOINT_URL_GLUE": self.server.url,
                "TOOLS_URL": self.server.url,
                **self.environment,
            },
        )

    @property
    def ended(self) -> tuple[str, int]:
        """The task's state and the number of its tries."""
        ((state, tries),) = self._rows("SELECT state, try_number FROM task_instance")
        return state, tries

    @property
    def row(self) -> Any:
        """What Airflow's database holds for the job's id."""
        (row,) = self._rows("SELECT value FROM task_state_store")
        return json.loads(row[0])

    @property
    def log(self) -> list[dict[str, Any]]:
        """What the task's tries logged, in order."""
        logs = sorted((self.home / "logs").glob("job.*.log"))
        return [json.loads(line) for log in logs for line in log.read_text().splitlines()]

    def objects(self, moto: FakeS3) -> list[Any]:
        """Return the values in its bucket, read with another client than the backend's."""
        with contextlib.closing(client(moto)) as s3:
            names = [item["Key"] for item in s3.list_objects_v2(Bucket=self.bucket).get("Contents", ())]
            return [json.loads(s3.get_object(Bucket=self.bucket, Key=name)["Body"].read()) for name in names]

    def _rows(self, query: str) -> list[Any]:
        with contextlib.closing(sqlite3.connect(self.home / "airflow.db")) as connection:
            return connection.execute(query).fetchall()


def client(moto: FakeS3) -> Any:
    return s3_client(moto.url)


def made() -> dict[str, Scene]:
    """Return the scenes by name, those first that take longest."""
    scenes = {}
    if LONG:
        scenes["livy-60s"] = Scene("livy", Livy(), (outage(60),), {"timeout": 90})
        scenes["agent-60s"] = Scene("agent", Model("turn 2"), (outage(60),), {"timeout": 90})
    scenes["livy-10s"] = Scene("livy", Livy(), (outage(10),))
    scenes["glue-10s"] = Scene("glue", Glue(), (outage(10),))
    scenes["agent-refused"] = Scene("agent", Model("turn 2"), (refusals(4, "PUT"),))
    scenes["agent-killed"] = Scene("agent", Model("turn 2"))

    clears = {"AIRFLOW__STATE_STORE__CLEAR_ON_SUCCESS": "True"}
    # Killed, so that the next try reads what this one has stored.
    for name, methods in ("get", ("GET",)), ("clear", ("DELETE", "POST")):
        trouble = refusals(4, *methods)
        scenes[f"livy-{name}-refused"] = Scene("livy", Livy("state"), (trouble,), environment=clears)

    scenes["livy-killed-before-submit"] = Scene("livy", Livy("submit"))
    for name, server, carried_out in (
        ("livy-killed-before-object", Livy(), False),
        ("livy-killed-before-row", Livy(), True),
        ("glue-killed-before-row", Glue(), True),
    ):
        scenes[name] = Scene(name.partition("-")[0], server, (killed_at_put(server, carried_out=carried_out),))
    scenes["livy-killed-after-row"] = Scene("livy", Livy("state", states=("running", "success")))
    scenes["glue-killed-after-row"] = Scene("glue", Glue("GetJobRun"))

    inline = {"timeout": 2, "outage_inline_threshold": 1024}
    never = outage(float("inf"))
    scenes["livy-inline"] = Scene("livy", Livy(), (never,), inline)
    scenes["livy-inline-killed"] = Scene("livy", Livy("state"), (never,), inline)
    # S3 is back once the job is known to have failed, and the next try stores the next job's id.
    failing = Livy(states=("dead", "dead", "success"))
    until_dead = Trouble(faults.slow_down(), when=lambda _: failing.batches < 2)
    scenes["livy-inline-moved"] = Scene("livy", failing, (until_dead,), inline)
    return scenes


@pytest.fixture(scope="module")
def scenes(moto_server: FakeS3, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scene]:
    """Run all scenes and return them by name."""
    home = tmp_path_factory.mktemp("outages")
    (home / "dags").mkdir()
    (home / "airflow.cfg").touch()
    shutil.copy(Path(__file__).parent / "dags" / "jobs.py", home / "dags")
    scenes = made()
    with contextlib.ExitStack() as stack:
        for name, scene in scenes.items():
            scene.name, scene.home = name, home / name
            stack.enter_context(scene.server)
        runs = [scene.run(moto_server) for scene in scenes.values()]
        for scene in scenes.values():
            for trouble in scene.troubles:
                stack.enter_context(moto_server.failing(trouble.fault, times=trouble.times, when=scene.hit_by(trouble)))
        work(home, runs)
    return scenes


def work(home: Path, runs: list[Run]) -> None:
    """Run the scenes' tasks until all have ended."""
    worker = subprocess.Popen(
        [sys.executable, WORKER, AT_ONCE],
        env=environment_of(home),
        cwd=home,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = worker.communicate(json.dumps([asdict(run) for run in runs]), WORKER_SECONDS)
    except subprocess.TimeoutExpired:
        for pid in processes_of_session(worker.pid):
            os.kill(pid, signal.SIGKILL)
        printed, _ = worker.communicate()
    assert worker.returncode == 0, printed


@pytest.fixture
def scene(request: pytest.FixtureRequest, scenes: dict[str, Scene]) -> Scene:
    """A scene by name. pytest shows what its task logged if the test fails, and only then."""
    found: Scene = scenes[request.param]
    for line in found.log:
        print(json.dumps(line))
    return found


def of(*names: str) -> pytest.MarkDecorator:
    """Run the test with each of these scenes."""
    return pytest.mark.parametrize("scene", names, indirect=True)


def submitted(scene: Scene) -> int:
    """Return how many jobs were submitted."""
    assert isinstance(scene.server, (Livy, Glue))
    return scene.server.batches if isinstance(scene.server, Livy) else len(scene.server.runs)


def said(scene: Scene, text: str) -> list[dict[str, Any]]:
    """Return the log lines with this text."""
    return [line for line in scene.log if text in line["event"]]


@of("livy-10s", "glue-10s", *(["livy-60s"] if LONG else []))
def test_a_job_is_submitted_once_in_an_outage(scene: Scene, moto_server: FakeS3) -> None:
    assert submitted(scene) == 1
    assert scene.ended == ("success", 1)
    assert scene.objects(moto_server) == [1 if scene.dag_id == "livy" else "jr_0"]


@of("agent-refused", *(["agent-60s"] if LONG else []))
def test_an_agents_steps_are_stored_in_an_outage(scene: Scene) -> None:
    assert not said(scene, "could not store step")
    assert_nothing_repeated(scene)


@of("agent-killed")
def test_an_agent_that_is_killed_repeats_nothing(scene: Scene) -> None:
    assert_nothing_repeated(scene)


def assert_nothing_repeated(scene: Scene) -> None:
    assert isinstance(scene.server, Model)
    assert scene.ended == ("success", 2)
    # The last turn was asked for by both tries, and the first one's process was killed instead of answered.
    assert scene.server.turns == [0, 1, 2]
    assert scene.server.tools == ["look_up", "order"]


@of("livy-get-refused")
def test_a_retry_reads_the_jobs_id_in_an_outage(scene: Scene) -> None:
    assert submitted(scene) == 1
    assert scene.ended == ("success", 2)


@of("livy-clear-refused")
def test_a_task_that_succeeded_clears_its_state_in_an_outage(scene: Scene, moto_server: FakeS3) -> None:
    assert scene.ended == ("success", 2)
    assert scene.objects(moto_server) == []


@of("livy-killed-before-submit", "livy-killed-after-row", "glue-killed-after-row")
def test_a_job_is_submitted_once_if_its_task_is_killed_while_none_is_lost(scene: Scene) -> None:
    assert submitted(scene) == 1
    assert scene.ended == ("success", 2)


@of("livy-killed-after-row")
def test_a_retry_reattaches_to_the_job_whose_id_is_stored(scene: Scene) -> None:
    (line,) = said(scene, "Reconnecting to existing job")
    assert line["external_id"] == 1


@of("livy-killed-before-object", "livy-killed-before-row")
def test_nobody_prevents_a_second_job_if_the_task_is_killed_before_its_row(scene: Scene, moto_server: FakeS3) -> None:
    # What is submitted and what is stored can't be one step: Airflow's mixin says so, too.
    assert submitted(scene) == 2
    assert scene.ended == ("success", 2)
    # The second one's id replaces the first one's, where that was stored: names are deterministic.
    assert scene.objects(moto_server) == [2]


@of("glue-killed-before-row")
def test_a_glue_run_without_a_row_stands_in_the_way_of_every_retry(scene: Scene, moto_server: FakeS3) -> None:
    assert scene.ended == ("failed", 2)
    assert isinstance(scene.server, Glue)
    assert scene.server.runs == ["RUNNING"]
    # The person on call finds its id in the first try's log, and here in the bucket too.
    assert said(scene, "/job/run/jr_0")
    assert scene.objects(moto_server) == ["jr_0"]


@of("livy-inline")
def test_a_job_is_submitted_once_in_an_endless_outage(scene: Scene) -> None:
    assert submitted(scene) == 1
    assert scene.ended == ("success", 1)
    # The JSON text of the id, which the SDK wraps as it does a reference.
    assert scene.row == {"__airflow_state_ref__": "1"}


@of("livy-inline")
def test_an_id_in_the_database_is_told_by_one_warning(scene: Scene) -> None:
    (warning,) = said(scene, "outage_inline_threshold")
    assert warning["level"] == "warning"


@of("livy-inline-killed")
def test_a_retry_reattaches_by_an_id_in_the_database(scene: Scene) -> None:
    assert submitted(scene) == 1
    assert scene.ended == ("success", 2)
    (line,) = said(scene, "already completed successfully")
    assert line["external_id"] == 1


@of("livy-inline-moved")
def test_the_next_id_is_stored_once_the_outage_is_over(scene: Scene, moto_server: FakeS3) -> None:
    assert submitted(scene) == 2
    assert scene.ended == ("success", 2)
    assert scene.row["__airflow_state_ref__"].startswith(f"s3://{scene.bucket}/state/")
    assert scene.objects(moto_server) == [2]
