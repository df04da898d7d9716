"""What Airflow answered for a connection, and how to say what is wrong with it. No message repeats a value."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from async_state.errors import ConfigurationError


@dataclass(frozen=True)
class Found:
    """A connection as Airflow has it. A field that is not set is an empty string.

    Attributes:
        option: The option of ``[async_state]`` that names it.
        conn_id: Its id.
        login: Its login.
        password: Its password.
        host: Its host.
        port: Its port, or ``None``.
        extra: Its extra, parsed.
    """

    option: str
    conn_id: str
    login: str = field(repr=False)
    password: str = field(repr=False)
    host: str = field(repr=False)
    port: int | None
    extra: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, option: str, conn_id: str, found: Any, extra: Any) -> Found:
        """Return what was found.

        Args:
            option: The option that names it.
            conn_id: Its id.
            found: Airflow's answer.
            extra: Its parsed extra.

        Raises:
            ConfigurationError: The extra is no JSON object.
        """
        # The SDK takes an extra that is no JSON for an empty one.
        usable = isinstance(extra or {}, dict) and (extra or _is_empty(found.extra))
        login, password, host = (str(value or "") for value in (found.login, found.password, found.host))
        this = cls(option, conn_id, login, password, host, found.port, extra if usable and extra else {})
        if not usable:
            raise this.bad("has an extra that is no JSON object")
        return this

    def extras(
        self,
        taken: Collection[str],
        refused: Mapping[str, str],
        changes_nothing: Callable[[str, Any], bool] | None = None,
        *,
        prefix: str = "",
    ) -> dict[str, Any]:
        """Return the extras that are taken and not empty.

        What is not taken is refused, since state would go elsewhere, or with other rights, than the connection says.
        That holds for an unknown extra too: it may be a misspelt one.

        Args:
            taken: The names of those that are taken.
            refused: What to do instead of each that Airflow's provider knows, and that is not taken.
            changes_nothing: Tells whether an extra with this name and value could as well be left out.
            prefix: What an old connection has before each name. The name without it counts, where there are both.

        Raises:
            ConfigurationError: There is another extra.
        """
        extra = {name.removeprefix(prefix): value for name, value in self.extra.items() if name.startswith(prefix)}
        extra |= {name: value for name, value in self.extra.items() if not prefix or not name.startswith(prefix)}
        for name, value in extra.items():
            if name in taken or is_empty(value) or (changes_nothing and changes_nothing(name, value)):
                continue
            if name in refused:
                raise self.bad(f"has the extra {name}, which is not supported: {refused[name]}")
            import difflib

            nearest = difflib.get_close_matches(name, taken, n=1)
            advice = f"did you mean {nearest[0]}?" if nearest else "remove it, or give state a connection of its own"
            raise self.bad(f"has the extra {name}, which is not known: {advice}")
        return {name: extra[name] for name in taken if extra.get(name)}

    def checked(self, what: str, value: str | None, check: Callable[[str], str]) -> str | None:
        """Return what ``check`` makes of the value, or ``None`` if there is none.

        Args:
            what: What the value is, such as ``an extra region_name``.
            value: It.
            check: Raises a ``ValueError`` that says what the value must be, without showing a secret.

        Raises:
            ConfigurationError: The value can't be used.
        """
        try:
            return check(value) if value else None
        except ValueError as e:
            raise self.bad(f"has {what} that can't be used: it {e}") from None

    def check_sendable(self, values: Mapping[str, str | None]) -> None:
        """Refuse a value, by what it is, with a character that no header of a request may have.

        Raises:
            ConfigurationError: There is one.
        """
        for what, value in values.items():
            if value and not re.fullmatch(r"[!-~]+", value):
                raise self.bad(f"has a space, a line break or another character in its {what} that can't be sent")

    def only_one(self, ways: Mapping[str, Any]) -> None:
        """Refuse a connection that has more than one of these ways to get access, by their names.

        Raises:
            ConfigurationError: It has.
        """
        names = [name for name, value in ways.items() if value]
        if len(names) > 1:
            raise self.bad(f"has {' and '.join(names)}, of which only one can be used: keep the one meant for state")

    def bad(self, what: str) -> ConfigurationError:
        """Return the error that says what is wrong with the connection."""
        return ConfigurationError(f"[async_state] {self.option}: the connection {self.conn_id!r} {what}")


def is_empty(value: Any) -> bool:
    """Tell whether an extra has no value, as Airflow's form leaves it."""
    return value in (None, "", {}, [])


def _is_empty(extra: str | None) -> bool:
    try:
        return not json.loads(extra or "{}")
    except ValueError:
        return False
