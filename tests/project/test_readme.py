"""What README says that code can check. ``python -m tests.project.test_readme`` writes its table of options."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest

from async_state.cli.definition import COMMANDS
from async_state.settings import SECTION, Settings, options

README = Path(__file__).parents[2] / "README.md"
_TABLE = re.compile(r"(<!-- options: [^>]* -->\n).*?(<!-- /options -->)", re.DOTALL)


def with_table(text: str) -> str:
    rows = [f"| `{o.name}` | {f'`{o.default}`' if o.default else ''} | {o.description} |\n" for o in options()]
    table = "| option | default | meaning |\n|---|---|---|\n" + "".join(rows)
    return _TABLE.sub(lambda found: found[1] + table + found[2], text)


def test_the_table_of_options_is_current() -> None:
    text = README.read_text()
    assert _TABLE.search(text)
    assert with_table(text) == text


def test_the_configuration_shown_is_right() -> None:
    parser = configparser.ConfigParser()
    parser.read_string(re.search(r"```ini\n(.*?)```", README.read_text(), re.DOTALL)[1])  # type: ignore[index]
    assert Settings(**dict(parser[SECTION])).url == "s3://my-bucket/airflow-state"  # type: ignore[arg-type]
    module, _, name = parser["workers"]["state_store_backend"].rpartition(".")
    assert hasattr(__import__(module), name)
    variables = re.findall(r"^export AIRFLOW__(\w+?)__(\w+)=(.*)$", README.read_text(), re.MULTILINE)
    shown = {section: dict(parser[section]) for section in parser.sections()}
    assert variables == [(s.upper(), o.upper(), value) for s in shown for o, value in shown[s].items()]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [README, *sorted((README.parent / "docs").glob("*.md"))], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(((?!http)[^)\s]+)\)", page.read_text())
    for link in links:
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_can_be_found_from_readme() -> None:
    found, left = set[Path](), [README]
    while left:
        page = left.pop().resolve()
        if page not in found and page.exists():
            found.add(page)
            left += [page.parent / link for link in re.findall(r"\]\(([\w./-]+\.md)[)#]", page.read_text())]
    pages = {page.resolve() for page in (README.parent / "docs").glob("*.md")}
    assert pages
    assert pages - found == set()


def test_every_command_is_there() -> None:
    table = README.read_text().partition("## The command")[2].partition("\n\n-")[0]
    assert re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE) == [command.name for command in COMMANDS]


def test_the_tests_that_are_named_exist() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", README.read_text())
    assert named
    root = README.parent
    assert [name for file, name in named if not re.search(rf"def {name}\(", (root / file).read_text())] == []


if __name__ == "__main__":
    README.write_text(with_table(README.read_text()))


def test_the_benchs_report_has_a_place() -> None:
    text = README.read_text()
    assert 0 < text.index("<!-- bench:begin -->") < text.index("<!-- bench:end -->") < text.index("## Design")
