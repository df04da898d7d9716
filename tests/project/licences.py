"""Writes docs/licences.md: what is installed with this package, and under which licence.

``python -m tests.project.licences``, in an environment that has the latest versions and every extra.
"""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PAGE = Path(__file__).parents[2] / "docs" / "licences.md"
_PACKAGE = "airflow-async-state"
_HEAD = """# Dependencies and licences

This page lists what is installed with `airflow-async-state` and with each of its extras, and under which licence each
package says that it is. A deployment of Airflow has most of it already.

Made by `python -m tests.project.licences` from what the packages themselves say. The package itself is under the Apache
License 2.0. Of these, it names three itself: apache-airflow-task-sdk, aiobotocore and anyio. text-unidecode, which
Airflow brings, lets one choose between two licences: it is taken under the Artistic License.

"""
_EXTRAS = {
    "gcs": "For `gs://` URLs. Of these, the extra names google-auth.",
    "azure": "For `az://` URLs with an identity. Of these, the extra names azure-identity.",
    "zstd": "For `compression = zstd`.",
}


def installed_with(name: str) -> set[str]:
    """Return the names of all distributions that ``name`` requires in this environment, and that those require."""
    found, left = set[str](), [Requirement(name)]
    while left:
        wanted = left.pop()
        for text in importlib.metadata.distribution(wanted.name).requires or ():
            required = Requirement(text)
            extras = wanted.extras or {""}
            if required.marker is not None and not any(required.marker.evaluate({"extra": e}) for e in extras):
                continue
            if (spelt := canonicalize_name(required.name)) not in found:
                found.add(spelt)
                left.append(required)
    return found


def licence(name: str) -> str:
    """Return what a distribution says of its licence, in a line."""
    metadata = importlib.metadata.metadata(name)

    def said_in(field: str) -> list[str]:
        return metadata.get_all(field) or []

    classifiers = [text.rpartition(" :: ")[2] for text in said_in("Classifier") if "License ::" in text]
    said = ", ".join(said_in("License-Expression") or classifiers or said_in("License"))
    # Some have the licence's whole text there.
    return re.sub(r"\s+", " ", said.strip().partition("\n")[0]) or "not said"


def page() -> str:
    """Return the page."""
    always = installed_with(_PACKAGE)
    parts = [_HEAD + _table(always)]
    for extra, what in _EXTRAS.items():
        more = installed_with(f"{_PACKAGE}[{extra}]") - always
        parts.append(f"## With the extra `{extra}`\n\n{what}\n\n{_table(more)}")
    return "\n".join(parts)


def _table(names: set[str]) -> str:
    rows = "".join(f"| {name} | {licence(name)} |\n" for name in sorted(names))
    return f"| package | licence |\n|---|---|\n{rows}"


if __name__ == "__main__":
    PAGE.write_text(page())
