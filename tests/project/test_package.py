"""What the package says of itself, in all the places where it does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import async_state
from async_state.provider_info import VERSIONS, get_provider_info

ROOT = Path(__file__).parents[2]
#: As text: the parser of TOML is not in Python 3.10, and what is installed may be an earlier state.
PYPROJECT = (ROOT / "pyproject.toml").read_text()
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
_KINDS = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]


def loaded(name: str) -> Any:
    return yaml.safe_load((ROOT / name).read_text())


def test_versions_are_those_of_the_changelog() -> None:
    released = re.findall(r"^## \[?([\d.]+)\]? - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert get_provider_info()["versions"] == VERSIONS == released
    assert async_state.__version__ == VERSIONS[0]


def test_the_changelog_has_its_form() -> None:
    text = (ROOT / "CHANGELOG.md").read_text()
    sections = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert sections[0] == "Unreleased"
    for section in re.split(r"^## .*$", text, flags=re.MULTILINE)[1:]:
        kinds = re.findall(r"^### (.*)$", section, re.MULTILINE)
        assert kinds
        assert kinds == [kind for kind in _KINDS if kind in kinds]


def test_pythons_are_the_same_everywhere() -> None:
    pythons = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PYPROJECT)
    assert pythons == [f"3.{minor}" for minor in range(10, 15)]
    assert f'requires-python = ">={pythons[0]}"' in PYPROJECT
    assert loaded(".github/workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]["python"] == pythons


def test_the_registry_names_what_there_is() -> None:
    registry = loaded(".airflow-registry.yaml")
    urls = dict(re.findall(r'^(\w+) = "(https://.*)"$', PYPROJECT, re.MULTILINE))
    info = get_provider_info()
    assert (registry["package-name"], registry["display-name"]) == (info["package-name"], info["name"])
    assert (registry["docs-url"], registry["source-url"]) == (urls["Documentation"], urls["Source"])
    for entry in registry["other"]:
        module, _, name = entry["module"].rpartition(".")
        assert module == "async_state"
        assert name in async_state.__all__


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_actions_are_pinned_by_commit(file: Path) -> None:
    uses = re.findall(r"uses: (.*)$", file.read_text(), re.MULTILINE)
    assert uses
    assert [line for line in uses if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v[\d.]+", line)] == []


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_workflows_call_targets_that_are_there(file: Path) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    called = re.findall(r"run: make ([\w-]+)", file.read_text())
    assert called
    assert set(called) <= set(targets)


def test_the_licences_of_what_is_required_are_listed() -> None:
    required = re.findall(
        r'^    "([\w-]+)[>=<]', PYPROJECT.partition("\ndependencies = [")[2].partition("\n]")[0], re.MULTILINE
    )
    listed = re.findall(r"^\| ([\w-]+) \| \S", (ROOT / "docs" / "licences.md").read_text(), re.MULTILINE)
    assert len(required) == 3
    assert set(required) <= set(listed)
