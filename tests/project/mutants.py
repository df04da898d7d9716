"""Mutates the modules without I/O and writes docs/mutants.md: ``make mutants``.

mutmut changes one thing at a time, and a test should fail. pyproject.toml's ``[tool.mutmut]`` lists modules and tests.
A mutant that behaves as the original does can't be killed: name it in `EQUIVALENT`, by its changed line.

Given names of modules, `make mutants MODULES="keys purge"`, it runs their mutants alone; with `MODULES=none`, none.
The page is about all modules of which every mutant has been run.
"""

from __future__ import annotations

import collections
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
REPORT = ROOT / "docs" / "mutants.md"
LEAST = 0.95

#: The line as it was changed, and why that changes nothing.
EQUIVALENT: dict[str, str] = {
    "text = unquote(kept, errors=None)": "what is no UTF-8 is replaced, and so differs when encoded",
    "text = unquote(kept, )": "what is no UTF-8 is replaced, and so differs when encoded",
    'kept, cut, digest = segment.partition("XX~XX")': "neither the mark nor the hash holds anything encoded",
    'super().__init__("".join(c if c.isprintable() else c.encode("UNICODE_ESCAPE").decode() for c in message))': (
        "an encoding's name may be written in either case"
    ),
    "bound = (FIRST_THROTTLED_PAUSE if throttled else FIRST_PAUSE) * 2.0 ** min(failures, 17)": (
        "sixteen doublings are above the longest pause already"
    ),
    'body = _stamp(expires_at) + text.encode("UTF-8", "surrogatepass") + ending.encode()': (
        "an encoding's name may be written in either case"
    ),
    'return Stored(body[start:].decode("UTF-8", "surrogatepass"), expires_at)': (
        "an encoding's name may be written in either case"
    ),
    "more = unpacker.decompress(unpacker.unconsumed_tail, 2)": "two bytes more tell the same as one",
    "text: bytes = zstandard.ZstdDecompressor().decompress(body, allow_extra_data=None)": "it is as false as False",
    "broken.append(None)": "no batch is empty, so the error of each name in it is raised before",
    'home, expanded = "XXXX", os.environ.get("AIRFLOW_HOME", "~/airflow")': "the first of them is replaced at once",
    "usable = None": "it is as false as False",
    r'if not usable or not url.isascii() or re.search(r"[\s\0-\x1F?#]", url):': "a code's digits may be in either case",
    'schemes = {base.rpartition("://")[0]: option for option in _BASES for base in _listed(getattr(self, option))}': (
        "no URL of a cloud has two of them"
    ),
    "if type(None) is not type(value) and plain != value:": "a plain list or dict equals its copy",
    "if type(plain) is not type(None) and plain != value:": "a plain list or dict equals its copy",
    "if not levels or weight + len(inner) * _NODE_WEIGHT > _STEP or len(node) >= _STEP // _NODE_WEIGHT:": (
        "with so many children, it weighs more than a step in any case"
    ),
    "if not levels or weight + len(inner) * _NODE_WEIGHT > _STEP or len(node) > _STEP / _NODE_WEIGHT:": (
        "a length is an integer"
    ),
    'keys: list[str] = ["XXXX"]': "a list's children have no key",
    "keys.append(None)": "a list's children have no key, and a dict's is read before it is used",
    'keys.append("XXXX")': "a list's children have no key, and a dict's is read before it is used",
    'self._window, self._start = "XXXX", 0': "no value begins there, nor in nothing",
    'self._window, self._start = "", 1': "no value begins in nothing",
    "self._batch_from = 1": "a text's first character begins no element",
    'end = text.rfind(f"{before}, {after}", None, at + _STEP) + len(before)': "an end before the first element is none",
    'if text.count("[") + text.count("{") < room:': "the levels are counted then, and are no more than the brackets",
    "return found.end() if (found) or True else at": "the expression matches everywhere",
    "_generation -= 1": "a generation differs from the others, however they are counted",
    "_generation += 2": "a generation differs from the others, however they are counted",
    "self._generation = None": "the first to enter then puts an empty order in an empty one's place",
    "if self._places.pop(place, place) is None or len(self._places) >= self._count:": "who may run is woken once",
    "if self._places.pop(place, None) is None and len(self._places) >= self._count:": "who may run is woken once",
    "self._may_run = None": "it is as false as False",
    "timer = loop.call_later(timeout, wake, None)": "it is as false as False",
    'return _CONNECTIONS.get(url.rpartition("://")[0], "")': "no URL of a cloud has two of them",
    'signature = hmac.digest(_key(credentials.secret_key, scope), text.encode(), "SHA256").hex()': (
        "a hash's name may be written in either case"
    ),
    'return quote(text, safe="XX:XX").replace("~", "%7E")': "a letter is never quoted",
}

