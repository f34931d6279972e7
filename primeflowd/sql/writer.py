"""Group commit: one thread that owns the writing connection.

Trio tasks queue operations; the thread runs all that queued while it made the commit before, in
one transaction, and commits once. There is no timer: an idle writer commits a single operation at
once, a busy one commits hundreds together.

Guarantees: an operation is answered after the commit that made it durable, or with an exception
and without a trace. Answers of a group reach Trio in one call; every `on_commit` comes before any
task wakes. The transaction is open only while the group's functions run.

Blocks on: the disk, and other processes' locks up to the driver's busy timeout; never a Trio task.

Fails: a database that fails at the beginning or at the commit fails the group with
StorageUnavailable. Any other trouble (a function that raises after it wrote, a late
UniqueViolation, a value that cannot be stored, a statement that fails) is one operation's: the
group is rolled back and each of its operations runs again alone, in a transaction of its own. The
thread never dies of an operation.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, TypeAlias, TypeVar

import outcome
import structlog
import trio
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from primeflowd.errors import StorageUnavailable, UniqueViolation
from primeflowd.hookspecs import StorageStatistics, Tx
from primeflowd.sql.failures import translated
from primeflowd.sql.statements import Statements
from primeflowd.sql.tx import SqlTx

T = TypeVar("T")

MAX_GROUP: Final = 2_000
"""Operations in one group: bounds how long its transaction is open and its answers wait."""

CLOSE_WITHIN: Final = 30
"""Seconds that closing waits for what is queued."""

_log = structlog.get_logger(__name__)


Result: TypeAlias = outcome.Value[Any] | outcome.Error


class _Operation:
    """A function on its way through the writer. `task` is None once nobody waits for it."""

    __slots__ = ("function", "on_commit", "result", "task")

    def __init__(
        self, function: Callable[[Tx], Any], on_commit: Callable[[Any], None] | None
    ) -> None:
        self.function = function
        self.on_commit = on_commit
        self.task: trio.lowlevel.Task | None = trio.lowlevel.current_task()
        self.result: Result | None = None


class _Spoilt(Exception):
    """The group's transaction must be rolled back and its operations run alone."""


