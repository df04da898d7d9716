"""The documented IAM policy is enough for every operation, needs each of its actions, and opens nothing outside it.

On SeaweedFS, from its PyPI wheel, because it enforces such policies in full: actions, resources, the condition on
``s3:prefix``, and every key of a DeleteObjects on its own. moto ignores the condition and checks a DeleteObjects
against the bucket, so that it would refuse this policy.

Not shown, because SeaweedFS differs from AWS in it: that reading a missing object needs s3:ListBucket. AWS calls it
denied without; SeaweedFS calls it missing all the same.
"""

from __future__ import annotations

import contextlib
import copy
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk.state import AssetScope, TaskScope
from botocore.exceptions import ClientError

from async_state import AsyncStateBackend, Settings, keys
from async_state.errors import PurgeError, StoreAccessError
from tests import servers

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

BUCKET = "iam-test"
PREFIX = "prod/airflow"
#: Where the policy must not reach, though its name starts with the prefix.
OUTSIDE = f"{PREFIX}-2"

GET, PUT, DELETE, LIST = "s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket"

Policy = dict[str, Any]


def documented_policy() -> Policy:
    page = (Path(__file__).parents[3] / "docs" / "permissions.md").read_text()
    found = re.search(r"<!-- iam-policy:.*?-->\s*```json\n(.*?)```", page, re.DOTALL)
    assert found, "permissions.md has the policy after its comment iam-policy"
    policy: Policy = json.loads(found[1].replace("my-bucket", BUCKET).replace("airflow-state", PREFIX))
    return policy


def actions_of(statement: dict[str, Any]) -> list[str]:
    action: str | list[str] = statement["Action"]
    return [action] if isinstance(action, str) else action


POLICY = documented_policy()
#: Each grant: the statement's Sid and one action of it.
GRANTS = [(statement["Sid"], action) for statement in POLICY["Statement"] for action in actions_of(statement)]


def policy_without(sid: str, action: str) -> Policy:
    policy = copy.deepcopy(POLICY)
    for statement in policy["Statement"]:
        if statement["Sid"] == sid:
            statement["Action"] = [a for a in actions_of(statement) if a != action]
    policy["Statement"] = [statement for statement in policy["Statement"] if statement["Action"]]
    return policy


def policy_for_all_objects() -> Policy:
    policy = copy.deepcopy(POLICY)
    for statement in policy["Statement"]:
        statement["Resource"] = statement["Resource"].replace(f"/{PREFIX}/*", "/*")
    return policy


def policy_without_condition() -> Policy:
    policy = copy.deepcopy(POLICY)
    for statement in policy["Statement"]:
        statement.pop("Condition", None)
    return policy


SECRET_KEY = "everyone's"
ADMIN = "admin"
DOCUMENTED = "documented"
ALL_OBJECTS = "all-objects"
UNCONDITIONAL = "unconditional"
#: By access key.
POLICIES = {
    DOCUMENTED: POLICY,
    ALL_OBJECTS: policy_for_all_objects(),
    UNCONDITIONAL: policy_without_condition(),
    **{f"{sid}-without-{action}": policy_without(sid, action) for sid, action in GRANTS},
}


@dataclass(frozen=True)
class Stored:
    """What is there before an operation: a row and a value in each of two scopes."""

    task: TaskScope
    asset: AssetScope
    task_ref: str
    asset_ref: str

    @property
    def gone_ref(self) -> str:
        return self.task_ref + "-gone"

    @property
    def prefixes(self) -> list[str]:
        return [keys.scope_prefix(scope) for scope in (self.task, self.asset)]


#: How many objects that is.
COUNT = 4


@dataclass(frozen=True)
class Operation:
    """A call of the backend.

    Attributes:
        method: its name.
        arguments: made of what is stored.
        needs: the actions without which it fails.
        about: what the error then names besides the scope.
        returns: what it returns.
        adds: how many objects there are more after it.
    """

    method: str
    arguments: Callable[[Stored], dict[str, Any]]
    needs: set[str]
    about: str = ""
    returns: object = None
    adds: int = 0

    def run(self, backend: AsyncStateBackend, stored: Stored) -> object:
        result: object = getattr(backend, self.method)(**self.arguments(stored))
        return result


