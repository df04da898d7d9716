"""What is stored, seen without Airflow and without the backend: every row through SQL, every object through S3."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import boto3

MARKER = "__airflow_state_ref__"

_ROWS = """
    SELECT dag_id || '/' || run_id || '/' || task_id, key, value FROM task_state_store
    UNION ALL
    SELECT asset.name, key, value FROM asset_state_store JOIN asset ON asset.id = asset_id
"""


class StateId(NamedTuple):
    """Which state."""

    owner: str
    key: str


@dataclass(frozen=True)
class Stored:
    """All rows of both tables, and all objects of the bucket by URL, each as the text that is stored."""

    rows: Mapping[StateId, str]
    objects: Mapping[str, str]

    def holds(self, values: Mapping[StateId, Any]) -> bool:
        """Tell whether rows refer to exactly these values, one object each, and whether there is nothing else."""
        refs = {id_: ref_in(row) for id_, row in self.rows.items()}
        found = {id_: json.loads(self.objects[ref]) for id_, ref in refs.items() if ref and ref in self.objects}
        return found == values and len(self.rows) == len(self.objects) == len(values)


def read_stored(database: Path, bucket: str) -> Stored:
    with closing(_open(database)) as connection:
        rows = {StateId(owner, key): value for owner, key, value in connection.execute(_ROWS)}
    s3 = boto3.client("s3")
    names = [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket).get("Contents", [])]
    objects = {
        f"s3://{bucket}/{name}": s3.get_object(Bucket=bucket, Key=name)["Body"].read().decode() for name in names
    }
    return Stored(rows, objects)


def ref_in(row: str) -> str | None:
    """The reference, if a row's text is a reference and nothing else."""
    value = json.loads(row)
    return str(value[MARKER]) if isinstance(value, dict) and list(value) == [MARKER] else None


def words_in_database(database: Path, words: Iterable[str]) -> list[str]:
    """Those of the words that any table holds, or that were ever written to the database's files."""
    with closing(_open(database)) as connection:
        content = "\n".join(connection.iterdump()).encode()
    # Deleted rows stay there for a while, and new ones come by way of a second file.
    content += b"".join(path.read_bytes() for path in database.parent.glob(f"{database.name}*"))
    return [word for word in words if word.encode() in content]


def _open(database: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{database}?mode=ro", uri=True)
