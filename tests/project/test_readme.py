"""What README says that code can check."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

from async_state.settings import SECTION, Settings

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
MOST_LINES = 150


def test_it_is_short() -> None:
    assert len(README.read_text().splitlines()) <= MOST_LINES


def test_the_configuration_shown_is_right() -> None:
    parser = configparser.ConfigParser()
    parser.read_string(re.search(r"```ini\n(.*?)```", README.read_text(), re.DOTALL)[1])  # type: ignore[index]
    assert Settings(**dict(parser[SECTION])).url == "s3://my-bucket/airflow-state"  # type: ignore[arg-type]
    module, _, name = parser["workers"]["state_store_backend"].rpartition(".")
    assert hasattr(__import__(module), name)
    variables = re.findall(r"^export AIRFLOW__(\w+?)__(\w+)=(.*)$", README.read_text(), re.MULTILINE)
    shown = {section: dict(parser[section]) for section in parser.sections()}
    assert variables == [(s.upper(), o.upper(), value) for s in shown for o, value in shown[s].items()]


def test_the_benchs_reports_have_a_place() -> None:
    for page, marker in (README, "figures"), (ROOT / "docs" / "performance.md", "bench"):
        text = page.read_text()
        assert 0 < text.index(f"<!-- {marker}:begin -->") < text.index(f"<!-- {marker}:end -->"), page.name


def test_it_has_five_figures() -> None:
    figures = README.read_text().partition("<!-- figures:begin -->\n")[2].partition("<!-- figures:end -->")[0]
    assert len(figures.splitlines()) == 2 + 5
    assert "not measured" not in figures
