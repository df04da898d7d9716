"""The documented policies are enough for the commands, and each of their actions is needed by the commands named here.

On SeaweedFS, as in `tests.stores.s3.test_iam`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from async_state.cli import definition
from tests import servers
from tests.stores.s3.test_iam import (
    ADMIN,
    BUCKET,
    DELETE,
    GET,
    GRANTS,
    LIST,
    POLICY,
    PREFIX,
    PUT,
    SECRET_KEY,
    Policy,
    Server,
    actions_of,
    policy_without,
)

ROOT = Path(__file__).parents[3]
VERSIONED, OLD, OLD_PREFIX = "iam-versions", "iam-old", "old/state"
LIST_VERSIONS, DELETE_VERSION = "s3:ListBucketVersions", "s3:DeleteObjectVersion"


def documented(page: str, comment: str, *replaced: tuple[str, str]) -> Policy:
    found = re.search(rf"<!-- {comment}:.*?-->\s*```json\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert found, f"{page} has the policy after its comment {comment}"
    text = found[1]
    for name, value in replaced:
        assert name in text
        text = text.replace(name, value)
    policy: Policy = json.loads(text)
    return policy


def without(policy: Policy, sid: str, action: str) -> Policy:
    statements = [
        {**statement, "Action": [a for a in actions_of(statement) if (statement["Sid"], a) != (sid, action)]}
        for statement in policy["Statement"]
    ]
    return {**policy, "Statement": [statement for statement in statements if statement["Action"]]}


def grants_of(policy: Policy) -> list[tuple[str, str]]:
    return [(statement["Sid"], action) for statement in policy["Statement"] for action in actions_of(statement)]


OF_VERSIONS = documented("docs/sweep.md", "iam-policy-versions", ("my-bucket", VERSIONED), ("airflow-state", PREFIX))
_OF_OLD = documented("docs/moving.md", "iam-policy-copy", ("old-bucket", OLD), ('"state/', f'"{OLD_PREFIX}/'))
_OF_OLD = json.loads(json.dumps(_OF_OLD).replace(f"{OLD}/state/", f"{OLD}/{OLD_PREFIX}/"))
OF_COPY = {**_OF_OLD, "Statement": [*_OF_OLD["Statement"], *POLICY["Statement"]]}

POLICIES = {
    "backend": POLICY,
    **{f"backend-{sid}-{action}": policy_without(sid, action) for sid, action in GRANTS},
    "versions": OF_VERSIONS,
    **{f"versions-{sid}-{action}": without(OF_VERSIONS, sid, action) for sid, action in grants_of(OF_VERSIONS)},
    "copy": OF_COPY,
    **{f"copy-{sid}-{action}": without(OF_COPY, sid, action) for sid, action in grants_of(OF_COPY)},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    def user(name: str, **rights: Any) -> dict[str, Any]:
        return {"name": name, "credentials": [{"accessKey": name, "secretKey": SECRET_KEY}], **rights}

    configuration = {
        "identities": [user(ADMIN, actions=["Admin"]), *(user(name, policyNames=[name]) for name in POLICIES)],
        "policies": [{"name": name, "content": json.dumps(policy)} for name, policy in POLICIES.items()],
    }
    with (
        servers.seaweedfs(tmp_path_factory.mktemp("seaweedfs"), configuration) as url,
        contextlib.closing(Server(url)) as server,
    ):
        client = server.client(ADMIN)
        for bucket in BUCKET, VERSIONED, OLD:
            client.create_bucket(Bucket=bucket)
        client.put_bucket_versioning(Bucket=VERSIONED, VersioningConfiguration={"Status": "Enabled"})
        yield server


@dataclass
class Place:
    """A task's objects below a base URL: two of the newest versions, with an earlier one of each."""

    server: Server
    bucket: str
    prefix: str
    dag: str

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"

    @property
    def names(self) -> list[str]:
        return [f"v1/task/{self.dag}/run/task/-1/worker/{key}" for key in ("live", "orphan")]

    def fill(self) -> None:
        for body in b"1", b"2":
            for name in self.names:
                self.server.client(ADMIN).put_object(Bucket=self.bucket, Key=f"{self.prefix}/{name}", Body=body)

    def left(self) -> int:
        found = self.server.client(ADMIN).list_objects_v2(
            Bucket=self.bucket, Prefix=f"{self.prefix}/v1/task/{self.dag}/"
        )
        return found["KeyCount"]


@pytest.fixture
def run(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """Run a command as a user."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level

    def run(user: str, url: str, *argv: str) -> int:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", user)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        monkeypatch.setenv("AIRFLOW__ASYNC_STATE__URL", url)
        monkeypatch.setenv("AIRFLOW__ASYNC_STATE__ENDPOINT_URL", server.url)
        monkeypatch.setenv("AIRFLOW__ASYNC_STATE__MAX_ATTEMPTS", "1")
        args = definition.parser().parse_args(argv)
        with pytest.raises(SystemExit) as ended:
            args.func(args)
        return int(str(ended.value.code))

    yield run
    root.handlers[:] = handlers
    root.setLevel(level)


Run = Callable[..., int]


def snapshot(place: Place, directory: Path) -> str:
    """Write one in which the first object is referenced, and every other one that is there now."""
    found = place.server.client(ADMIN).list_objects_v2(Bucket=place.bucket, Prefix=f"{place.prefix}/")
    refs = [f"s3://{place.bucket}/{item['Key']}" for item in found.get("Contents", ())]
    refs.remove(f"{place.url}/{place.names[1]}")
    # S3 says to the second when an object was written.
    written_at = time.time() + 1
    head = {
        "async_state_refs": 1,
        "taken_at": datetime.fromtimestamp(written_at, timezone.utc).isoformat(),
        "url": place.url,
    }
    file = directory / "refs"
    file.write_text("".join(json.dumps(line) + "\n" for line in (head, *refs, {"count": len(refs)})))
    return str(file)


@dataclass(frozen=True)
class Command:
    """A command with what it needs.

    Attributes:
        argv: Its arguments, of a place and the file of a snapshot.
        needs: The actions without which it fails.
        code: With which it ends where it may do what it needs.
        deletes: How many objects are gone afterwards.
    """

    argv: Callable[[Place, str], list[str]]
    needs: set[str]
    code: int = 0
    deletes: int = 0


def sweep(*options: str) -> Callable[[Place, str], list[str]]:
    return lambda place, refs: ["sweep", "--refs", refs, "--grace", "0", "--max-orphans", "100%", *options]


COMMANDS = {
    "list": Command(lambda place, _: ["list", "--dag-id", place.dag], {LIST, GET}),
    "list-no-encoding": Command(lambda place, _: ["list", "--no-encoding"], {LIST}),
    "usage": Command(lambda place, _: ["usage"], {LIST}),
    "get": Command(lambda place, _: ["get", f"{place.url}/{place.names[0]}"], {GET}),
    "get-by-filters": Command(
        lambda place, _: ["get", "--dag-id", place.dag, "--key", "live", "--show-value"], {LIST, GET}
    ),
    "delete": Command(lambda place, _: ["delete", "--dag-id", place.dag, "--yes"], {LIST, DELETE}, deletes=2),
    "sweep": Command(sweep(), {LIST}, code=1),
    "sweep-delete": Command(sweep("--delete"), {LIST, GET, DELETE}, deletes=1),
}


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize(("sid", "action"), [("", ""), *GRANTS])
def test_with_the_backends_policy(
    sid: str, action: str, name: str, server: Server, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = COMMANDS[name]
    place = Place(server, BUCKET, PREFIX, f"dag-{uuid.uuid4().hex}")
    place.fill()
    argv = command.argv(place, snapshot(place, tmp_path))
    code = run(f"backend-{sid}-{action}" if sid else "backend", place.url, *argv)
    err = capsys.readouterr().err
    if action in command.needs:
        assert code == 1
        assert action in err
        assert "AccessDenied" in err or "HTTP 403" in err
        assert place.left() == 2
    else:
        assert (code, place.left()) == (command.code, 2 - command.deletes), err


@pytest.mark.parametrize(("sid", "action"), [("", ""), *grants_of(OF_VERSIONS)])
def test_a_sweep_of_a_bucket_that_keeps_versions(
    sid: str, action: str, server: Server, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Place(server, VERSIONED, PREFIX, f"dag-{uuid.uuid4().hex}")
    place.fill()
    argv = sweep("--delete")(place, snapshot(place, tmp_path))
    code = run(f"versions-{sid}-{action}" if sid else "versions", place.url, *argv)
    err = capsys.readouterr().err
    found = server.client(ADMIN).list_object_versions(Bucket=VERSIONED, Prefix=f"{place.prefix}/v1/task/{place.dag}/")
    if sid and action != DELETE:
        assert code == 1
        assert action in err
        assert place.left() == 2
        assert len(found["Versions"]) == 4
    else:
        assert (code, place.left(), len(found["Versions"])) == (0, 1, 2), err
        assert "DeleteMarkers" not in found


@pytest.mark.parametrize(("sid", "action"), [("", ""), *grants_of(OF_COPY)])
def test_a_copy(sid: str, action: str, server: Server, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    source = Place(server, OLD, OLD_PREFIX, f"dag-{uuid.uuid4().hex}")
    source.fill()
    target = Place(server, BUCKET, PREFIX, source.dag)
    code = run(f"copy-{sid}-{action}" if sid else "copy", source.url, "copy", "--to", target.url, "--yes")
    err = capsys.readouterr().err
    if sid and action != DELETE:
        assert code == 1
        assert action in err
        # Where it may not look at what it has written, that is there.
        assert target.left() == 0 or (sid, action) == ("Objects", GET)
    else:
        assert (code, target.left()) == (0, 2), err


@pytest.mark.parametrize(("sid", "action"), [("", ""), *GRANTS])
def test_a_check(
    sid: str,
    action: str,
    server: Server,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("AIRFLOW__WORKERS__STATE_STORE_BACKEND", "async_state.AsyncStateBackend")
    # Whether they are patched in this process depends on the tests before.
    monkeypatch.setenv("AIRFLOW__ASYNC_STATE__PATCH_ACCESSORS", "False")
    code = run(f"backend-{sid}-{action}" if sid else "backend", f"s3://{BUCKET}/{PREFIX}", "check", "-o", "json")
    findings = json.loads(capsys.readouterr().out)
    failed = {finding["check"]: finding["detail"] for finding in findings if finding["status"] == "fail"}
    if sid:
        assert code == 1
        assert any(action in detail for detail in failed.values())
    else:
        assert (code, failed) == (0, {})


def test_each_action_is_needed_by_something() -> None:
    assert {PUT, *set().union(*(command.needs for command in COMMANDS.values()))} == {action for _, action in GRANTS}
    assert {action for _, action in grants_of(OF_VERSIONS)} == {GET, DELETE, LIST, LIST_VERSIONS, DELETE_VERSION}
