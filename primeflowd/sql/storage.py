"""SqlStorage: the Storage protocol over two engines, one for the writer and one for readers.

Reads run in worker threads, each on a connection of its own, and see a snapshot that is taken
after the call; they wait neither for the writer nor it for them where the database lets them
(SQLite in WAL mode, PostgreSQL). Writes go through the group commit of writer.py.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, Protocol, TypeVar

import trio
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from primeflowd.hookspecs import Tx
from primeflowd.sql.failures import Disconnected, translated
from primeflowd.sql.statements import Statements
from primeflowd.sql.tx import SqlTx
from primeflowd.sql.writer import Writer

T = TypeVar("T")

READERS: Final = 4
"""Reads at once, if not said otherwise: each has a connection of its own."""


class Others(Protocol):
    """How nodes that share a database tell each other that one has left something for the rest."""

    def tell(self) -> None:
        """There is something, committed. Called in the writer's thread; does not block."""
        ...

    async def wait(self) -> None:
        """See hookspecs.Storage.wait_for_others."""
        ...


class SqlStorage:
    """Made by open_sql_storage()."""

    def __init__(
        self,
        writer: Writer,
        readers: Engine,
        statements: Statements,
        limit: int,
        others: Others | None,
    ) -> None:
        self._writer = writer
        self._readers = readers
        self._statements = statements
        self._limiter = trio.CapacityLimiter(limit)
        self._others = others
        # As they are: each request asks both.
        self.write = writer.write
        self.submit = writer.submit
        self.statistics = writer.statistics

    async def read(self, function: Callable[[Tx], T]) -> T:
        """See hookspecs.Storage. Cancellation takes effect when the read is over."""
        return await trio.to_thread.run_sync(self._read, function, limiter=self._limiter)

    async def wait_for_others(self) -> None:
        """See hookspecs.Storage."""
        if self._others is None:
            await trio.sleep_forever()
        else:
            await self._others.wait()

    @property
    def reading(self) -> Engine:
        """For whoever goes through whole tables, in threads of its own; see copying.py."""
        return self._readers

    @property
    def writing(self) -> Engine:
        """As `reading`. The group commit and other transactions wait for each other."""
        return self._writer.engine

    def _read(self, function: Callable[[Tx], T]) -> T:
        try:
            with self._readers.connect() as connection:
                try:
                    return self._read_on(connection, function)
                except Disconnected:
                    # It may have been dead for a while. A read leaves nothing behind.
                    connection.invalidate()
                    return self._read_on(connection, function)
        except DBAPIError as error:
            raise translated(error)  # noqa: B904 -- it has its cause

    def _read_on(self, connection: Connection, function: Callable[[Tx], T]) -> T:
        try:
            with connection.begin():
                tx = SqlTx(connection, self._statements)
                result = function(tx)
                # A function that writes is in the wrong place: let the database refuse it.
                tx.flush()
                return result
        except DBAPIError as error:
            raise translated(error)  # noqa: B904 -- it has its cause


@asynccontextmanager
async def open_sql_storage(
    writer: Engine, readers: Engine, *, limit: int = READERS, others: Others | None = None
) -> AsyncIterator[SqlStorage]:
    """A storage over databases whose schema is up to date.

    Both engines must use a positional parameter style, and `limit` connections of `readers` be
    open at once. How transactions of `writer` begin, see writing_connection.py. Leaving commits
    what is queued and closes all connections; what is written later gets StorageUnavailable.
    """
    statements = Statements(writer.dialect)
    group_commit = Writer(writer, statements, others.tell if others is not None else None)
    try:
        yield SqlStorage(group_commit, readers, statements, limit, others)
    finally:
        await group_commit.aclose()
        readers.dispose()
        writer.dispose()
