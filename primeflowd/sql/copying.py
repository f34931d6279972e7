"""Copies what one database holds into another, page by page.

Each page is written in one transaction with the position after it, which is a note in the target:
a copy that is cut short, at whatever moment, goes on where it stood, and no row is there twice.
Whoever copies sees to it that nobody else writes meanwhile. Everything blocks.

Fails with an OperatorError where people must act (a target that is not empty, a value that it
cannot hold), and with StorageUnavailable where a database does.
"""

from itertools import pairwise
from typing import Final

import msgspec
from msgspec.structs import replace
from sqlalchemy import Connection, Engine, Table, insert, select, update
from sqlalchemy.exc import DBAPIError

from primeflowd.errors import OperatorError, StorageUnavailable
from primeflowd.hookspecs import Tx
from primeflowd.sql.failures import translated
from primeflowd.sql.pages import NOTE, TABLES, Key, Page, chosen, transaction, values
from primeflowd.sql.tables import notes

_BY_NAME: Final = {str(table.name): table for table in TABLES}
_FOLLOWING: Final = dict(pairwise([*_BY_NAME, None]))


class Position(msgspec.Struct, frozen=True):
    """How far a copy is.

    Attributes:
        source: the name of the storage that is copied.
        table: the table that is being copied; None: all are.
        after: the key of its last row that is copied; None: it has none yet.
        rows, octets: copied so far, of all tables.
    """

    source: str
    table: str | None
    after: Key | None = None
    rows: int = 0
    octets: int = 0

    @property
    def current(self) -> Table | None:
        """The table that is being copied, as tables.py has it."""
        return None if self.table is None else _BY_NAME[self.table]


def find_position(engine: Engine) -> Position | None:
    """How far the copy is that was made into this database; None: it is no copy."""
    with transaction(engine) as connection:
        return _stored(connection)


def check_complete(tx: Tx) -> None:
    """For whoever is about to use a storage as its daemon.

    Raises:
        OperatorError: it is half a copy.
    """
    text = tx.note(NOTE)
    position = msgspec.json.decode(text, type=Position) if text is not None else None
    if position is not None and position.table is not None:
        raise OperatorError(
            f"the storage is half a copy of {position.source}; run copy-storage again, to its end"
        )


def begin(target: Engine, source_name: str) -> Position:
    """Begin a copy from the storage of that name, or find how far it is.

    Raises:
        OperatorError: the target is not empty, and is no copy of that storage.
    """
    with transaction(target) as connection:
        position = _stored(connection)
        if position is not None:
            if position.source == source_name:
                return position
            state = "holds a copy of" if position.table is None else "holds a part of"
            raise OperatorError(f"it {state} {position.source}; give an empty storage")
        for table in TABLES:
            if connection.execute(select(*values(table)).where(*chosen(table)).limit(1)).first():
                raise OperatorError(f"it is not empty, it has {table.name}; give an empty storage")
        position = Position(source_name, next(iter(_BY_NAME)))
        connection.execute(insert(notes).values(name=NOTE, value=_as_text(position)))
        return position


def put_page(target: Engine, position: Position, page: Page | None) -> Position:
    """Write what the source has after `position`; the position after it, stored with it.

    Raises:
        OperatorError: the target cannot hold a value, or another process copies into it.
    """
    table = position.current
    assert table is not None
    if page is None:
        moved = replace(position, table=_FOLLOWING[table.name], after=None)
    else:
        moved = replace(
            position,
            after=page.last,
            rows=position.rows + len(page.rows),
            octets=position.octets + page.octets,
        )
    with transaction(target) as connection:
        change = update(notes).where(notes.c.name == NOTE, notes.c.value == _as_text(position))
        if connection.execute(change.values(value=_as_text(moved))).rowcount != 1:
            raise OperatorError("another process copies into it")
        if page is not None:
            _insert(connection, table, page)
    return moved


def _stored(connection: Connection) -> Position | None:
    value = connection.scalar(select(notes.c.value).where(notes.c.name == NOTE))
    return None if value is None else msgspec.json.decode(value, type=Position)


def _as_text(position: Position) -> str:
    return msgspec.json.encode(position).decode()


def _insert(connection: Connection, table: Table, page: Page) -> None:
    dialect = connection.dialect
    if dialect.name == "postgresql":
        _refuse_nul(table, page)
    try:
        if dialect.driver == "psycopg":
            _stream(connection, table, page)
        else:
            statement = str(insert(table).compile(dialect=dialect))
            connection.exec_driver_sql(statement, [*page.rows])
    except (DBAPIError, dialect.loaded_dbapi.Error) as error:
        failure = translated(error)
        if isinstance(failure, StorageUnavailable):
            raise failure from error
        theirs = error.orig if isinstance(error, DBAPIError) else error
        raise OperatorError(f"{table.name}: it refuses a row: {theirs}") from error


def _stream(connection: Connection, table: Table, page: Page) -> None:
    """PostgreSQL's COPY: several times as fast as INSERT."""
    quote = connection.dialect.identifier_preparer.quote
    columns = ", ".join(quote(column.name) for column in table.columns)
    statement = f"COPY {quote(table.name)} ({columns}) FROM STDIN"
    driver = connection.connection.driver_connection
    assert driver is not None
    with driver.cursor() as cursor, cursor.copy(statement) as copy:
        for row in page.rows:
            copy.write_row(row)


def _refuse_nul(table: Table, page: Page) -> None:
    """PostgreSQL would, too, but without saying where. The source is another database, then."""
    for row in page.rows:
        for column, value in zip(table.columns, row, strict=True):
            if type(value) is str and "\0" in value:
                fields = dict(zip(table.columns.keys(), row, strict=True))
                key = ", ".join(f"{c.name} {fields[c.name]!r}" for c in table.primary_key)
                name = column.name
                # SQLite's length() and substr() end at a NUL; its replace() does not find one.
                until = f"substr({name}, 1, length({name}))"
                mend = f"UPDATE {table.name} SET {name} = {until} WHERE instr({name}, char(0))"  # noqa: S608 -- told, not run
                raise OperatorError(
                    f"{table.name}: the {name} of {key} has a NUL in it, which PostgreSQL cannot "
                    f"hold. SQLite ends all of them there with `{mend}`; then copy again"
                )
