"""The command ``check`` as a function of its environment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest
from airflow.sdk import plugins_manager

from async_state import compat
from async_state.cli import definition, runner
from async_state.stores.s3 import _botocore

OURS = {"AIRFLOW__WORKERS__STATE_STORE_BACKEND": "async_state.AsyncStateBackend"}
OPTION = "AIRFLOW__ASYNC_STATE__"


class Checked(NamedTuple):
    """What the command has printed, by the names of its checks."""

    code: int
    findings: dict[str, list[dict[str, Any]]]
    out: str

    @classmethod
    def of(cls, code: int, out: str) -> Checked:
        findings: dict[str, list[dict[str, Any]]] = {}
        for finding in json.loads(out):
            findings.setdefault(finding["check"], []).append(finding)
        return cls(code, findings, out)

    def one(self, check: str) -> dict[str, Any]:
        (finding,) = self.findings[check]
        return finding

    def status(self, check: str) -> str:
        return str(self.one(check)["status"])

    @property
    def wrong(self) -> dict[str, str]:
        """The checks that are not ok, with their details."""
        return {
            finding["check"]: finding["detail"]
            for findings in self.findings.values()
            for finding in findings
            if finding["status"] != "ok"
        }


class Check(Protocol):
    """Runs the command with these variables in its environment."""

    def __call__(self, **environment: str) -> Checked: ...


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Check:
    # The tests import Airflow without setting it up.
    monkeypatch.setattr("airflow.sdk.plugins_manager.settings.PLUGINS_FOLDER", str(tmp_path / "plugins"))
    # What other tests took away from the fast path is told for good.
    monkeypatch.setattr(_botocore, "_warned", set())
    # It replaces the root logger's handlers, which are pytest's here.
    monkeypatch.setattr(runner, "_log_to_stderr", lambda **_: None)

    def run(**environment: str) -> Checked:
        with monkeypatch.context() as patch:
            for name, value in {**OURS, **environment}.items():
                patch.setenv(name, value)
            plugins_manager._get_plugins.cache_clear()
            # Loading the plugin patches the accessors, which other tests look at.
            for accessor in compat.accessor_classes():
                for name in "aget", "aset", "adelete", "aclear":
                    patch.setattr(accessor, name, None, raising=False)
            args = definition.parser().parse_args(["check", "--output", "json"])
            with pytest.raises(SystemExit) as ended:
                args.func(args)
        plugins_manager._get_plugins.cache_clear()
        assert isinstance(ended.value.code, int)
        return Checked.of(ended.value.code, capsys.readouterr().out)

    return run
