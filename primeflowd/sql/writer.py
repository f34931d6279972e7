"""Group commit: one thread that owns the writing connection.

Operations are queued in Trio; the thread runs all that is queued in one transaction, and commits
once. An idle one is woken when Trio has been through all tasks that could run, by a task that the
first operation rescheduled: so what arrived together is committed together, and not the first by
itself while the others are still being read. It commits a single operation at once. A busy one
commits together what was queued meanwhile. No timer runs before a commit, but for the few
milliseconds after one of many rows in which more of them gather: see gathering.py.

Guarantees: an operation is answered after the commit that made it durable, or with an exception
and without a trace. Answers of a group reach Trio in one call; every `on_commit` comes before any
task wakes, and before any `on_end`. The transaction is open only while the group's functions run.

Blocks on: the disk, and other processes' locks up to the driver's busy timeout; never a Trio task.

Fails: an operation whose group fails gets StorageUnavailable, and one that is to blame what it
raised; see groups.py. The thread never dies of an operation.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, TypeVar

import outcome
import structlog
import trio
from sqlalchemy import Engine

from primeflowd.errors import StorageUnavailable
from primeflowd.hookspecs import StorageStatistics, Tx
from primeflowd.sql.groups import Groups, Operation, Result
from primeflowd.sql.statements import Statements

T = TypeVar("T")

MAX_GROUP: Final = 2_000
"""Operations in one group: bounds how long its transaction is open and its answers wait."""

CLOSE_WITHIN: Final = 30
"""Seconds that closing waits for what is queued."""

_log = structlog.get_logger(__name__)


class Writer:
    """Starts its thread when made, in a Trio task. Close it with aclose()."""

    def __init__(
        self,
        engine: Engine,
        statements: Statements,
        tell_others: Callable[[], None] | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`tell_others`: see Groups. `sleep` is called in the thread."""
        self._sleep = sleep
        self.engine: Final = engine
        self._groups = Groups(engine, statements, tell_others)
        self._queue: deque[Operation] = deque()
        # Taken by the thread, given back by Trio: a lock costs a tenth of what an Event does.
        self._news = threading.Lock()
        self._news.acquire()
        self._closing = False
        # The thread waits for news, with nothing else to do.
        self._idle = True
        self._token = trio.lowlevel.current_trio_token()
        # A daemon, so that a disk that hangs cannot keep the process from exiting.
        self._thread = threading.Thread(target=self._run, name="storage-writer", daemon=True)
        self._thread.start()
        self._rousing = True
        self._rouser = trio.lowlevel.spawn_system_task(self._rouse)

    # In Trio

    async def write(
        self, function: Callable[[Tx], T], on_commit: Callable[[T], None] | None = None
    ) -> T:
        """See hookspecs.Storage. A caller that is cancelled before the function is queued
        withdraws it, and later lets it run to the end."""
        await trio.lowlevel.checkpoint_if_cancelled()
        wake = partial(trio.lowlevel.reschedule, trio.lowlevel.current_task())
        operation = self._put(function, on_commit, wake)

        def abandon(_: object) -> trio.lowlevel.Abort:
            operation.on_end = None
            return trio.lowlevel.Abort.SUCCEEDED

        result: T = await trio.lowlevel.wait_task_rescheduled(abandon)
        return result

    def submit(
        self,
        function: Callable[[Tx], T],
        on_commit: Callable[[T], None],
        on_end: Callable[[outcome.Maybe[T]], None],
    ) -> None:
        """See hookspecs.Storage."""
        self._put(function, on_commit, on_end)

    def _put(
        self,
        function: Callable[[Tx], T],
        on_commit: Callable[[T], None] | None,
        on_end: Callable[[Result], object],
    ) -> Operation:
        if self._closing:
            raise StorageUnavailable("the storage is closed")
        operation = Operation(function, on_commit, on_end)
        self._queue.append(operation)
        self._announce()
        return operation

    def statistics(self) -> StorageStatistics:
        return StorageStatistics(
            healthy=self._groups.healthy,
            backlog=len(self._queue),
            commits=self._groups.commits,
            operations=self._groups.operations,
            failures=self._groups.failures,
            last_failure=self._groups.last_failure,
            commit_times=self._groups.commit_times,
        )

    async def aclose(self) -> None:
        """Commit what is queued and end the thread. Shielded; takes at most CLOSE_WITHIN seconds,
        plus what one commit takes."""
        self._closing = True
        self._tell()
        self._rouse_soon()
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._thread.join, CLOSE_WITHIN)
        if self._thread.is_alive():
            _log.error("storage_not_finished", unwritten=len(self._queue))

    def _announce(self) -> None:
        """Something was queued."""
        if not self._news.locked():
            # It was told, and has not looked at the queue since.
            return
        if self._idle:
            self._rouse_soon()
        else:
            # It looks once it is done, which takes longer than being through with all tasks; to
            # rouse it would cost a round of Trio's loop.
            self._tell()

    def _rouse_soon(self) -> None:
        if not self._rousing:
            self._rousing = True
            trio.lowlevel.reschedule(self._rouser)

    async def _rouse(self) -> None:
        try:
            while not self._closing:
                self._rousing = False
                if self._queue:
                    self._tell()
                await trio.lowlevel.wait_task_rescheduled(_abort)
        finally:
            self._rousing = True  # for good: it cannot be rescheduled any more

    def _tell(self) -> None:
        # No wake-up is lost: the thread takes the lock before it looks at the queue.
        if self._news.locked():
            self._news.release()

    def _answer(self, group: Sequence[Operation]) -> None:
        for operation in group:
            if operation.on_commit is not None and isinstance(operation.result, outcome.Value):
                try:
                    operation.on_commit(operation.result.value)
                except Exception:  # noqa: BLE001 -- one caller's bug must not strand the others
                    _log.exception("a callback raised after its commit")
        for operation in group:
            assert operation.result is not None
            if operation.on_end is not None:
                try:
                    operation.on_end(operation.result)
                except Exception:  # noqa: BLE001 -- as above
                    _log.exception("a callback raised at the end of an operation")

    # In the thread

    def _run(self) -> None:
        while not self._closing or self._queue:
            self._idle = True
            self._news.acquire()
            self._idle = False
            if not self._queue:
                # News of what rode along with the last group.
                continue
            if pause := self._groups.gathering.seconds:
                self._sleep(pause)
            full = True
            while full and self._queue:
                size = min(len(self._queue), MAX_GROUP)
                group = [self._queue.popleft() for _ in range(size)]
                self._groups.run(group)
                # Once the run has finished, nobody is left who waits.
                with suppress(trio.RunFinishedError):
                    self._token.run_sync_soon(self._answer, group)
                # What came since was told of.
                full = size == MAX_GROUP
        self._groups.close()


def _abort(_: object) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.SUCCEEDED