_KILLED = ("killed", "timeout")
_NOT_RUN = "not checked"
_HEAD = """# Mutants

This page shows how much of a change in the code the tests notice, and which changes none of them does.

`make mutants` changes one thing at a time in the modules without I/O, runs their tests, and writes this page. Of the
mutants that behave differently, at least 95 % must be killed, which means that some test fails with them.

| module | mutants | killed | equivalent | survived | killed of those that differ |
|---|---|---|---|---|---|
"""


def mutmut(*arguments: str) -> str:
    command = [sys.executable, "-m", "mutmut", *arguments]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout


def outcomes() -> dict[str, str]:
    """Return what became of each mutant, by its name."""
    lines = [line.strip() for line in mutmut("results", "--all", "true").splitlines() if "__mutmut_" in line]
    return {name: outcome for name, _, outcome in (line.partition(": ") for line in lines)}


def changed_lines(name: str) -> tuple[str, str]:
    """Return the line that the mutant changes, before and after."""
    lines = mutmut("show", name).splitlines()
    removed, added = (
        next((line[1:].strip() for line in lines if line.startswith(sign) and not line.startswith(sign * 3)), "")
        for sign in "-+"
    )
    return removed, added


def module(name: str) -> str:
    return name.partition(".x")[0].removeprefix("src.")


def main() -> int:
    modules = sys.argv[1:]
    if modules != ["none"]:
        mutmut("run", *(f"async_state.{name}.*" for name in modules))
    all_ = outcomes()
    not_run = sorted({module(name) for name, outcome in all_.items() if outcome == _NOT_RUN})
    found = {name: outcome for name, outcome in all_.items() if module(name) not in not_run}
    survivors = {name: changed_lines(name) for name, outcome in found.items() if outcome not in _KILLED}
    open_ = {name: lines for name, lines in survivors.items() if lines[1] not in EQUIVALENT}
    rows = []
    for of, count in collections.Counter(map(module, found)).items():
        equivalent = sum(module(name) == of for name in survivors.keys() - open_.keys())
        left = sum(module(name) == of for name in open_)
        share = 1 - left / (count - equivalent)
        rows.append(f"| `{of}` | {count} | {count - equivalent - left} | {equivalent} | {left} | {share:.1%} |\n")
    parts = [_HEAD, *rows]
    if not_run:
        parts.append(f"\nNot run yet: {', '.join(f'`{name}`' for name in not_run)}.\n")
    if open_:
        parts.append("\n## Survivors\n\n")
        parts += [f"- `{name}`: `{before}` became `{after}`\n" for name, (before, after) in open_.items()]
    if named := {lines[1]: lines[0] for lines in survivors.values() if lines[1] in EQUIVALENT}:
        parts.append("\n## Equivalent\n\n")
        parts += [f"- `{before}` became `{after}`: {EQUIVALENT[after]}\n" for after, before in named.items()]
    REPORT.write_text("".join(parts))
    print(*rows, f"{len(open_)} survive: see {REPORT.relative_to(ROOT)}", sep="\n")
    return int(len(open_) > (1 - LEAST) * (len(found) - len(survivors) + len(open_)))


if __name__ == "__main__":
    sys.exit(main())
