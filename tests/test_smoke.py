from airflow.sdk.state import TaskScope

from async_state import AsyncStateBackend


def test_one(backend: AsyncStateBackend, task: TaskScope) -> None:
    ref = backend.serialize_task_state_store_to_ref(value={"a": 1}, key="k", scope=task)
    assert backend.deserialize_task_state_store_from_ref(ref) == {"a": 1}
