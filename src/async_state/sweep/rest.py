"""The references that Airflow's public REST API shows, scope by scope.

The API is not made for this question, and an empty answer often means nothing. Whatever is not certain is in doubt:

* An answer counts only if Airflow's own code has given it for the very ids that were asked for: a proxy's 404 does not.
* A run is gone only if its DAG may be read, or is gone as well. Who may not read it gets 403.
* ``~`` is no wildcard for a task's state, and a task instance that does not exist has an empty list as well as one
  without state. So it is asked for exactly, and an empty list counts only if the task instance exists.
* Pages are counted off, so that a key that is deleted meanwhile pushes another one past the end of its page. Where a
  list has more than one page, each key that is not in it is asked for by itself.
* Assets go by id here and by name or URI in names of objects. Several assets may have had one name or URI, and those
  that are no longer active are listed only if they are asked for.
* With another ``[state_store] backend`` than Airflow's own there are no rows in the database, and every list is empty.
  So a missing row counts only if some row shows a reference of ours.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any, Final, NamedTuple
from urllib.parse import quote, urlsplit

import anyio
import httpx

from async_state.keys import Place, parse_name, scope_prefix
from async_state.sweep.errors import SourceError
from async_state.sweep.ledger import Ledger, after
from async_state.sweep.references import MARKER, References

#: The environment variables that may hold the token, the first one first. The second one is also airflowctl's.
TOKENS: Final = ("AIRFLOW_API_TOKEN", "AIRFLOW_CLI_TOKEN")

#: Airflow's own limit of a page, unless [api] maximum_page_limit is another one.
_LIMIT: Final = 100
_TRIES: Final = 4
_PAUSE: Final = 0.5
_AGAIN: Final = (
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)
#: How Airflow 3.4 addresses what has no region.
_NO_REGION: Final = "00000000-0000-0000-0000-000000000000"
#: What Airflow says, with 403 and not 401, of a token that it did not make.
_NO_TOKEN: Final = "Invalid JWT token"  # noqa: S105
#: No DAG can be called so.
_NO_DAG: Final = "async_state sweep"
#: Ids with which a path means something else, to Airflow, to a proxy or to the HTTP client.
_UNADDRESSABLE: Final = ("", ".", "..", "~")


class _DoubtError(Exception):
    """The API does not tell."""


class _Run(NamedTuple):
    dag: str
    run: str


class Rest:
    """Airflow's public REST API as a source of references.

    Args:
        client: Has the URL of the API and the token.
        ledger: Where the objects are, and the references go.
        references: Finds them in a row's value.
    """

    def __init__(self, client: httpx.AsyncClient, ledger: Ledger, references: References) -> None:
        self._client = client
        self._ledger = ledger
        self._references = references
        self._runs: dict[_Run, bool] = {}
        self._assets = anyio.Lock()
        self._has_assets = False
        #: Whether any row has shown a reference of ours.
        self._is_metastore = False

    async def check(self) -> None:
        """Ask for something that does not depend on what there is.

        Raises:
            SourceError: The API can't be reached, or it is none, or it does not accept the token.
        """
        answer = await self._get("dags", limit=1, dag_id_pattern=_NO_DAG)
        if answer.status == HTTPStatus.FORBIDDEN:
            raise SourceError(
                f"the user of the token in {TOKENS[0]} may not read DAGs ({answer.url} answers 403: {answer.detail}). "
                "Nothing was deleted. Use the token of a user who may read all DAGs, their runs and assets"
            )
        if not isinstance(answer.body.get("dags"), list):
            raise SourceError(
                f"{answer.url} answers {answer.status}, and not with Airflow's list of DAGs. Nothing was deleted. "
                "--api-url is the URL of the API server, as in [api] base_url"
            )

    async def resolve(
        self, *, concurrency: int, rows_elsewhere: bool, progress: Callable[[int], None] = lambda _: None
    ) -> None:
        """Ask for the rows of every scope that has objects in the ledger, and take those in doubt that it can't tell.

        Args:
            concurrency: How many scopes at once.
            rows_elsewhere: Whether it is known that rows are kept elsewhere than in Airflow's database.
            progress: Is called with the number of scopes that were asked for.

        Raises:
            SourceError: The API can't be reached any more, or the token has expired.
        """
        scopes = _scopes(self._ledger)
        asked = 0

        failures: list[SourceError] = []

        async def work() -> None:
            nonlocal asked
            for prefix, place in scopes:
                try:
                    await self._ask(prefix, place)
                except _DoubtError:
                    self._ledger.doubt(prefix)
                except SourceError as e:
                    failures.append(e)
                    group.cancel_scope.cancel()
                asked += 1
                progress(asked)

        async with anyio.create_task_group() as group:
            for _ in range(concurrency):
                group.start_soon(work)
        if failures:
            raise failures[0]
        if rows_elsewhere or not self._is_metastore:
            self._ledger.doubt_shown()

    async def _ask(self, prefix: str, place: Place) -> None:
        if place.asset_by:
            return await self._ask_asset(prefix, place)
        # A shortened identifier does not say which it was.
        if "~" in prefix or not all(map(_is_addressable, (place.dag_id, place.run_id, place.task_id))):
            raise _DoubtError
        if not await self._run_exists(_Run(place.dag_id, place.run_id)):
            return None
        dag, run, task = (quote(text, safe="") for text in (place.dag_id, place.run_id, place.task_id))
        instances = f"dags/{dag}/dagRuns/{run}/taskInstances/{task}"
        # Airflow 3.4 would look for the region itself; 3.3 ignores what it does not know.
        exact = {"region_id": place.region or _NO_REGION, "region_index": place.map_index}
        await self._ask_rows(prefix, f"{instances}/state-store", "task_state_store", map_index=place.map_index, **exact)
        answer = await self._get(f"{instances}/{place.map_index}", **exact)
        if answer.status != HTTPStatus.OK or not _is_instance(answer.body, place):
            raise _DoubtError
        self._ledger.add_shown(prefix)
        return None

    async def _run_exists(self, run: _Run) -> bool:
        """Tell whether there is the run.

        Raises:
            _DoubtError: The API does not tell.
        """
        if run not in self._runs:
            # Scopes come in the order of their names, so that only the last few runs are asked for again.
            if len(self._runs) > 10_000:
                self._runs.clear()
            self._runs[run] = await self._ask_run(run)
        return self._runs[run]

    async def _ask_run(self, run: _Run) -> bool:
        dag_path = f"dags/{quote(run.dag, safe='')}"
        answer = await self._get(f"{dag_path}/dagRuns/{quote(run.run, safe='')}")
        if answer.status == HTTPStatus.OK and (answer.body.get("dag_id"), answer.body.get("dag_run_id")) == run:
            return True
        if (
            answer.status == HTTPStatus.NOT_FOUND
            and f"`{run.dag}`" in answer.detail
            and f"`{run.run}`" in answer.detail
        ):
            dag = await self._get(dag_path)
            if dag.status == HTTPStatus.OK and dag.body.get("dag_id") == run.dag:
                return False
            # A DAG that was deleted, with its runs.
            if dag.status == HTTPStatus.NOT_FOUND and run.dag in dag.detail:
                return False
        raise _DoubtError

    async def _ask_asset(self, prefix: str, place: Place) -> None:
        if place.asset_by == "id":
            ids = [int(place.asset)]
        else:
            await self._list_assets()
            # Airflow keeps assets that are no longer active; one that is not listed may be hidden from this user.
            ids = self._ledger.assets(prefix)
            if not ids:
                raise _DoubtError
        for asset in ids:
            await self._ask_rows(prefix, f"assets/{asset}/state-store", "asset_state_store")
        self._ledger.add_shown(prefix)

    async def _list_assets(self) -> None:
        async with self._assets:
            if self._has_assets:
                return
            async for page in self._pages("assets", "assets", only_active="false", order_by="id"):
                for asset in page:
                    self._ledger.add_asset(asset["id"], _asset_prefixes(asset))
            self._has_assets = True

    async def _ask_rows(self, prefix: str, path: str, field: str, **parameters: Any) -> None:
        """Take what the rows of one scope refer to for referenced.

        Raises:
            _DoubtError: The API does not show them all.
        """
        pages = 0
        async for page in self._pages(path, field, **parameters):
            pages += 1
            for row in page:
                self._take(row)
        if pages == 1:
            return
        for entry in self._ledger.orphans(prefix):
            if entry.name in self._ledger.referenced({entry.name}):
                continue
            place = parse_name(entry.name)
            if place is None or "~" in entry.name.rpartition("/")[2]:
                raise _DoubtError
            answer = await self._get(f"{path}/{quote(place.key, safe='')}", **parameters)
            if answer.status == HTTPStatus.OK and answer.body.get("key") == place.key:
                self._take(answer.body)
            elif answer.status != HTTPStatus.NOT_FOUND or repr(place.key) not in answer.detail:
                raise _DoubtError

    def _take(self, row: dict[str, Any]) -> None:
        value = row.get("value")
        refs = self._references.find_in(value)
        self._ledger.add_refs(self._references, refs)
        if any(self._references.names(refs)) and isinstance(value, dict) and MARKER in value:
            self._is_metastore = True

    async def _pages(self, path: str, field: str, **parameters: Any) -> AsyncIterator[list[dict[str, Any]]]:
        """Yield the pages of a list, at least one.

        Raises:
            _DoubtError: It is no list, or it ends before the number of items that it tells.
        """
        offset = 0
        while True:
            answer = await self._get(path, limit=_LIMIT, offset=offset, **parameters)
            items, total = answer.body.get(field), answer.body.get("total_entries")
            if answer.status != HTTPStatus.OK or not isinstance(items, list) or not isinstance(total, int):
                raise _DoubtError
            yield items
            offset += len(items)
            if offset >= total:
                return
            if not items:
                raise _DoubtError

    async def _get(self, path: str, **parameters: Any) -> _Answer:
        """Ask, and ask again where a server or a proxy is overloaded.

        Raises:
            SourceError: Nobody answers, or the token is not accepted.
        """
        response: httpx.Response | None = None
        error: httpx.HTTPError | None = None
        for attempt in range(_TRIES):
            if attempt:
                await anyio.sleep(_PAUSE * 2 ** (attempt - 1))
            try:
                response = await self._client.get(path, params=parameters)
            except httpx.HTTPError as e:
                response, error = None, e
                continue
            if response.status_code not in _AGAIN:
                break
        if response is None:
            raise SourceError(
                f"Airflow's REST API at {self._client.base_url} does not answer ({type(error).__name__}: {error}). "
                "Nothing was deleted. Check --api-url, and run the same command again"
            )
        answer = _Answer.of(response)
        if answer.status == HTTPStatus.UNAUTHORIZED or answer.detail == _NO_TOKEN:
            raise SourceError(
                f"Airflow's REST API at {self._client.base_url} does not accept the token in {TOKENS[0]}: it is wrong, "
                "or has expired. Nothing was deleted. Get a new one and run the same command again"
            )
        return answer


class _Answer(NamedTuple):
    """A response: its body where that is a JSON object, and what FastAPI says of an error."""

    url: str
    status: int
    body: dict[str, Any]
    detail: str

    @classmethod
    def of(cls, response: httpx.Response) -> _Answer:
        try:
            body = response.json()
        except ValueError:
            body = None
        body = body if isinstance(body, dict) else {}
        detail = body.get("detail")
        return cls(str(response.url), response.status_code, body, detail if isinstance(detail, str) else "")


@asynccontextmanager
async def opened(url: str, token: str, timeout: float) -> AsyncIterator[httpx.AsyncClient]:
    """Open a client for the API at ``url``, which may end in ``/api/v2`` or not.

    Raises:
        SourceError: ``url`` is none.
    """
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and not parts.query and not parts.fragment
    except ValueError:
        usable = False
    if not usable:
        raise SourceError("--api-url must be an http:// or https:// URL, as in [api] base_url")
    base = url.rstrip("/").removesuffix("/api/v2") + "/api/v2/"
    async with httpx.AsyncClient(
        base_url=base, headers={"Authorization": f"Bearer {token}"}, timeout=timeout
    ) as client:
        yield client


def _scopes(ledger: Ledger) -> Iterator[tuple[str, Place]]:
    """Yield the prefix of every scope that has objects, and what it says."""
    last = ""
    while (name := ledger.next_object(last)) is not None:
        prefix = name[: name.rindex("worker/")]
        # The ledger has no other objects than those with such names.
        if place := parse_name(name):
            yield prefix, place
        last = after(prefix)


def _is_instance(found: dict[str, Any], place: Place) -> bool:
    """Tell whether a task instance is the one to whose state the place belongs."""
    region = found.get("region_id") or ""
    index = found.get("region_index") if region else found.get("map_index")
    named = tuple(found.get(field) for field in ("dag_id", "dag_run_id", "task_id"))
    return (*named, region.replace(_NO_REGION, ""), index) == (
        place.dag_id,
        place.run_id,
        place.task_id,
        place.region,
        place.map_index,
    )


def _asset_prefixes(asset: dict[str, Any]) -> list[str]:
    """Return the prefixes of the objects of an asset: a worker names it by its name, or by its URI."""
    return [
        scope_prefix(SimpleNamespace(**{"asset_id": None, "name": None, "uri": None, field: asset[field]}))
        for field in ("name", "uri")
        if asset.get(field)
    ]


def _is_addressable(identifier: str) -> bool:
    return identifier not in _UNADDRESSABLE and "/" not in identifier
