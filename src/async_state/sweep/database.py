"""The references in Airflow's database: PostgreSQL, MySQL or SQLite.

Rows are read in pages, each after the last key of the page before it, and each in a transaction of its own. A row that
stays is in some page: writing it again keeps its key. A row that is missed, since it was committed after its page was
read, belongs to a set that has just written its object, which the grace period protects.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from async_state.sweep.errors import SourceError
from async_state.sweep.references import References

if TYPE_CHECKING:
    from sqlalchemy import Engine

_PAGE: Final = 1000
#: Longer values are read one at a time, so that no page takes much memory.
_LONG: Final = 16 * 1024
_TABLES: Final = {"task_state_store": ("id",), "asset_state_store": ("asset_id", "key")}


def references(references: References, engine: Engine | None = None) -> Iterator[str]:
    """Yield every reference in the database.

    Args:
        references: Finds them in a row's value.
        engine: Of the database; Airflow's own by default.

    Raises:
        SourceError: The database can't be read, or the rows are not in it.
    """
    for value in values(engine):
        yield from sorted(references.find(value))


def values(engine: Engine | None = None) -> Iterator[Any]:
    """Yield the value of every row. Arguments and errors are as in `references`."""
    from sqlalchemy.exc import SQLAlchemyError

    try:
        if engine is None:
            engine = _airflows_engine()
        for table, keys in _TABLES.items():
            yield from _rows(engine, table, keys)
    except SQLAlchemyError as e:
        # What the driver says may quote the statement, whose parameters are keys, but never a value.
        reason = str(getattr(e, "orig", None) or e).strip().splitlines()[0]
        raise SourceError(
            f"the rows can't be read from Airflow's database: {reason}. Nothing was deleted. Run the command where "
            "[database] sql_alchemy_conn is that of the API server, which must be Airflow 3.3 or later"
        ) from e


def _rows(engine: Engine, table: str, keys: tuple[str, ...]) -> Iterator[Any]:
    from sqlalchemy import and_, case, column, func, literal_column, null, or_, select
    from sqlalchemy import table as named

    rows = named(table, *(column(key) for key in keys), column("value"))
    columns = [rows.c[key] for key in keys]
    value = rows.c.value
    length = func.length(value)
    short = case((length <= literal_column(str(_LONG)), value), else_=null())
    page = select(*columns, short.label("short"), length.label("length")).order_by(*columns).limit(_PAGE)
    last: tuple[Any, ...] | None = None
    while True:
        query = page
        if last is not None:
            # (a, b) > (x, y) in the words that every database turns into a range of its index.
            query = page.where(columns[0] >= last[0]).where(
                or_(
                    *(
                        and_(*(columns[j] == last[j] for j in range(i)), columns[i] > last[i])
                        for i in range(len(columns))
                    )
                )
            )
        with engine.connect() as connection:
            found = connection.execute(query).all()
        for row in found:
            last = tuple(row[: len(keys)])
            if row.short is not None:
                yield row.short
            elif row.length is not None:
                with engine.connect() as connection:
                    this = and_(*(c == k for c, k in zip(columns, last, strict=True)))
                    # None: it was deleted meanwhile.
                    yield connection.execute(select(value).where(this)).scalar()
        if len(found) < _PAGE:
            return


def _airflows_engine() -> Engine:
    try:
        from airflow import settings
    except ImportError:
        raise SourceError(
            "Airflow's database can't be read here, as apache-airflow-core is not installed: run the command on the "
            "machine of the API server or the scheduler"
        ) from None
    if settings.engine is None:
        settings.configure_orm()  # type: ignore[no-untyped-call]
    engine: Engine | None = settings.engine
    if engine is None:
        raise SourceError("Airflow gives no access to its database here ([database] sql_alchemy_conn)")
    return engine


def check_backend(conf: Any) -> bool:
    """Tell whether the API server's side keeps its rows in this package's store, below the same URL.

    Args:
        conf: Airflow's configuration.

    Returns:
        ``False`` where they are in the database.

    Raises:
        SourceError: They are in neither.
    """
    from async_state.backend import AsyncStateBackend

    name = (conf.get("state_store", "backend", fallback="") or "").strip()
    if not name or name == METASTORE:
        return False
    try:
        backend = conf.getimport("state_store", "backend")
    except Exception as e:
        raise SourceError(f"[state_store] backend can't be imported, so it is not known where the rows are: {e}") from e
    if any(c.__module__ == METASTORE.rpartition(".")[0] for c in backend.__mro__):
        return False
    if issubclass(backend, AsyncStateBackend):
        return True
    raise SourceError(
        f"[state_store] backend is {name}, which keeps the rows elsewhere than in Airflow's database: nothing here "
        "knows which objects they refer to, so no object can be told to be an orphan"
    )


#: Airflow's own ``[state_store] backend``.
METASTORE: Final = "airflow.state.metastore.MetastoreBackend"
