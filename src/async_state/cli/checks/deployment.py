"""Whose the prefix is, and whether the options agree with what the other components have recorded there."""

from __future__ import annotations

from typing import Any

from async_state import codec, compat, ownership
from async_state.cli.checks import Add, Finding, fail, ok, warn
from async_state.errors import AsyncStateError
from async_state.settings import Settings
from async_state.stores.base import Store


async def check(settings: Settings, store: Store, timeout: float, add: Add) -> None:
    """Compare what the object that names the owner says with this machine's configuration."""
    url = f"{settings.url}/{ownership.NAME}"
    try:
        body = await store.get(ownership.NAME, timeout=timeout)
        found = ownership.parsed(None if body is None else await codec.adecode(body))
        claim = ownership.claim_of(settings, ownership.COMMAND)
    except (AsyncStateError, ValueError) as e:
        add(fail("owner", f"{url} can't be read: {e}"))
        return
    if not found:
        add(ok("owner", f"nobody yet: the first component that starts writes {url}"))
        return
    if not ownership.is_same(found, claim):
        add(fail("owner", ownership.other(settings.url, found, claim)))
        return
    add(ok("owner", f"{ownership.named(found)}, since {found.get('since')}"))
    add(_clears(found))
    for component, options in found.get("options", {}).items():
        add(_options(component, options, claim.options))


def _clears(found: dict[str, Any]) -> Finding:
    recorded = {**found.get("clear_on_success", {}), "this machine": compat.clear_on_success()}
    detail = ", ".join(f"{value} ({where})" for where, value in recorded.items())
    if len(set(recorded.values())) > 1:
        return warn(
            "clear_on_success of all",
            f"{detail}: a task's success deletes its objects and leaves the rows, or the reverse",
            "Set [state_store] clear_on_success to the same in all components, and restart them",
        )
    return ok("clear_on_success of all", detail)


def _options(component: str, there: dict[str, str], here: dict[str, str]) -> Finding:
    check = f"options of {component}"
    different = [
        f"{name} is {there.get(name) or 'the default'} there and {here.get(name) or 'the default'} here"
        for name in sorted({*there, *here})
        if there.get(name) != here.get(name)
    ]
    if different:
        return warn(
            check,
            "; ".join(different),
            "Set [async_state] to the same in all components, unless you mean the difference; each records its "
            "options when it starts",
        )
    return ok(check, "the same as here")
