"""SqlStorage: the Storage protocol over two engines, one for the writer and one for readers.

Reads run in worker threads, each on a connection of its own, and see a snapshot that is taken
after the call; they wait neither for the writer nor it for them where the database lets them
(SQLite in WAL mode, PostgreSQL). Writes go through the group commit of writer.py.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeVar

import trio
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from primeflowd.hookspecs import StorageStatistics, Tx
from primeflowd.sql.failures import translated
from primeflowd.sql.statements import Statements
from primeflowd.sql.tx import SqlTx
from primeflowd.sql.writer import Writer

T = TypeVar("T")

READERS: Final = 4
"""Reads at once: as many connections as the readers' engine may have to open."""


class SqlStorage:
    """Made by open_sql_storage()."""

    def __init__(self, writer: Writer, readers: Engine, statements: Statements) -> None:
        self._writer = writer
        self._readers = readers
        self._statements = statements
        self._limiter = trio.CapacityLimiter(READERS)

    async def write(
        self, function: Callable[[Tx], T], on_commit: Callable[[T], None] | None = None
    ) -> T:
        return await self._writer.write(function, on_commit)

    async def read(self, function: Callable[[Tx], T]) -> T:
        """See hookspecs.Storage. Cancellation takes effect when the read is over."""
        return await trio.to_thread.run_sync(self._read, function, limiter=self._limiter)

    def statistics(self) -> StorageStatistics:
        return self._writer.statistics()

    def _read(self, function: Callable[[Tx], T]) -> T:
        try:
            with self._readers.begin() as connection:
                tx = SqlTx(connection, self._statements)
                result = function(tx)
                # A function that writes is in the wrong place: let the database refuse it.
                tx.flush()
                return result
        except DBAPIError as error:
            raise translated(error)  # noqa: B904 -- it has its cause


@asynccontextmanager
async def open_sql_storage(writer: Engine, readers: Engine) -> AsyncIterator[SqlStorage]:
    """A storage over databases whose schema is up to date.

    Both engines must use a positional parameter style, and READERS connections of `readers` be
    open at once. Leaving commits what is queued and closes all connections; what is written later
    gets StorageUnavailable.
    """
    statements = Statements(writer.dialect)
    group_commit = Writer(writer, statements)
    try:
        yield SqlStorage(group_commit, readers, statements)
    finally:
        await group_commit.aclose()
        readers.dispose()
        writer.dispose()