OPERATIONS = {
    "set": Operation("set", lambda s: {"scope": s.task, "key": "new", "value": "1"}, {PUT}, "server/new", adds=1),
    "get": Operation("get", lambda s: {"scope": s.task, "key": "row"}, {GET}, "server/row", returns='"row"'),
    "get-missing": Operation("get", lambda s: {"scope": s.task, "key": "missing"}, {GET}, "server/missing"),
    "delete": Operation("delete", lambda s: {"scope": s.task, "key": "row"}, {DELETE}, "server/row", adds=-1),
    "clear-task": Operation("clear", lambda s: {"scope": s.task}, {LIST, DELETE}, adds=-2),
    "clear-map-indices": Operation(
        "clear", lambda s: {"scope": s.task, "all_map_indices": True}, {LIST, DELETE}, adds=-2
    ),
    "clear-asset": Operation("clear", lambda s: {"scope": s.asset}, {LIST, DELETE}, adds=-2),
    "serialize-task": Operation(
        "serialize_task_state_store_to_ref",
        # Written anew, so that what it returns is known: references are deterministic.
        lambda s: {"scope": s.task, "key": "value", "value": {"a": 2}},
        {PUT},
        "worker/value",
        returns=lambda s: s.task_ref,
    ),
    "serialize-asset": Operation(
        "serialize_asset_state_store_to_ref",
        lambda s: {"scope": s.asset, "key": "value", "value": {"a": 2}},
        {PUT},
        "worker/value",
        returns=lambda s: s.asset_ref,
    ),
    "deserialize-task": Operation(
        "deserialize_task_state_store_from_ref",
        lambda s: {"stored": s.task_ref},
        {GET},
        "worker/value",
        returns={"a": 1},
    ),
    "deserialize-asset": Operation(
        "deserialize_asset_state_store_from_ref",
        lambda s: {"stored": s.asset_ref},
        {GET},
        "worker/value",
        returns={"a": 1},
    ),
    "deserialize-gone": Operation(
        "deserialize_task_state_store_from_ref", lambda s: {"stored": s.gone_ref}, {GET}, "worker/value-gone"
    ),
    "purge-task": Operation("purge_task_state", lambda s: {"ref": s.task_ref}, {DELETE}, "worker/value", adds=-1),
    "purge-asset": Operation("purge_asset_state", lambda s: {"ref": s.asset_ref}, {DELETE}, "worker/value", adds=-1),
    "purge-many": Operation(
        "purge_many", lambda s: {"refs": [s.task_ref, s.asset_ref]}, {DELETE}, "worker/value", adds=-2
    ),
}
each_operation = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)


class Server:
    """SeaweedFS with a user for each policy, and the backends that the tests use it with."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._backends: dict[tuple[str, str], AsyncStateBackend] = {}
        self._clients: dict[str, S3Client] = {}

    def client(self, user: str) -> S3Client:
        if user not in self._clients:
            self._clients[user] = servers.s3_client(self.url, user, SECRET_KEY)
        return self._clients[user]

    def backend(self, user: str, prefix: str) -> AsyncStateBackend:
        if (user, prefix) not in self._backends:
            # A denial is final, so trying it again would only take time.
            settings = Settings(url=f"s3://{BUCKET}/{prefix}", endpoint_url=self.url, max_attempts=1)
            self._backends[user, prefix] = AsyncStateBackend(settings)
        return self._backends[user, prefix]

    def close(self) -> None:
        for backend in self._backends.values():
            backend.close()
        for client in self._clients.values():
            client.close()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    users: list[dict[str, Any]] = [
        {"name": user, "credentials": [{"accessKey": user, "secretKey": SECRET_KEY}], "policyNames": [user]}
        for user in POLICIES
    ]
    users.append({"name": ADMIN, "credentials": [{"accessKey": ADMIN, "secretKey": SECRET_KEY}], "actions": ["Admin"]})
    policies = [{"name": user, "content": json.dumps(policy)} for user, policy in POLICIES.items()]
    configuration = {"identities": users, "policies": policies}
    with (
        servers.seaweedfs(tmp_path_factory.mktemp("seaweedfs"), configuration) as url,
        contextlib.closing(Server(url)) as server,
    ):
        server.client(ADMIN).create_bucket(Bucket=BUCKET)
        yield server


@pytest.fixture
def backend_of(server: Server, monkeypatch: pytest.MonkeyPatch) -> Callable[..., AsyncStateBackend]:
    """Return the backend of a user. It must be used before that of the next one is asked for."""

    def backend_of(user: str, prefix: str = PREFIX) -> AsyncStateBackend:
        # Read at the backend's first operation.
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", user)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
        return server.backend(user, prefix)

    return backend_of


BackendOf = Callable[..., AsyncStateBackend]


def store(admin: AsyncStateBackend, task: TaskScope, asset: AssetScope) -> Stored:
    for scope in (task, asset):
        admin.set(scope, "row", '"row"')
    return Stored(
        task,
        asset,
        admin.serialize_task_state_store_to_ref(value={"a": 1}, key="value", scope=task),
        admin.serialize_asset_state_store_to_ref(value={"a": 1}, key="value", scope=asset),
    )


def count(server: Server, stored: Stored, prefix: str = PREFIX) -> int:
    client = server.client(ADMIN)
    pages = [client.list_objects_v2(Bucket=BUCKET, Prefix=f"{prefix}/{scope}") for scope in stored.prefixes]
    return sum(page["KeyCount"] for page in pages)


# Before the others, as a cleanup reads every row that they have left.
@pytest.mark.parametrize("action", [None, *(action for _, action in GRANTS)])
def test_a_cleanup_under_the_policy(action: str | None, server: Server, backend_of: BackendOf, task: TaskScope) -> None:
    backend_of(ADMIN).set(task, "row", "1", expires_at=datetime(2026, 1, 1, tzinfo=timezone.utc))
    (user,) = [f"{sid}-without-{a}" for sid, a in GRANTS if a == action] or [DOCUMENTED]
    if action in (GET, DELETE, LIST):
        with pytest.raises(StoreAccessError, match="AccessDenied"):
            backend_of(user).cleanup()
        assert server.client(ADMIN).list_objects_v2(Bucket=BUCKET, Prefix=f"{PREFIX}/v1/")["KeyCount"] == 1
        user = DOCUMENTED
    assert backend_of(user).cleanup() == 1
    assert server.client(ADMIN).list_objects_v2(Bucket=BUCKET, Prefix=f"{PREFIX}/v1/")["KeyCount"] == 0


@each_operation
def test_the_policy_is_enough(
    operation: Operation, server: Server, backend_of: BackendOf, task: TaskScope, asset: AssetScope
) -> None:
    stored = store(backend_of(ADMIN), task, asset)
    expected = operation.returns(stored) if callable(operation.returns) else operation.returns
    assert operation.run(backend_of(DOCUMENTED), stored) == expected
    assert count(server, stored) == COUNT + operation.adds


def test_every_operation_is_here() -> None:
    methods = vars(AsyncStateBackend)
    with_coroutines = {name for name in methods if f"a{name}" in methods}
    assert {operation.method for operation in OPERATIONS.values()} == with_coroutines - {"cleanup", "close"}


def test_no_action_is_granted_that_nothing_needs() -> None:
    assert {action for _, action in GRANTS} == set().union(*(operation.needs for operation in OPERATIONS.values()))


@each_operation
@pytest.mark.parametrize(("sid", "action"), GRANTS)
def test_each_action_is_needed(
    sid: str,
    action: str,
    operation: Operation,
    server: Server,
    backend_of: BackendOf,
    task: TaskScope,
    asset: AssetScope,
) -> None:
    stored = store(backend_of(ADMIN), task, asset)
    backend = backend_of(f"{sid}-without-{action}")
    if action in operation.needs:
        with pytest.raises((StoreAccessError, PurgeError), match="AccessDenied"):
            operation.run(backend, stored)
        assert count(server, stored) == COUNT
    else:
        operation.run(backend, stored)
        assert count(server, stored) == COUNT + operation.adds


@pytest.mark.parametrize(
    ("sid", "action", "operation"),
    [
        pytest.param(
            sid,
            action,
            operation,
            id=f"{action}-{name}",
        )
        for sid, action in GRANTS
        for name, operation in OPERATIONS.items()
        if action in operation.needs
    ],
)
def test_a_denial_tells_where_and_what_to_grant(
    sid: str, action: str, operation: Operation, backend_of: BackendOf, task: TaskScope, asset: AssetScope
) -> None:
    stored = store(backend_of(ADMIN), task, asset)
    with pytest.raises((StoreAccessError, PurgeError)) as caught:
        operation.run(backend_of(f"{sid}-without-{action}"), stored)
    error = caught.value
    message = str(error)
    assert isinstance(error if isinstance(error, StoreAccessError) else error.__cause__, StoreAccessError)
    assert f"s3://{BUCKET}/{PREFIX}" in message
    assert task.dag_id in message or str(asset.name) in message
    assert operation.about in message
    assert action in message


def test_nothing_outside_the_prefix_is_open(
    server: Server, backend_of: BackendOf, task: TaskScope, asset: AssetScope
) -> None:
    stored = store(backend_of(ADMIN, OUTSIDE), task, asset)
    backend = backend_of(DOCUMENTED, OUTSIDE)
    for operation in OPERATIONS.values():
        with pytest.raises((StoreAccessError, PurgeError), match="AccessDenied"):
            operation.run(backend, stored)
    assert count(server, stored, OUTSIDE) == COUNT


def test_the_resource_is_what_confines_objects(backend_of: BackendOf, task: TaskScope, asset: AssetScope) -> None:
    stored = store(backend_of(ADMIN, OUTSIDE), task, asset)
    backend = backend_of(ALL_OBJECTS, OUTSIDE)
    for operation in OPERATIONS.values():
        if LIST not in operation.needs:
            operation.run(backend, stored)


@pytest.mark.parametrize("listed", [{}, {"Prefix": "prod/"}, {"Prefix": PREFIX}, {"Prefix": OUTSIDE + "/"}])
def test_the_condition_is_what_confines_listing(listed: dict[str, Any], server: Server) -> None:
    server.client(DOCUMENTED).list_objects_v2(Bucket=BUCKET, Prefix=f"{PREFIX}/")
    with pytest.raises(ClientError, match="AccessDenied"):
        server.client(DOCUMENTED).list_objects_v2(Bucket=BUCKET, **listed)
    server.client(UNCONDITIONAL).list_objects_v2(Bucket=BUCKET, **listed)
