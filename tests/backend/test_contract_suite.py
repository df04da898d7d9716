"""The contract itself: a backend of a few lines keeps it, and one that breaks a rule fails that rule's test."""

from __future__ import annotations

import json
from typing import Any

import pytest
from airflow.sdk.state import AssetScope, TaskScope

from async_state import compat
from async_state.testing import StateBackendContract
from async_state.testing.contract import Calls

_ROWS: dict[tuple[Any, ...], str] = {}


class DictBackend(compat.StoreBackend):
    """What an author might begin with: a dict, and values under a reference of their own."""

    def place(self, scope: Any, key: str) -> tuple[Any, ...]:
        if not 0 < len(key) <= 512 or key in (".", ".."):
            raise ValueError(f"no key: {key!r}")
        return (*self.namespace(scope), key)

    def namespace(self, scope: Any) -> tuple[Any, ...]:
        if hasattr(scope, "dag_id"):
            region = str(getattr(scope, "region_id", ""))
            return "task", scope.dag_id, scope.run_id, scope.task_id, region, scope.map_index
        if hasattr(scope, "asset_id"):
            return "asset", scope.asset_id, scope.name, scope.uri
        raise TypeError(f"no scope: {scope!r}")

    def get(self, scope: Any, key: str, *, session: Any = None) -> str | None:
        return _ROWS.get(("row", *self.place(scope, key)))

    def set(self, scope: Any, key: str, value: str, *, expires_at: Any = None, session: Any = None) -> None:
        _ROWS[("row", *self.place(scope, key))] = value

    def delete(self, scope: Any, key: str, *, session: Any = None) -> None:
        for plane in ("row", "value"):
            _ROWS.pop((plane, *self.place(scope, key)), None)

    def clear(self, scope: Any, *, all_map_indices: bool = False, session: Any = None) -> None:
        space = self.namespace(scope)
        if all_map_indices and space[0] == "task":
            space = space[:-1]
        for place in [place for place in _ROWS if place[1 : len(space) + 1] == space]:
            del _ROWS[place]

    async def aget(self, scope: Any, key: str, *, session: Any = None) -> str | None:
        return self.get(scope, key)

    async def aset(self, scope: Any, key: str, value: str, *, expires_at: Any = None, session: Any = None) -> None:
        self.set(scope, key, value)

    async def adelete(self, scope: Any, key: str, *, session: Any = None) -> None:
        self.delete(scope, key)

    async def aclear(self, scope: Any, *, all_map_indices: bool = False, session: Any = None) -> None:
        self.clear(scope, all_map_indices=all_map_indices)

    def store(self, scope: Any, key: str, value: Any) -> str:
        place = ("value", *self.place(scope, key))
        _ROWS[place] = json.dumps(value, allow_nan=False)
        return "dict:" + json.dumps(place)

    def load(self, stored: str) -> Any:
        if not stored.startswith("dict:"):
            return json.loads(stored)
        text = _ROWS.get(tuple(json.loads(stored.removeprefix("dict:"))))
        return None if text is None else json.loads(text)

    def serialize_task_state_store_to_ref(self, *, value: Any, key: str, scope: TaskScope) -> str:
        return self.store(scope, key, value)

    def deserialize_task_state_store_from_ref(self, stored: str) -> Any:
        return self.load(stored)

    def serialize_asset_state_store_to_ref(self, *, value: Any, key: str, scope: AssetScope) -> str:
        return self.store(scope, key, value)

    def deserialize_asset_state_store_from_ref(self, stored: str) -> Any:
        return self.load(stored)


class TestDictBackend(StateBackendContract):
    seen_by_other_processes = False

    @pytest.fixture
    def backend(self) -> DictBackend:
        return DictBackend()


class Forgetful(DictBackend):
    def set(self, scope: Any, key: str, value: str, *, expires_at: Any = None, session: Any = None) -> None:
        super().set(scope, key, json.dumps(json.loads(value)))


class TakesNan(DictBackend):
    def store(self, scope: Any, key: str, value: Any) -> str:
        _ROWS[("value", *self.place(scope, key))] = json.dumps(value)
        return super().store(scope, key, 0 if isinstance(value, float) else value)


class Counting(DictBackend):
    def store(self, scope: Any, key: str, value: Any) -> str:
        place = ("value", *self.place(scope, key), len(_ROWS))
        _ROWS[place] = json.dumps(value, allow_nan=False)
        return "dict:" + json.dumps(place)


class Raising(DictBackend):
    def load(self, stored: str) -> Any:
        found = super().load(stored)
        if found is None:
            raise LookupError(stored)
        return found


class OneNamespace(DictBackend):
    def namespace(self, scope: Any) -> tuple[Any, ...]:
        space = super().namespace(scope)
        return space if space[0] == "task" else ("asset", str(scope.asset_id or scope.name or scope.uri))


class FoldsCase(DictBackend):
    def place(self, scope: Any, key: str) -> tuple[Any, ...]:
        return super().place(scope, key.lower())


class TakesDots(DictBackend):
    def place(self, scope: Any, key: str) -> tuple[Any, ...]:
        return (*self.namespace(scope), key)


class ClearsEveryIndex(DictBackend):
    def clear(self, scope: Any, *, all_map_indices: bool = False, session: Any = None) -> None:
        super().clear(scope, all_map_indices=True)


class NeedsASession(DictBackend):
    def get(self, scope: Any, key: str, *, session: Any = None) -> str | None:
        return None if session else super().get(scope, key)


@pytest.mark.parametrize(
    ("kind", "test"),
    [
        (Forgetful, "01_rows_come_back_byte_for_byte"),
        (Counting, "05_a_ref_depends_on_scope_and_key_alone"),
        (Raising, "09_a_ref_whose_object_is_gone"),
        (OneNamespace, "14_name_uri_and_id_never_collide"),
        (FoldsCase, "15_every_row_comes_back"),
        (ClearsEveryIndex, "19_clear_takes_its_map_index_alone"),
        (NeedsASession, "20_session_and_expiry_are_accepted"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_broken_rule_is_found(kind: type[DictBackend], test: str, task: TaskScope, asset: AssetScope) -> None:
    contract = StateBackendContract()
    method = getattr(contract, f"test_contract_{test}")
    given: dict[str, Any] = {"calls": Calls(kind(), "thread"), "task": task, "asset": asset}
    wanted = method.__code__.co_varnames[1 : method.__code__.co_argcount]
    with pytest.raises((AssertionError, LookupError)):
        method(**{name: given[name] for name in wanted})


def test_a_refused_value_or_key_that_is_taken_is_found(task: TaskScope) -> None:
    contract = StateBackendContract()
    with pytest.raises(AssertionError):
        contract.test_contract_03_a_refused_value_changes_nothing(Calls(TakesNan(), "thread"), task, float("nan"))
    with pytest.raises(AssertionError):
        contract.test_contract_15_a_refused_key_changes_nothing(Calls(TakesDots(), "thread"), task, "..")
