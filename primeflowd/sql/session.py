"""The statements of one transaction, as the mixins of tx.py run them: deferral, undo, failure.

A group commit runs many functions in one transaction. What most of them do is insert, and rows
inserted together cost a third of rows inserted one by one; so inserts are kept back and written

  - at the end of the transaction (`flush`), or
  - before a statement that could meet one of them.

So are the records of attempts, which change a row each. A record is right if its node still holds
the claim, which it nearly always does; so that is presumed, and found out when they are written
together. If it was wrong, what a function was told may have been, and nothing of the transaction
is to be kept: `failure` is WronglyPresumed. A session that is not `presuming` asks at once.

Undo: what a function only kept back is dropped again if it raises (`withdraw`). What it has
already written is undone only with the whole transaction; the writer does that.

Failure: a statement that fails leaves `failure` set, even where the function swallows the
exception, since the transaction is not to be trusted from then on. It may not even be there: on a
full disk SQLite ends it by itself, and what ran after that would be committed alone. So nothing
runs any more; whatever asks for it gets the same exception again.
"""

from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from typing import Any, NoReturn, TypeVar

from sqlalchemy import Connection, Select
from sqlalchemy.engine.interfaces import DBAPICursor
from sqlalchemy.sql.base import Executable

from primeflowd.errors import UniqueViolation
from primeflowd.model import Attempt, Batch, Delivery, RetryPolicy, SigningSecret, StoredAnswer
from primeflowd.sql import rows
from primeflowd.sql.failures import translated
from primeflowd.sql.given_rows import Given
from primeflowd.sql.statements import Statements, delivery_update

K = TypeVar("K")
V = TypeVar("V")

CHUNK = 5_000
"""Most values in one IN list; SQLite takes 32,766 parameters, PostgreSQL 65,535."""


class WronglyPresumed(Exception):
    """A record of an attempt was not as presumed: the functions must run again, asking."""


