"""Every snippet of README and the pages: Python is run, configurations are loaded, commands are parsed.

`make test-docs` runs the commands as well (`tests/docs/test_commands.py`), and the quick start as a whole.
"""

from __future__ import annotations

import configparser
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from airflow.sdk.configuration import conf

from async_state import Settings
from async_state.cli import definition
from async_state.settings import SECTION, options
from async_state.testing import FakeS3

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^( *)```(\w+)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)


class Snippet(NamedTuple):
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str


def _snippets() -> list[Snippet]:
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in _FENCE.finditer(text):
            indent = len(match[1])
            body = "".join(line[indent:] for line in match[3].splitlines(keepends=True))
            found.append(Snippet(page.name, text.count("\n", 0, match.start()) + 1, match[2], body))
    return found


SNIPPETS = _snippets()


def of(*languages: str) -> pytest.MarkDecorator:
    """Parametrize a test by the snippets of some languages."""
    chosen = [snippet for snippet in SNIPPETS if snippet.language in languages]
    assert chosen
    return pytest.mark.parametrize("snippet", chosen, ids=[f"{s.page}-{s.line}" for s in chosen])


class Conf(dict[str, Mapping[str, str]]):
    """The part of Airflow's configuration that `Settings.from_conf` reads, out of a snippet."""

    def get(self, section: str, option: str, fallback: Any = None) -> Any:  # type: ignore[override]
        return dict.get(self, section, {}).get(option, fallback)


def check_configuration(sections: Mapping[str, Mapping[str, str]]) -> None:
    """Fail if a section of this package can't be used, or one of Airflow has an option that Airflow does not know."""
    Settings.from_conf(Conf(sections))
    for section, given in sections.items():
        known = {option.name for option in options()} if section == SECTION else set(conf.getsection(section) or {})
        if section != "common.io":  # that provider may not be installed
            assert set(given) <= known, section
    backend = sections.get("workers", {}).get("state_store_backend", "async_state.AsyncStateBackend")
    assert backend == "async_state.AsyncStateBackend"


def check_environment(variables: Mapping[str, str]) -> None:
    """Fail as `check_configuration` does for the variables that are Airflow's."""
    sections: dict[str, dict[str, str]] = {}
    for name, value in variables.items():
        if match := re.fullmatch(r"AIRFLOW__([A-Z_]+?)__([A-Z0-9_]+)", name):
            sections.setdefault(match[1].lower(), {})[match[2].lower()] = value
    check_configuration(sections)


def commands_of(line: str) -> list[list[str]]:
    """Return the words of each command of a line of shell, without what is redirected."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="();|&<>")
    lexer.whitespace_split = True
    commands: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("();|&"):
            commands.append([])
        else:
            commands[-1].append(word)
    return [command[: command.index(">")] if ">" in command else command for command in commands]


def check_command(line: str) -> None:
    """Fail if a command of this package or of its Makefile is not there, or has no such options."""
    for words in commands_of(line):
        if "async-state" in words:
            definition.parser().parse_args(words[words.index("async-state") + 1 :])
        elif words[:3] == ["python", "-m", "async_state"]:
            definition.parser().parse_args(words[3:])
        elif words[:1] == ["make"]:
            targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert [word for word in words[1:] if word not in targets and "=" not in word] == []


@of("python")
def test_python_runs(snippet: Snippet, moto: FakeS3, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))
    file = tmp_path / "test_snippet.py"
    file.write_text(snippet.text)
    if "StateBackendContract" in snippet.text:
        # Collected, and one of its rules run: all of them are in tests/backend.
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file), "-k", "a_ref_depends"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout
        return
    exec(compile(snippet.text, f"{snippet.page}:{snippet.line}", "exec"), {"__name__": "snippet"})  # noqa: S102


@of("ini")
def test_configurations_can_be_used(snippet: Snippet) -> None:
    parser = configparser.ConfigParser()
    parser.read_string(snippet.text)
    check_configuration({section: dict(parser[section]) for section in parser.sections()})


@of("yaml")
def test_yaml_configures_what_there_is(snippet: Snippet) -> None:
    values = yaml.safe_load(snippet.text)
    if "config" in values:  # of the Helm chart
        check_configuration(values["config"])
    for service in [values.get("x-airflow-common", {}), *values.get("services", {}).values()]:
        check_environment(service.get("environment", {}))


@of("json")
def test_json_is_json(snippet: Snippet) -> None:
    assert json.loads(snippet.text)


@of("sh")
def test_shell_is_right(snippet: Snippet) -> None:
    done = subprocess.run(["bash", "-n"], input=snippet.text, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    exported = re.findall(r"(?:^export |^)((?:AIRFLOW__)\w+)=(\S+)$", snippet.text, re.MULTILINE)
    check_environment(dict(exported))
    for line in snippet.text.splitlines():
        check_command(line)


@of("console")
def test_commands_are_there(snippet: Snippet) -> None:
    commands = [line[2:] for line in snippet.text.splitlines() if line.startswith("$ ")]
    assert commands
    for line in commands:
        check_command(line)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_text_are_there(page: Path) -> None:
    text = _FENCE.sub("", page.read_text())
    for line in re.findall(r"`((?:airflow async-state|python -m async_state|make) [a-z][^`…]*)`", text):
        check_command(line.replace("\n", " "))


def test_every_snippet_has_a_test() -> None:
    tested = {"python", "ini", "yaml", "json", "sh", "console"}
    # What is printed, images, which need a registry, and changes that nobody has made.
    assert {snippet.language for snippet in SNIPPETS} <= tested | {"text", "dockerfile", "diff"}
