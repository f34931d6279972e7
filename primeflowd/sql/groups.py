"""Runs groups of operations in transactions on the writing connection.

A group is one transaction, if it can be. Whatever spoils it (a function that raises after it
wrote, a late UniqueViolation, a collision with another node, a value that cannot be stored, a
statement that fails) is one operation's: the group is rolled back and each of its operations runs
again alone, in a transaction of its own. Some of it is likely to be gone by the next try, and the
group is tried once more as it is; of a connection that breaks before the commit was sent it is
most likely that it had been dead for a while.

Fails with StorageUnavailable where the database fails at the beginning or at the commit, or the
connection breaks again. Blocks; used by one thread.
"""

import time
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import outcome
import structlog
from sqlalchemy import Engine

from primeflowd.errors import StorageUnavailable, UniqueViolation
from primeflowd.histogram import COMMIT_TIMES, Histogram
from primeflowd.hookspecs import Tx
from primeflowd.instants import SECOND
from primeflowd.sql.failures import Collision, Disconnected
from primeflowd.sql.gathering import Gathering
from primeflowd.sql.session import WronglyPresumed
from primeflowd.sql.statements import Statements
from primeflowd.sql.tx import SqlTx
from primeflowd.sql.writing_connection import WritingConnection

_TOGETHER_AGAIN: Final[dict[type[BaseException], int]] = {
    Collision: 1,
    Disconnected: 1,
    WronglyPresumed: 1,
}
"""How often a group runs again as it is, by what it met, before its operations run alone."""

_ALONE_AGAIN: Final[dict[type[BaseException], int]] = {
    # Somebody was quicker. On its second run the function's own check sees the row.
    UniqueViolation: 1,
    Disconnected: 1,
}
"""How often an operation that runs alone runs again."""

_ALL_ALONE_AGAIN: Final[dict[type[BaseException], int]] = {
    # Each may have been a long wait for a lock. The rest of the group waits with it, and so does
    # the next renewal of the lease.
    Collision: 3,
}
"""How often operations of a group that run alone run again, all together."""

Result: TypeAlias = outcome.Value[Any] | outcome.Error

_log = structlog.get_logger(__name__)


class Operation:
    """A function on its way through the writer. `on_end` is None once nobody waits for it."""

    __slots__ = ("function", "on_commit", "on_end", "result")

    def __init__(
        self,
        function: Callable[[Tx], Any],
        on_commit: Callable[[Any], None] | None,
        on_end: Callable[[Result], object],
    ) -> None:
        self.function = function
        self.on_commit = on_commit
        self.on_end: Callable[[Result], object] | None = on_end
        self.result: Result | None = None


class _Spoilt(Exception):
    """The group's transaction must be rolled back."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(cause)
        self.cause: Final = cause


class Groups:
    """Attributes:
    healthy, commits, operations, failures, last_failure, commit_times: as in StorageStatistics.
    gathering: told of each commit.
    """

    def __init__(
        self, engine: Engine, statements: Statements, tell_others: Callable[[], None] | None
    ) -> None:
        """`tell_others` is called after a commit that left something for other nodes; it must
        neither block nor raise."""
        self.healthy = True
        self.commits = 0
        self.operations = 0
        self.failures = 0
        self.last_failure: str | None = None
        self.commit_times = Histogram(SECOND, COMMIT_TIMES)
        self.gathering: Final = Gathering()
        self._begun = 0.0
        self._connection = WritingConnection(engine)
        self._statements = statements
        self._tell_others = tell_others

    def run(self, group: list[Operation]) -> None:
        """Give each operation its result, whatever happens."""
        try:
            self._commit(group)
        except StorageUnavailable as error:
            self._give_up(group, error)
        except BaseException as error:  # noqa: BLE001 -- without the thread all would wait for ever
            _log.exception("the storage writer met a bug")
            self._give_up(group, error)

    def close(self) -> None:
        """Close the connection; the next group opens another."""
        self._connection.close()

    def _commit(self, group: list[Operation]) -> None:
        """Raises StorageUnavailable if the database is out of reach."""
        runs_left = dict(_TOGETHER_AGAIN)
        while True:
            try:
                # Once it was wrong, nothing is presumed any more.
                self._commit_together(group, presuming=bool(runs_left[WronglyPresumed]))
                return
            except _Spoilt as spoilt:
                self._connection.roll_back()
                cause = spoilt.cause
            if not runs_left.get(type(cause)):
                break
            runs_left[type(cause)] -= 1
        if isinstance(cause, StorageUnavailable) and self._connection.open is None:
            # One by one they would only meet the same, each for as long.
            raise cause
        self._commit_each(group)

    def _commit_together(self, group: list[Operation], *, presuming: bool) -> None:
        tx = self._begin(presuming=presuming)
        results: list[Result] = []
        for operation in group:
            tx.begin_function()
            try:
                results.append(outcome.Value(operation.function(tx)))
            except BaseException as error:  # it is the caller's, who gets it as it is
                if not tx.withdraw():
                    raise _Spoilt(tx.failure or error) from error
                results.append(outcome.Error(error))
            if tx.failure is not None:
                raise _Spoilt(tx.failure)
        try:
            tx.flush()
        except Exception as error:
            # A row of any of them: run alone, each gets its own answer.
            raise _Spoilt(tx.failure or error) from error
        self._finish(tx, len(group))
        # Not before: an operation that has its result is one that is stored.
        for operation, result in zip(group, results, strict=True):
            operation.result = result

    def _commit_each(self, group: list[Operation]) -> None:
        runs_left = dict(_ALL_ALONE_AGAIN)
        for operation in group:
            runs_left |= _ALONE_AGAIN
            while True:
                result = self._commit_alone(operation)
                met = type(result.error) if isinstance(result, outcome.Error) else None
                if met is None or not runs_left.get(met):
                    break
                runs_left[met] -= 1
            if (
                isinstance(result, outcome.Error)
                and isinstance(result.error, StorageUnavailable)
                and met is not Collision
            ):
                self._fail(result.error)
            operation.result = result

    def _commit_alone(self, operation: Operation) -> Result:
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
            self._finish(tx, 1)
            return outcome.Value(value)
        self._connection.roll_back()
        return outcome.Error(failure)

    def _give_up(self, group: list[Operation], error: BaseException) -> None:
        """Fail what has no result yet. Of a group that ran one by one, a part may have its."""
        self._fail(error)
        self._connection.roll_back()
        for operation in group:
            if operation.result is None:
                failure = StorageUnavailable(_said_by(error))
                failure.__cause__ = error
                operation.result = outcome.Error(failure)

    def _fail(self, error: BaseException) -> None:
        self.healthy = False
        self.failures += 1
        self.last_failure = _said_by(error)

    def _begin(self, *, presuming: bool = False) -> SqlTx:
        self._begun = time.perf_counter()
        connection = self._connection.begin()
        return SqlTx(connection, self._statements, writes=True, presuming=presuming)

    def _finish(self, tx: SqlTx, operations: int) -> None:
        self._connection.commit()
        self.commit_times.observe(round((time.perf_counter() - self._begun) * SECOND))
        self.healthy = True
        self.commits += 1
        self.operations += operations
        self.gathering.committed(operations, tx.rows)
        if tx.left_for_others and self._tell_others is not None:
            self._tell_others()


def _said_by(error: BaseException) -> str:
    return str(error) or type(error).__name__