class Session:
    """One transaction on `connection`. Used by one thread, for one group.

    Attributes:
        failure: why the transaction is not to be trusted any more.
        left_for_others: there is something in it that another node may want to take up soon.
        memo: see hookspecs.Tx.
        rows: that were kept back and then written.
    """

    def __init__(
        self,
        connection: Connection,
        statements: Statements,
        *,
        writes: bool = False,
        presuming: bool = False,
    ) -> None:
        """`writes`: other nodes' transactions shall wait for this one to change what it reads."""
        self.failure: BaseException | None = None
        self.left_for_others = False
        self.memo: dict[Any, Any] = {}
        self.rows = 0
        self._writes = writes
        self._presuming = presuming
        self._connection = connection
        self._hot = statements
        self._cursor: DBAPICursor | None = None
        self._batches: dict[str, Batch] = {}
        self._deliveries: dict[str, Delivery] = {}
        # By delivery: the node that records, and the delivery as it shall be.
        self._records: dict[str, tuple[str, Delivery]] = {}
        self._attempts: dict[tuple[str, int], Attempt] = {}
        self._answers: dict[tuple[str, str, str, str], StoredAnswer] = {}
        # How much the functions before the present one have kept back, whether this one has
        # written anything already, and whether they have left anything for others.
        self._marks = _NOTHING
        self._written = False
        self._had_left = False
        # Read once per group: a thousand new batches of one org ask the same two questions.
        self._policies: dict[tuple[str, str], RetryPolicy | None] = {}
        self._current_secrets: dict[str, SigningSecret | None] = {}

    # For the writer

    def begin_function(self) -> None:
        """What is kept back and written from now on is the next function's."""
        self._marks = self._kept()
        self._written = False
        self._had_left = self.left_for_others

    def withdraw(self) -> bool:
        """Drop what the present function did; False if that takes a rollback."""
        if self._written or self.failure is not None:
            return False
        kept: list[dict[Any, Any]] = [
            self._batches,
            self._deliveries,
            self._records,
            self._attempts,
            self._answers,
        ]
        for buffer, mark in zip(kept, self._marks, strict=True):
            # Dicts keep the order of insertion: the last ones are this function's.
            while len(buffer) > mark:
                buffer.popitem()
        self.left_for_others = self._had_left
        return True

    def flush(self) -> None:
        """Write what is kept back.

        Raises:
            UniqueViolation: a row exists; it may be any function's of this transaction.
            WronglyPresumed: likewise.
        """
        kept = self._kept()
        if kept == _NOTHING:
            return
        if kept != self._marks:
            self._written = True
        self.rows += sum(kept)
        self._marks = _NOTHING
        if self._batches:
            self._insert_kept(self._hot.insert_batch, rows.BATCHES, self._batches)
        if self._deliveries:
            self._insert_kept(self._hot.insert_delivery, rows.DELIVERIES, self._deliveries)
        if self._records:
            self._write_records()
        if self._attempts:
            self._insert_kept(self._hot.insert_attempt, rows.ATTEMPTS, self._attempts)
        if self._answers:
            self._insert_kept(self._hot.insert_answer, rows.ANSWERS, self._answers)

    # For the mixins

    def _keep(self, buffer: dict[K, V], key: K, value: V) -> None:
        """Keep a row back. Raises UniqueViolation if another is kept back under its key."""
        if key in buffer:
            self._kept_already(key)
        buffer[key] = value

    def _kept_already(self, key: object) -> NoReturn:
        self._fail(UniqueViolation(f"{key} was inserted by the same group"))

    def _locking(self, query: Select[Any]) -> Select[Any]:
        """`query` for rows that are read to be changed: no other transaction changes them before
        this one ends. SQLite has one writer at a time, and ignores it."""
        return query.with_for_update() if self._writes else query

    def _read(self, statement: Executable, values: dict[str, Any] | None = None) -> Sequence[Any]:
        """The rows that `statement` finds; what is kept back is written first."""
        self.flush()
        return self._read_stored(statement, values)

    def _read_stored(
        self, statement: Executable, values: dict[str, Any] | None = None
    ) -> Sequence[Any]:
        """As _read, for a caller that knows that nothing kept back matters to it."""
        self._go_on()
        try:
            return self._connection.execute(statement, values).all()
        except Exception as error:  # noqa: BLE001 -- raised again, as ours where it is
            self._fail(error)

    def _write(self, statement: Executable, values: Any = None) -> int:
        """Run a statement that changes rows, how many; what is kept back is written first."""
        self.flush()
        self._go_on()
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

    # Compiled text runs on the driver's own cursor: for a single row, SQLAlchemy would cost twice
    # what SQLite does. None of these writes what is kept back.

    def _read_hot(self, statement: str, values: tuple[Any, ...]) -> Sequence[Any]:
        """The rows that compiled text finds, for a caller that knows that nothing kept back
        matters to it."""
        try:
            cursor = self._cursor or self._own_cursor()
            cursor.execute(statement, values)
            return cursor.fetchall()
        except Exception as error:  # noqa: BLE001 -- raised again, as ours where it is
            self._fail(error)

    def _write_hot(self, statement: str, values: tuple[Any, ...]) -> int:
        """Run compiled text; how many rows it changed."""
        try:
            cursor = self._cursor or self._own_cursor()
            cursor.execute(statement, values)
            changed = cursor.rowcount
        except Exception as error:  # noqa: BLE001 -- raised again, as ours where it is
            self._fail(error)
        if changed:
            self._written = True
        return changed

    def _write_records(self) -> None:
        successes: list[Sequence[Any]] = []
        others: list[Sequence[Any]] = []
        for node_id, after in self._records.values():
            values = delivery_update(after)
            status, count, interrupted, due, holder, now, ended, reason, secret, detail, *key = (
                values
            )
            if status == "succeeded" and due is holder is reason is detail is None:
                successes.append((count, interrupted, now, ended, secret, *key, node_id))
            else:
                others.append((*values, node_id))
        presumed = len(self._records)
        self._records.clear()
        changed = self._write_many(self._hot.record, others) if others else 0
        for statement, taken in self._hot.record_success.runs(successes):
            changed += self._write_many(statement, taken)
        if changed != presumed:
            self._fail(WronglyPresumed(f"{changed} of {presumed} records were as presumed"))

    def _insert_kept(self, insert: Given, of: rows.Rows[Any], buffer: dict[Any, Any]) -> None:
        values = of.rows(buffer.values())
        buffer.clear()
        for statement, taken in insert.runs(values):
            self._write_many(statement, taken)

    def _write_many(self, statement: str, values: Sequence[Sequence[Any]]) -> int:
        """Run compiled text once for each of `values`; how many rows it changed in all."""
        try:
            cursor = self._cursor or self._own_cursor()
            cursor.executemany(statement, values)
            changed: int = cursor.rowcount
        except Exception as error:  # noqa: BLE001 -- raised again, as ours where it is
            self._fail(error)
        return changed

    def _go_on(self) -> None:
        """Raises what the transaction failed of, if it has."""
        if self.failure is not None:
            raise self.failure

    def _own_cursor(self) -> DBAPICursor:
        self._go_on()
        self._cursor = self._connection.connection.cursor()
        return self._cursor

    def _fail(self, error: BaseException) -> NoReturn:
        # The first one: what comes after it may only say that the transaction is broken.
        if self.failure is None:
            self.failure = translated(error)
        raise self.failure

    def _kept(self) -> tuple[int, int, int, int, int]:
        return (
            len(self._batches),
            len(self._deliveries),
            len(self._records),
            len(self._attempts),
            len(self._answers),
        )


_NOTHING = (0, 0, 0, 0, 0)


def chunks(values: Collection[K]) -> Iterator[list[K]]:
    """`values` in lists that fit into an IN."""
    iterator = iter(values)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk
