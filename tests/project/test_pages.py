"""What the pages say that code can check. ``python -m tests.project.test_pages`` writes what is made from code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from async_state import errors
from async_state.cli.definition import COMMANDS
from async_state.settings import options

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
OPTIONS = DOCS / "options.md"
#: Read on the project's platform, where links to other pages of the repository work.
IN_THE_ROOT = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md")]
PAGES = sorted(DOCS.glob("*.md"))
_OPTIONS = re.compile(r"(<!-- options:begin -->\n).*?(<!-- options:end -->)", re.DOTALL)


def with_options(text: str) -> str:
    """Return the page with all options, as they are in `Settings`."""
    rows = "".join(f"| [`{o.name}`](#{o.name}) | {f'`{o.default}`' if o.default else ''} |\n" for o in options())
    sections = []
    for option in options():
        facts = [f"`AIRFLOW__ASYNC_STATE__{option.name.upper()}`", option.type]
        facts += [f"default `{option.default}`"] if option.default else []
        facts += [f"for example `{option.example}`"] if option.example else []
        sections.append(f"### `{option.name}`\n\n{', '.join(facts)}\n\n{option.description}\n")
    made = "| option | default |\n|---|---|\n" + rows + "\n" + "\n".join(sections)
    return _OPTIONS.sub(lambda found: found[1] + made + found[2], text)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings: the same on the site and on the project's platform."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_the_options_are_current() -> None:
    text = OPTIONS.read_text()
    assert _OPTIONS.search(text)
    assert with_options(text) == text


@pytest.mark.parametrize("page", [*IN_THE_ROOT, *PAGES], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(((?!http)[^)\s]+)\)", page.read_text())
    for link in links:
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        # The anchors of this page are made from docstrings; `make docs` checks them.
        assert not anchor or target.name == "api.md" or anchor in anchors(target), link


def test_every_page_is_in_the_navigation_once() -> None:
    found: list[str] = re.findall(r"[\w-]+\.md", yaml.dump(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert sorted(found) == [page.name for page in PAGES]


def test_every_page_begins_with_a_title_and_what_the_reader_gets() -> None:
    for page in PAGES:
        title, empty, first = page.read_text().splitlines()[:3]
        assert title.startswith("# "), page.name
        assert not empty, page.name
        assert first.startswith("This page ") or page.name == "index.md", page.name


def test_every_error_is_explained() -> None:
    raised = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    explained = re.findall(r"^\| `(\w+Error)` \|", (DOCS / "failures.md").read_text(), re.MULTILINE)
    assert sorted(explained) == sorted(raised)


def test_what_else_an_error_is_is_right() -> None:
    rows = re.findall(r"^\| `(\w+Error)` \| (.*?) \|", (DOCS / "failures.md").read_text(), re.MULTILINE)
    for name, also in rows:
        bases = re.findall(r"`(\w+)`", also)
        found = {base.__name__ for base in vars(errors)[name].__mro__[1:]}
        assert bases, name
        assert set(bases) <= found, name


def source() -> str:
    """Return the package's source, in which a literal that goes on in the next line is one."""
    text = " ".join(file.read_text() for file in (ROOT / "src").rglob("*.py"))
    return re.sub(r'"\s*\n?\s*f?"', "", text)


def test_messages_and_log_lines_are_what_is_said() -> None:
    page = (DOCS / "failures.md").read_text()
    messages = re.findall(r"^\| `(.*?)` \| `\w+Error`", page.partition("| the message has |")[2], re.MULTILINE)
    lines = re.findall(r"^\| `(.*?)`[ ,|]", page.partition("| line begins |")[2], re.MULTILINE)
    assert len(messages) == 33
    assert len(lines) == 8
    # The first one is of an exception, with the operation's name.
    assert lines[0] == "could not put"
    parts = ["could not {what}", *(part.strip(" ,") for line in lines[1:] for part in line.split("…"))]
    said = source().replace("{SECTION}", "async_state")
    assert [part for part in [*messages, *parts] if part not in said] == []


def test_every_command_is_listed() -> None:
    table = (DOCS / "operations.md").read_text().partition("## The command")[2].partition("\n\n-")[0]
    assert re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE) == [command.name for command in COMMANDS]


@pytest.mark.parametrize("page", [*IN_THE_ROOT, *PAGES], ids=lambda page: page.name)
def test_the_tests_that_are_named_exist(page: Path) -> None:
    text = page.read_text()
    named = re.findall(r"(tests/[\w/]+\.py)::(\w+)", text)
    assert [name for file, name in named if not re.search(rf"def {name}\(", (ROOT / file).read_text())] == []
    files = re.findall(r"`((?:tests|src|bench|docs)/[\w./-]*\w)`", text)
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_each_guarantee_has_a_test() -> None:
    table = (DOCS / "guarantees.md").read_text().partition("| guarantee |")[2].partition("\n\n")[0]
    rows = table.splitlines()[2:]
    assert rows
    assert [row for row in rows if not re.search(r"\| .*`tests/[\w/]+\.py", row)] == []


if __name__ == "__main__":
    OPTIONS.write_text(with_options(OPTIONS.read_text()))