class Writer:
    """Starts its thread when made, in a Trio task. Close it with aclose()."""

    def __init__(self, engine: Engine, statements: Statements) -> None:
        self._engine = engine
        self._statements = statements
        self._connection: Connection | None = None
        self._queue: deque[_Operation] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._healthy = True
        self._commits = 0
        self._operations = 0
        self._token = trio.lowlevel.current_trio_token()
        # A daemon, so that a disk that hangs cannot keep the process from exiting.
        self._thread = threading.Thread(target=self._run, name="storage-writer", daemon=True)
        self._thread.start()

    # In Trio

    async def write(
        self, function: Callable[[Tx], T], on_commit: Callable[[T], None] | None = None
    ) -> T:
        """See hookspecs.Storage. A caller that is cancelled before the function is queued
        withdraws it, and later lets it run to the end."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._closing:
            raise StorageUnavailable("the storage is closed")
        operation = _Operation(function, on_commit)
        self._queue.append(operation)
        # Setting an event takes a lock, and most of the time it is set already. No wake-up is
        # lost: the thread clears the event before it looks at the queue.
        if not self._wake.is_set():
            self._wake.set()

        def abandon(_: object) -> trio.lowlevel.Abort:
            operation.task = None
            return trio.lowlevel.Abort.SUCCEEDED

        result: T = await trio.lowlevel.wait_task_rescheduled(abandon)
        return result

    def statistics(self) -> StorageStatistics:
        return StorageStatistics(
            healthy=self._healthy,
            backlog=len(self._queue),
            commits=self._commits,
            operations=self._operations,
        )

    async def aclose(self) -> None:
        """Commit what is queued and end the thread. Shielded; takes at most CLOSE_WITHIN seconds,
        plus what one commit takes."""
        self._closing = True
        self._wake.set()
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._thread.join, CLOSE_WITHIN)
        if self._thread.is_alive():
            _log.error("the storage did not finish in time", unwritten=len(self._queue))

    def _answer(self, group: Sequence[_Operation]) -> None:
        for operation in group:
            if operation.on_commit is not None and isinstance(operation.result, outcome.Value):
                try:
                    operation.on_commit(operation.result.value)
                except Exception:  # noqa: BLE001 -- one caller's bug must not strand the others
                    _log.exception("a callback raised after its commit")
        for operation in group:
            assert operation.result is not None
            if operation.task is not None:
                trio.lowlevel.reschedule(operation.task, operation.result)

    # In the thread

    def _run(self) -> None:
        while not self._closing or self._queue:
            self._wake.wait()
            self._wake.clear()
            while self._queue:
                size = min(len(self._queue), MAX_GROUP)
                self._commit([self._queue.popleft() for _ in range(size)])
        self._disconnect()

    def _commit(self, group: list[_Operation]) -> None:
        try:
            try:
                self._commit_together(group)
            except _Spoilt:
                self._roll_back()
                self._commit_each(group)
        except StorageUnavailable as error:
            self._give_up(group, error)
        except BaseException as error:  # noqa: BLE001 -- without the thread all would wait for ever
            _log.exception("the storage writer met a bug")
            self._give_up(group, error)
        # Once the run has finished, nobody is left who waits.
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._answer, group)

    def _commit_together(self, group: list[_Operation]) -> None:
        tx = self._begin()
        results: list[Result] = []
        for operation in group:
            tx.begin_function()
            try:
                results.append(outcome.Value(operation.function(tx)))
            except BaseException as error:  # it is the caller's, who gets it as it is
                if not tx.withdraw():
                    raise _Spoilt from error
                results.append(outcome.Error(error))
            if tx.failure is not None:
                raise _Spoilt
        try:
            tx.flush()
        except Exception as error:
            # A row of any of them: run alone, each gets its own answer.
            raise _Spoilt from error
        self._finish(len(group))
        # Not before: an operation that has its result is one that is stored.
        for operation, result in zip(group, results, strict=True):
            operation.result = result

    def _commit_each(self, group: list[_Operation]) -> None:
        for operation in group:
            result = self._commit_alone(operation)
            if isinstance(result, outcome.Error) and isinstance(result.error, UniqueViolation):
                # Somebody was quicker. On its second run the function's own check sees the row.
                result = self._commit_alone(operation)
            operation.result = result

    def _commit_alone(self, operation: _Operation) -> Result:
        """Raises StorageUnavailable if the database cannot begin or commit at all."""
        tx = self._begin()
        try:
            value = operation.function(tx)
            tx.flush()
        except BaseException as error:  # noqa: BLE001 -- the caller gets it as it is
            failure: BaseException | None = tx.failure or error
        else:
            failure = tx.failure
        if failure is None:
            self._finish(1)
            return outcome.Value(value)
        if isinstance(failure, StorageUnavailable):
            self._healthy = False
        self._roll_back()
        return outcome.Error(failure)

    def _give_up(self, group: list[_Operation], error: BaseException) -> None:
        """Fail what has no result yet. Of a group that ran one by one, a part may have its."""
        self._healthy = False
        self._roll_back()
        for operation in group:
            if operation.result is None:
                failure = StorageUnavailable(str(error) or type(error).__name__)
                failure.__cause__ = error
                operation.result = outcome.Error(failure)

    # The connection

    def _begin(self) -> SqlTx:
        try:
            if self._connection is None:
                self._connection = self._engine.connect()
            self._connection.begin()
        except DBAPIError as error:
            raise translated(error)  # noqa: B904 -- it has its cause
        return SqlTx(self._connection, self._statements)

    def _finish(self, operations: int) -> None:
        assert self._connection is not None
        try:
            self._connection.commit()
        except DBAPIError as error:
            raise translated(error)  # noqa: B904 -- it has its cause
        self._healthy = True
        self._commits += 1
        self._operations += operations

    def _roll_back(self) -> None:
        """End the transaction without a trace; the connection too, if it is beyond that.

        It is kept if it can be: on a full disk SQLite could not open the file anew.
        """
        if self._connection is None:
            return
        try:
            driver = self._connection.connection
            self._connection.rollback()
            # After a commit that failed SQLAlchemy takes the transaction for ended, and tells the
            # driver nothing; the database may well still be in it.
            driver.rollback()
            usable = not self._connection.invalidated
        except Exception:  # noqa: BLE001 -- however it is broken, _begin() opens another
            usable = False
        if not usable:
            self._disconnect()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            # It may be too broken even for that; it is out of use all the same.
            with suppress(Exception):
                connection.close()
