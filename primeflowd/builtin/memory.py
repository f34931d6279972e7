"""Storage in memory, for `memory://`: a fake that passes the same conformance suite as SQLite.

For tests and demonstrations; all is lost at exit. It uses no threads, so it works under Trio's
autojump clock. Each write is a transaction of its own, run in the caller's task.

A test may break it (`fail_with`), or keep commits waiting (`hold()` and `resume()`).
"""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from typing import Final, TypeVar

import outcome
import structlog
import trio

from primeflowd.builtin.memory_tx import MemoryTx
from primeflowd.clock import Clock, SystemClock
from primeflowd.config import Config
from primeflowd.errors import StorageUnavailable, UniqueViolation
from primeflowd.histogram import COMMIT_TIMES, Histogram
from primeflowd.hookspecs import Storage, StorageStatistics, Tx, hookimpl
from primeflowd.instants import SECOND

T = TypeVar("T")

URL: Final = "memory://"

_log = structlog.get_logger(__name__)


@hookimpl
def open_storage(
    config: Config, node_id: str | None
) -> AbstractAsyncContextManager[Storage] | None:
    return open_memory() if config.storage_url == URL else None


@asynccontextmanager
async def open_memory(clock: Clock | None = None) -> AsyncIterator["MemoryStorage"]:
    storage = MemoryStorage(clock or SystemClock())
    yield storage
    storage.fail_with = StorageUnavailable("the storage is closed")


class MemoryStorage:
    """Storage over one MemoryTx.

    Attributes:
        fail_with: while set, reads and writes raise it, as over a broken disk.
    """

    def __init__(self, clock: Clock) -> None:
        """`clock` is the storage's own, by which leases end."""
        self.fail_with: StorageUnavailable | None = None
        self._tx = MemoryTx(clock)
        self._healthy = True
        self._commits = 0
        self._failures = 0
        self._last_failure: str | None = None
        self._commit_times = Histogram(SECOND, COMMIT_TIMES)
        self._held: list[Callable[[], None]] | None = None

    async def write(
        self, function: Callable[[Tx], T], on_commit: Callable[[T], None] | None = None
    ) -> T:
        """See hookspecs.Storage. A caller cancelled before its turn withdraws the function; one
        cancelled while commits are held does not."""
        await trio.lowlevel.checkpoint()
        if self._held is None:
            return self._commit(function, on_commit)
        waiting: list[trio.lowlevel.Task] = [trio.lowlevel.current_task()]

        def commit() -> None:
            result = outcome.capture(self._commit, function, on_commit)
            for task in waiting:
                trio.lowlevel.reschedule(task, result)

        def abandon(_: object) -> trio.lowlevel.Abort:
            waiting.clear()
            return trio.lowlevel.Abort.SUCCEEDED

        self._held.append(commit)
        held: T = await trio.lowlevel.wait_task_rescheduled(abandon)
        return held

    def submit(
        self,
        function: Callable[[Tx], T],
        on_commit: Callable[[T], None],
        on_end: Callable[[outcome.Maybe[T]], None],
    ) -> None:
        """See hookspecs.Storage."""

        def commit() -> None:
            on_end(outcome.capture(self._commit, function, on_commit))

        if self._held is None:
            trio.lowlevel.current_trio_token().run_sync_soon(commit)
        else:
            self._held.append(commit)

    async def read(self, function: Callable[[Tx], T]) -> T:
        await trio.lowlevel.checkpoint()
        if self.fail_with is not None:
            raise self.fail_with
        return function(self._tx)

    def statistics(self) -> StorageStatistics:
        return StorageStatistics(
            healthy=self._healthy,
            backlog=len(self._held or ()),
            commits=self._commits,
            operations=self._commits,
            failures=self._failures,
            last_failure=self._last_failure,
            commit_times=self._commit_times,
        )

    async def wait_for_others(self) -> None:
        """Never: no other process sees this storage."""
        await trio.sleep_forever()

    def hold(self) -> None:
        """Keep writes waiting from now on, as behind a slow disk."""
        self._held = []

    def resume(self) -> None:
        """Commit what waits, in order, and hold no longer."""
        held, self._held = self._held or [], None
        for commit in held:
            commit()

    def _commit(self, function: Callable[[Tx], T], on_commit: Callable[[T], None] | None) -> T:
        begun = time.perf_counter()
        try:
            result = self._run(function)
        except UniqueViolation:
            result = self._run(function)
        self._commit_times.observe(round((time.perf_counter() - begun) * SECOND))
        self._commits += 1
        if on_commit is not None:
            try:
                on_commit(result)
            except Exception:  # noqa: BLE001 -- what it follows is committed all the same
                _log.exception("a callback raised after its commit")
        return result

    def _run(self, function: Callable[[Tx], T]) -> T:
        self._healthy = self.fail_with is None
        if self.fail_with is not None:
            self._failures += 1
            self._last_failure = str(self.fail_with)
            raise self.fail_with
        self._tx.begin()
        # Whatever it raises, a function that raises changes nothing.
        with ExitStack() as unless_done:
            unless_done.callback(self._tx.undo)
            result = function(self._tx)
            unless_done.pop_all()
        return result
