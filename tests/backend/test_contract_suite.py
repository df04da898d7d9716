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
        for kind in ("row", "value"):
            _ROWS.pop((kind, *self.place(scope, key)), None)

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


class NeverFinds(DictBackend):
    """Gives references, and stores nothing."""

    def store(self, scope: Any, key: str, value: Any) -> str:
        return "dict:" + json.dumps(["value", *self.place(scope, key)])


class LeavesValuesAtClear(DictBackend):
    def clear(self, scope: Any, *, all_map_indices: bool = False, session: Any = None) -> None:
        kept = {place: text for place, text in _ROWS.items() if place[0] == "value"}
        super().clear(scope, all_map_indices=all_map_indices)
        _ROWS.update(kept)


class KeepsSmallValuesInline(DictBackend):
    def store(self, scope: Any, key: str, value: Any) -> str:
        text = json.dumps(value, allow_nan=False)
        return text if len(text) < 1000 else super().store(scope, key, value)


class HasAnInlineFormOfItsOwn(KeepsSmallValuesInline):
    def store(self, scope: Any, key: str, value: Any) -> str:
        stored = super().store(scope, key, value)
        return stored if stored.startswith("dict:") else f" {stored}"


class WritesTheWrongValueInline(KeepsSmallValuesInline):
    def store(self, scope: Any, key: str, value: Any) -> str:
        return super().store(scope, key, 0 if value == 1 else value)


class LeavesAStaleObject(KeepsSmallValuesInline):
    def delete(self, scope: Any, key: str, *, session: Any = None) -> None:
        """Delete no object, as if the value had always been inline."""


class DoesNothing(DictBackend):
    """Answers every call with the type that is asked for."""

    def get(self, scope: Any, key: str, *, session: Any = None) -> str | None:
        return None

    def set(self, scope: Any, key: str, value: str, *, expires_at: Any = None, session: Any = None) -> None:
        """Forget it."""

    def delete(self, scope: Any, key: str, *, session: Any = None) -> None:
        """Leave everything."""

    def clear(self, scope: Any, *, all_map_indices: bool = False, session: Any = None) -> None:
        """Leave everything."""

    def store(self, scope: Any, key: str, value: Any) -> str:
        return f"nothing:{key}"

    def load(self, stored: str) -> Any:
        return None


def run(kind: type[DictBackend], test: str, **given: Any) -> None:
    """Run one test of the contract, called as ``thread`` calls."""
    method = getattr(StateBackendContract(), f"test_contract_{test}")
    backend = kind()
    given |= {"calls": Calls(backend, "thread"), "backend": backend}
    wanted = method.__code__.co_varnames[1 : method.__code__.co_argcount]
    method(**{name: given[name] for name in wanted})


@pytest.mark.parametrize(
    ("kind", "test"),
    [
        (Forgetful, "01_rows_come_back_byte_for_byte"),
        (Counting, "05_a_ref_depends_on_scope_and_key_alone"),
        (WritesTheWrongValueInline, "07_a_ref_is_no_json_text"),
        (NeverFinds, "07_a_ref_is_no_json_text"),
        (HasAnInlineFormOfItsOwn, "08_an_inline_value_is_what_the_base_class_writes"),
        (LeavesAStaleObject, "08_a_value_that_shrinks_is_not_read_stale"),
        (Raising, "09_a_ref_whose_object_is_gone"),
        (NeverFinds, "09_a_ref_whose_object_is_gone"),
        (OneNamespace, "14_name_uri_and_id_never_collide"),
        (FoldsCase, "15_every_row_comes_back"),
        (ClearsEveryIndex, "19_clear_takes_its_map_index_alone"),
        (LeavesValuesAtClear, "19_clear_takes_values_too"),
        (NeverFinds, "19_clear_takes_values_too"),
        (NeedsASession, "20_session_and_expiry_are_accepted"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_a_broken_rule_is_found(kind: type[DictBackend], test: str, task: TaskScope, asset: AssetScope) -> None:
    with pytest.raises((AssertionError, LookupError)):
        run(kind, test, task=task, asset=asset)


#: These ask for the form of a reference and how the class is made, and for nothing that is stored.
_PASSED_BY_DOING_NOTHING = {
    "05_a_ref_depends_on_scope_and_key_alone",
    "06_a_ref_is_a_raw_string",
    "25_it_is_made_without_arguments",
}
_WITH_OTHER_FIXTURES = {
    "03_a_refused_value_changes_nothing",
    "10_refs_outlive_a_change_of_base",
    "10_refs_outlive_a_change_of_compression",
    "15_a_refused_key_changes_nothing",
}
_TESTS = {name.removeprefix("test_contract_") for name in dir(StateBackendContract) if name.startswith("test_contract")}


@pytest.mark.parametrize("test", sorted(_TESTS - _PASSED_BY_DOING_NOTHING - _WITH_OTHER_FIXTURES))
def test_doing_nothing_is_found(test: str, task: TaskScope, asset: AssetScope) -> None:
    try:
        run(DoesNothing, test, task=task, asset=asset)
    except pytest.skip.Exception:
        # It has no inline values, which the row about their form is on.
        assert test == "08_an_inline_value_is_what_the_base_class_writes"
    except (AssertionError, LookupError):
        return
    else:
        pytest.fail(f"a backend that does nothing passes {test}")


def test_a_refused_value_or_key_that_is_taken_is_found(task: TaskScope) -> None:
    contract = StateBackendContract()
    with pytest.raises(AssertionError):
        contract.test_contract_03_a_refused_value_changes_nothing(Calls(TakesNan(), "thread"), task, float("nan"))
    with pytest.raises(AssertionError):
        contract.test_contract_15_a_refused_key_changes_nothing(Calls(TakesDots(), "thread"), task, "..")
