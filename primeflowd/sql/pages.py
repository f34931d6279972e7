"""Reads what one database holds page by page, to copy it into another or to sum it up.

A page is a stretch of one table in the order of the primary key that the table has there. One is
held in memory: at most PAGE_ROWS rows, and PAGE_OCTETS of text and bytes unless a single row has
more. Whoever reads sees to it that nobody writes meanwhile. Everything blocks.

Fails with StorageUnavailable.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from itertools import accumulate, takewhile
from typing import Any, Final, TypeAlias

import msgspec
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Engine,
    Integer,
    LargeBinary,
    Table,
    Text,
    cast,
    func,
    inspect,
    literal,
    null,
    select,
    text,
    tuple_,
)
from sqlalchemy.exc import DBAPIError

from primeflowd.sql import tables
from primeflowd.sql.failures import translated
from primeflowd.sql.tables import notes

Key: TypeAlias = tuple[str | int, ...]
"""Of a row: the values of the primary key of the database that it is read from."""

Row: TypeAlias = tuple[Any, ...]

TABLES: Final[tuple[Table, ...]] = (
    # First the note by which a daemon with another master key refuses the storage.
    notes,
    tables.policies,
    tables.destination_policies,
    tables.secrets,
    tables.keys,
    tables.recoveries,
    tables.answers,
    tables.batches,
    tables.items,
    tables.attempts,
    # Last what there is to do: a daemon that is started on half a copy finds nothing.
    tables.deliveries,
)
"""What is copied, in this order. `nodes` and `orders` are about processes that have ended."""

NOTE: Final = "copy-storage"
"""The name of the position among the notes of the target."""

PAGE_ROWS: Final = 5_000
PAGE_OCTETS: Final = 4 * 2**20

_DIGESTS: Final = 2**128
_ESTIMATE: Final = text(
    "SELECT reltuples::bigint FROM pg_class WHERE oid = to_regclass(CAST(:name AS text))"
)
"""As of the last vacuum."""

_encode: Final = msgspec.msgpack.Encoder().encode


class Sum(msgspec.Struct, frozen=True):
    """What a table holds, in figures that do not depend on the order of its rows.

    Attributes:
        octets: of all texts, as UTF-8, and of all bytes.
        digest: the sum of a hash of each row.
        after: the key of the last row that is in these figures.
    """

    rows: int = 0
    octets: int = 0
    digest: int = 0
    after: Key | None = None

    def is_of_same(self, other: "Sum") -> bool:
        """Whether the other is a sum over the same rows. Keys may differ between databases."""
        mine = (self.rows, self.octets, self.digest)
        return mine == (other.rows, other.octets, other.digest)


class Page(msgspec.Struct, frozen=True):
    """Rows of a table, in the order of its columns; `last` is the key of the last of them."""

    rows: Sequence[Row]
    octets: int
    last: Key


class Reader:
    """Reads the tables of one database as they are to be in a copy of it."""

    def __init__(
        self, engine: Engine, page_rows: int = PAGE_ROWS, page_octets: int = PAGE_OCTETS
    ) -> None:
        self._engine = engine
        self._page_rows = page_rows
        self._page_octets = page_octets
        self._keys: dict[str, tuple[Column[Any], ...]] = {}

    def count(self, table: Table) -> int:
        """How many rows there are to copy, about, where counting them would take long."""
        with transaction(self._engine) as connection:
            if connection.dialect.name == "postgresql":
                rows: int = connection.execute(_ESTIMATE, {"name": table.name}).scalar_one()
                if rows > 1_000_000:
                    return rows
            query = select(func.count()).select_from(table).where(*chosen(table))
            return connection.execute(query).scalar_one()

    def page(self, table: Table, after: Key | None) -> Page | None:
        """The rows after the one with that key, as many as fit; None: it was the last."""
        with transaction(self._engine) as connection:
            key = self._key(connection, table)
            beyond = [*chosen(table)]
            if after is not None:
                beyond.append(tuple_(*key) > tuple_(*after))
            sizes = select(*key, self._octets(table)).where(*beyond).order_by(*key)
            found = connection.execute(sizes.limit(self._page_rows)).all()
            if not found:
                return None
            # Asked for only when it is known how much they are.
            totals = list(takewhile(self._page_octets.__ge__, accumulate(row[-1] for row in found)))
            count = max(len(totals), 1)
            octets = totals[-1] if totals else found[0][-1]
            last: Key = tuple(found[count - 1][:-1])
            # By their number, not up to a key: so a planner without statistics, too, sees that
            # walking the index is cheapest.
            rest = select(*values(table)).where(*beyond).order_by(*key).limit(count)
            rows = [tuple(row) for row in connection.execute(rest).all()]
            return Page(rows, octets, last)

    def add_page(self, table: Table, so_far: Sum) -> Sum | None:
        """`so_far` and the page that follows it; None: there is none."""
        page = self.page(table, so_far.after)
        if page is None:
            return None
        digest = so_far.digest
        for row in page.rows:
            digest += int.from_bytes(blake2b(_encode(row), digest_size=16).digest(), "big")
        return Sum(
            so_far.rows + len(page.rows), so_far.octets + page.octets, digest % _DIGESTS, page.last
        )

    def _key(self, connection: Connection, table: Table) -> tuple[Column[Any], ...]:
        # A plugin's tables have the same columns, but their keys may be others.
        if table.name not in self._keys:
            found = inspect(connection).get_pk_constraint(table.name)["constrained_columns"]
            self._keys[table.name] = tuple(table.columns[name] for name in found)
        return self._keys[table.name]

    def _octets(self, table: Table) -> ColumnElement[int]:
        """Of a row's texts and bytes. Neither database reads a wide value for its length."""
        is_sqlite = self._engine.dialect.name == "sqlite"
        total: ColumnElement[int] = literal(0, Integer)
        for column in values(table):
            if isinstance(column.type, LargeBinary | Text):
                if not is_sqlite:
                    length = func.octet_length(column)
                elif isinstance(column.type, Text):
                    # length() would count its characters, up to the first NUL.
                    length = func.length(cast(column, LargeBinary))
                else:
                    length = func.length(column)
                total = total + func.coalesce(length, 0)
        return total


def chosen(table: Table) -> list[ColumnElement[bool]]:
    """Which rows are copied."""
    if table is not notes:
        return []
    # What is left out is about this very database, or the processes that have it open.
    return [notes.c.name != NOTE, func.substr(notes.c.name, 1, 5) != "seat:"]


def values(table: Table) -> list[ColumnElement[Any]]:
    """Its columns as they are copied: no claim outlives the node that made it."""
    claims = tables.deliveries.c.claimed_by
    return [null().label(c.name) if c is claims else c for c in table.columns]


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """One transaction, the driver's errors translated."""
    try:
        with engine.begin() as connection:
            yield connection
    except (DBAPIError, engine.dialect.loaded_dbapi.Error) as error:
        raise translated(error)  # noqa: B904 -- it has its cause
