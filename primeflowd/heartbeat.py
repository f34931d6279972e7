"""The heartbeat: lets the service manager see that this node works, and what it is doing.

Feeds the watchdog for as long as what matters goes round: Trio's loop, since it is that which runs
this; the scheduler, which asks storage for something every second or so; the storage's writer,
which is given something small to write. A storage that is out of reach is no reason to restart:
being told that it failed is an answer. Only one that gives no answer is.

Detects what hangs within twice the watchdog's time: after the last answer it is fed for that long,
and then the service manager waits for as long.

Blocks on storage, in a task of its own. It never raises.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol, TypeVar

import outcome
import trio

from primeflowd.clock import Clock
from primeflowd.errors import StorageUnavailable
from primeflowd.hookspecs import Storage, StorageStatistics, Tx
from primeflowd.instants import rfc3339
from primeflowd.service_manager import ServiceManager

T = TypeVar("T")

STATUS_EVERY: Final = 3.0
"""Seconds between two lines of status."""

# Of these, one may take its time and still be in time for the watchdog.
_WRITES_PER_LIMIT: Final = 6


class Tenure(Protocol):
    """What the heartbeat needs of the lease."""

    def holds(self) -> bool: ...


class Witness:
    """A storage as one of its users has it, and when that user last had an answer of any kind."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.answered_at = trio.current_time()

    async def write(
        self, function: Callable[[Tx], T], on_commit: Callable[[T], None] | None = None
    ) -> T:
        try:
            return await self._storage.write(function, on_commit)
        finally:
            self.answered_at = trio.current_time()

    def submit(
        self,
        function: Callable[[Tx], T],
        on_commit: Callable[[T], None],
        on_end: Callable[[outcome.Maybe[T]], None],
    ) -> None:
        def ended(result: outcome.Maybe[T]) -> None:
            self.answered_at = trio.current_time()
            on_end(result)

        try:
            self._storage.submit(function, on_commit, ended)
        except StorageUnavailable:
            self.answered_at = trio.current_time()
            raise

    async def read(self, function: Callable[[Tx], T]) -> T:
        try:
            return await self._storage.read(function)
        finally:
            self.answered_at = trio.current_time()

    async def wait_for_others(self) -> None:
        await self._storage.wait_for_others()

    def statistics(self) -> StorageStatistics:
        return self._storage.statistics()


class Heartbeat:
    """Made with the daemon; runs from readiness until everything is closed.

    Attributes:
        scheduling: the storage to give to the scheduler.
        draining: set once the scheduler is stopped on purpose.
    """

    def __init__(
        self,
        manager: ServiceManager,
        storage: Storage,
        clock: Clock,
        lease: Tenure,
        *,
        status: Callable[[], str],
        attempts: Callable[[], int],
    ) -> None:
        """`status` is a line for people, `attempts` how many were recorded so far."""
        self._manager = manager
        self._clock = clock
        self._lease = lease
        self._status = status
        self._attempts = attempts
        self.scheduling = Witness(storage)
        self._writing = Witness(storage)
        self.draining = False

    async def run(self) -> None:
        """Beat until cancelled."""
        async with trio.open_nursery() as nursery:
            if self._manager.address:
                nursery.start_soon(self._show)
            if self._manager.watchdog is not None:
                nursery.start_soon(self._write, self._manager.watchdog / _WRITES_PER_LIMIT)
                nursery.start_soon(self._feed, self._manager.watchdog)

    async def _feed(self, limit: float) -> None:
        while True:
            now = trio.current_time()
            if self.draining or not self._lease.holds():
                # It is stopped, or leaves storage alone until the lease holds again.
                self.scheduling.answered_at = now
            if min(self.scheduling.answered_at, self._writing.answered_at) >= now - limit:
                await self._manager.tell("WATCHDOG=1")
            await trio.sleep(limit / 2)

    async def _write(self, every: float) -> None:
        while True:
            # Not an empty transaction: on a full disk that would succeed, and storage look well.
            with suppress(StorageUnavailable):
                await self._writing.write(self._touch)
            await trio.sleep(every)

    def _touch(self, tx: Tx) -> None:
        tx.put_note("last_heartbeat", rfc3339(self._clock.now()))

    async def _show(self) -> None:
        attempts, since = self._attempts(), trio.current_time()
        while True:
            await trio.sleep(STATUS_EVERY)
            before, attempts = attempts, self._attempts()
            earlier, since = since, trio.current_time()
            rate = (attempts - before) / (since - earlier)
            await self._manager.tell(f"STATUS={self._status()}, {rate:.1f} attempts/s")
