"""The statements of one transaction, as the mixins of tx.py run them: deferral, undo, failure.

A group commit runs many functions in one transaction. What most of them do is insert, and rows
inserted together cost a third of rows inserted one by one; so inserts are kept back and written

  - at the end of the transaction (`flush`), or
  - before a statement that could meet one of them.

Undo: what a function only kept back is dropped again if it raises (`withdraw`). What it has
already written is undone only with the whole transaction; the writer does that.

Failure: a statement that fails leaves `failure` set, even where the function swallows the
exception, since the transaction is not to be trusted from then on.
"""

from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from typing import Any, NoReturn, TypeVar

from sqlalchemy import Connection
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.sql.base import Executable

from primeflowd.errors import UniqueViolation
from primeflowd.model import Attempt, Batch, Delivery, RetryPolicy, SigningSecret, StoredAnswer
from primeflowd.sql import rows
from primeflowd.sql.failures import translated
from primeflowd.sql.statements import Statements

K = TypeVar("K")
V = TypeVar("V")

CHUNK = 5_000
"""Most values in one IN list; SQLite takes 32,766 parameters, PostgreSQL 65,535."""


class Session:
    """One transaction on `connection`. Used by one thread, for one group."""

    def __init__(self, connection: Connection, statements: Statements) -> None:
        self.failure: BaseException | None = None
        self._connection = connection
        self._hot = statements
        self._cursor: DBAPICursor | None = None
        self._batches: dict[str, Batch] = {}
        self._deliveries: dict[str, Delivery] = {}
        self._attempts: dict[tuple[str, int], Attempt] = {}
        self._answers: dict[tuple[str, str, str, str], StoredAnswer] = {}
        # How much the functions before the present one have kept back, and whether this one has
        # written anything already.
        self._marks = (0, 0, 0, 0)
        self._written = False
        # Read once per group: a thousand new batches of one org ask the same two questions.
        self._policies: dict[tuple[str, str], RetryPolicy | None] = {}
        self._current_secrets: dict[str, SigningSecret | None] = {}

    # For the writer

    def begin_function(self) -> None:
        """What is kept back and written from now on is the next function's."""
        self._marks = self._kept()
        self._written = False

    def withdraw(self) -> bool:
        """Drop what the present function did; False if that takes a rollback."""
        if self._written or self.failure is not None:
            return False
        kept: list[dict[Any, Any]] = [
            self._batches,
            self._deliveries,
            self._attempts,
            self._answers,
        ]
        for buffer, mark in zip(kept, self._marks, strict=True):
            # Dicts keep the order of insertion: the last ones are this function's.
            while len(buffer) > mark:
                buffer.popitem()
        return True

    def flush(self) -> None:
        """Write what is kept back.

        Raises:
            UniqueViolation: a row exists; it may be any function's of this transaction.
        """
        if self._kept() == (0, 0, 0, 0):
            return
        if self._kept() != self._marks:
            self._written = True
        self._marks = (0, 0, 0, 0)
        if self._batches:
            self._run_many(self._hot.insert_batch, rows.BATCHES, self._batches)
        if self._deliveries:
            self._run_many(self._hot.insert_delivery, rows.DELIVERIES, self._deliveries)
        if self._attempts:
            self._run_many(self._hot.insert_attempt, rows.ATTEMPTS, self._attempts)
        if self._answers:
            self._run_many(self._hot.put_answer, rows.ANSWERS, self._answers)

    # For the mixins

    def _keep(self, buffer: dict[K, V], key: K, value: V) -> None:
        """Keep a row back. Raises UniqueViolation if another is kept back under its key."""
        if key in buffer:
            self.failure = UniqueViolation(f"{key} was inserted by the same group")
            raise self.failure
        buffer[key] = value

    def _read(self, statement: Executable, values: dict[str, Any] | None = None) -> Sequence[Any]:
        """The rows that `statement` finds; what is kept back is written first."""
        self.flush()
        return self._read_stored(statement, values)

    def _read_stored(
        self, statement: Executable, values: dict[str, Any] | None = None
    ) -> Sequence[Any]:
        """As _read, for a caller that knows that nothing kept back matters to it."""
        try:
            return self._connection.execute(statement, values).all()
        except Exception as error:  # noqa: BLE001 -- raised again, as ours where it is
            self._fail(error)

    def _write(self, statement: Executable, values: Any = None) -> int:
        """Run a statement that changes rows, how many; what is kept back is written first."""
        self.flush()
        try:
            changed = self._connection.execute(statement, values).rowcount
        except Exception as error:  # noqa: BLE001 -- raised again, as ours where it is
            self._fail(error)
        if changed:
            self._written = True
        return changed

    def _write_returning(self, statement: Executable) -> Sequence[Any]:
        """As _write; what RETURNING gives."""
        self.flush()
        self._written = True
        return self._read_stored(statement)

    def _write_hot(self, statement: str, values: tuple[Any, ...]) -> int:
        """Run compiled text; how many rows it changed. Writes nothing that is kept back.

        On the driver's own cursor: for a single row SQLAlchemy would cost twice what SQLite does.
        """
        try:
            if self._cursor is None:
                self._cursor = self._connection.connection.cursor()
            self._cursor.execute(statement, values)
            changed = self._cursor.rowcount
        except Exception as error:  # noqa: BLE001 -- raised again, as ours where it is
            self._fail(error)
        if changed:
            self._written = True
        return changed

    def _run_many(self, statement: str, of: rows.Rows[Any], buffer: dict[Any, Any]) -> None:
        values = [of.row(value) for value in buffer.values()]
        buffer.clear()
        try:
            self._connection.exec_driver_sql(statement, values)
        except Exception as error:  # noqa: BLE001 -- raised again, as ours where it is
            self._fail(error)

    def _fail(self, error: BaseException) -> NoReturn:
        self.failure = translated(error)
        raise self.failure

    def _kept(self) -> tuple[int, int, int, int]:
        return (
            len(self._batches),
            len(self._deliveries),
            len(self._attempts),
            len(self._answers),
        )


def chunks(values: Collection[K]) -> Iterator[list[K]]:
    """`values` in lists that fit into an IN."""
    iterator = iter(values)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk
