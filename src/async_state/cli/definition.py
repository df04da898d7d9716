"""The commands and their options: one table, for Airflow's command line and for ``python -m async_state``.

Every ``airflow`` command imports this module, so that it imports nothing that takes time. A command's own module is
imported when the command runs.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from typing import Any, Final, NamedTuple

NAME: Final = "async-state"
HELP: Final = "See, check and clean what async_state keeps"


class Option(NamedTuple):
    """An argument of a command: its flags, and what `argparse.ArgumentParser.add_argument` takes besides."""

    flags: tuple[str, ...]
    arguments: dict[str, Any]


class Command(NamedTuple):
    """A command.

    Attributes:
        name: As it is typed.
        help: One line.
        module: The module in this package whose ``run`` does the work.
        options: In the order in which the help shows them.
    """

    name: str
    help: str
    module: str
    options: tuple[Option, ...]


def _option(*flags: str, **arguments: Any) -> Option:
    return Option(flags, arguments)


_OUTPUT: Final = _option(
    "-o",
    "--output",
    help="Output format. Allowed values: json, yaml, plain, table (default: table)",
    metavar="(table, json, yaml, plain)",
    choices=("table", "json", "yaml", "plain"),
    default="table",
)
_VERBOSE: Final = _option("-v", "--verbose", help="Make logging output more verbose", action="store_true")
_YES: Final = _option("-y", "--yes", help="Do not prompt to confirm. Use with care!", action="store_true")
_DRY_RUN: Final = _option("--dry-run", help="Show what would be done, and do nothing", action="store_true")
_FILTERS: Final = (
    _option("--dag-id", help="Only the state of this Dag's tasks"),
    _option("--run-id", help="Only the state of this run"),
    _option("--task-id", help="Only the state of this task"),
    _option("--map-index", type=int, help="Only the state of this mapped task instance; -1 = not mapped"),
    _option("--asset-name", help="Only the state of the asset with this name"),
    _option("--asset-uri", help="Only the state of the asset with this URI"),
    _option("--key", help="Only this key"),
)

COMMANDS: Final = (
    Command("check", "Check the configuration and the store, line by line", "check", (_OUTPUT, _VERBOSE)),
    Command(
        "list",
        "List keys",
        "listing",
        (
            *_FILTERS,
            _option(
                "--no-encoding",
                help="Do not ask the store how each object is compressed, which takes a request for each",
                action="store_true",
            ),
            _OUTPUT,
            _VERBOSE,
        ),
    ),
    Command(
        "get",
        "Show one key, with its value if asked to",
        "get",
        (
            _option("ref", nargs="?", help="A reference, as Airflow's UI shows it"),
            *_FILTERS,
            _option("--show-value", help="Show the value as well", action="store_true"),
            _OUTPUT,
            _VERBOSE,
        ),
    ),
    Command(
        "usage",
        "Count objects and bytes, largest first",
        "usage",
        (
            _option("--by", choices=("dag", "run", "asset"), default="dag", help="What to count for (default: dag)"),
            *_FILTERS,
            _OUTPUT,
            _VERBOSE,
        ),
    ),
    Command(
        "delete",
        "Delete the objects that the filters select",
        "delete",
        (*_FILTERS, _DRY_RUN, _YES, _VERBOSE),
    ),
    Command("export-refs", "Write every reference of Airflow's database", "export_refs", (_VERBOSE,)),
    Command(
        "sweep",
        "Show, or delete, objects to which no row of Airflow's database refers",
        "sweep",
        (
            _option("--refs", metavar="FILE", help="What export-refs has written; - = standard input"),
            _option("--database", help="Read the references from Airflow's database", action="store_true"),
            _option("--api-url", metavar="URL", help="Read the references from Airflow's REST API at this URL"),
            _option("--delete", help="Delete the orphans; without it they are only shown", action="store_true"),
            _option("--grace", default="24h", help="Keep all that is younger than this (default: 24h)"),
            _option("--max-orphans", default="50%", help="Refuse to delete a larger share (default: 50%%)"),
            _option("--report", metavar="FILE", help="Write a line for each object that is not kept to this file"),
            _YES,
            _OUTPUT,
            _VERBOSE,
        ),
    ),
    Command(
        "copy",
        "Copy every object below another base URL",
        "copy",
        (_option("--to", metavar="URL", required=True, help="The other base URL"), _DRY_RUN, _YES, _VERBOSE),
    ),
)


def group() -> Any:
    """Return the commands as a group of Airflow's command line."""
    from airflow.cli.cli_config import ActionCommand, Arg, GroupCommand

    return GroupCommand(
        name=NAME,
        help=HELP,
        subcommands=[
            ActionCommand(
                name=command.name,
                help=command.help,
                func=_runner(command),
                args=[Arg(option.flags, **option.arguments) for option in command.options],  # type: ignore[no-untyped-call]
            )
            for command in COMMANDS
        ],
    )


def parser() -> argparse.ArgumentParser:
    """Return the parser of ``python -m async_state``."""
    top = argparse.ArgumentParser(prog="python -m async_state", description=HELP)
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        sub = commands.add_parser(command.name, help=command.help, description=command.help)
        for option in command.options:
            sub.add_argument(*option.flags, **option.arguments)
        sub.set_defaults(func=_runner(command))
    return top


def _runner(command: Command) -> Callable[[argparse.Namespace], None]:
    def run(args: argparse.Namespace) -> None:
        runner = importlib.import_module("async_state.cli.runner")
        module = importlib.import_module(f"async_state.cli.{command.module}")
        sys.exit(runner.run(module.run, args))

    run.__name__ = command.name
    return run
