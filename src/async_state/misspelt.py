"""Where options are set, and which of them can't take effect, as a misspelt one can't.

Were these ignored, tasks would use a default in their place: AWS instead of the endpoint, say.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from async_state.errors import ConfigurationError


def refuse_unknown(conf: Any, section: str, known: Sequence[str]) -> None:
    """Refuse what is set in ``section``, in the file or the environment, and is not an option.

    Args:
        conf: Airflow's ``conf``. One that can't list what its file holds is not asked.
        section: The section's name.
        known: The names of its options.

    Raises:
        ConfigurationError: There is such a name. The message has each of them, with the nearest option.
    """
    if found := unknown(conf, section, known):
        raise ConfigurationError("; ".join(found))


def unknown(conf: Any, section: str, known: Sequence[str]) -> list[str]:
    """Return a sentence for each name that `refuse_unknown` refuses."""
    found = [*_in_file(conf, section, known), *_in_environment(section, known)]
    return [_explained(section, name, place, known) for name, place in found]


def source(conf: Any, section: str, option: str) -> str:
    """Return where an option's value comes from: a variable's name, ``airflow.cfg`` or ``default``."""
    variable = f"AIRFLOW__{section.upper()}__{option.upper()}"
    if variable in os.environ:
        return variable
    return "airflow.cfg" if option in _file_options(conf, section) else "default"


def _file_options(conf: Any, section: str) -> list[str]:
    try:
        return [name for name in conf.options(section) if name not in conf.defaults()]
    except Exception:
        # There is no such section, or this is another kind of configuration.
        return []


def _in_file(conf: Any, section: str, known: Sequence[str]) -> list[tuple[str, str]]:
    return [(name, "in airflow.cfg") for name in _file_options(conf, section) if name not in known]


def _in_environment(section: str, known: Sequence[str]) -> Iterator[tuple[str, str]]:
    prefix = f"AIRFLOW__{section.upper()}_"
    variables = {f"{prefix}_{name.upper()}" for name in known}
    for variable in sorted(os.environ):
        name = variable.removeprefix(prefix)
        # One underscore too few makes a variable without a section; otherwise, two belong to a longer section's name.
        if name != variable and variable not in variables and (name.startswith("_") or "__" not in name):
            yield name.lstrip("_"), f"as {variable}"


def _explained(section: str, name: str, place: str, known: Sequence[str]) -> str:
    import difflib

    name = name.lower()
    base = re.sub("_(cmd|secret)$", "", name)
    if base in known and base != name:
        return (
            f"[{section}] {name}: Airflow runs a command or asks a secrets backend only for options that hold secrets, "
            f"and {base} does not; set {base} itself (found {place})"
        )
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    advice = f"did you mean {nearest[0]}, AIRFLOW__{section.upper()}__{nearest[0].upper()}?" if nearest else "remove it"
    return f"[{section}] {name}: there is no such option; {advice} (found {place})"
