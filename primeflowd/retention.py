"""Retention: what is over and old is removed, in small steps that give way to callbacks.

Of several nodes the eldest does it for all; that another one does it too, for a moment, is
harmless. A purge goes through the storage step by step: looks, on a reader's snapshot, for the
next that is old, and removes it in a short transaction that looks again. How much goes in one
follows from what the last ones took: callbacks that are committed with it wait for a millisecond or
two. After each step it pauses for several times as long as the step took, so that a storage that is
busy is left alone the more, and before each it waits for a backlog of writes to pass. While nobody
else writes, steps are longer and pauses short: then it removes most.

Where it stands is kept in memory: it starts over with each purge, or once a day where starting
over means to look at all that is kept. A purge that is cut short, at whatever moment, has removed
whole batches, and the next one goes on.

While storage is out of reach there is no purge; the next one makes up for it.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from operator import methodcaller
from typing import Final, TypeVar

import structlog
import trio

from primeflowd.clock import Clock
from primeflowd.config import RetentionSettings
from primeflowd.errors import StorageUnavailable
from primeflowd.hookspecs import BatchPosition, Removed, Storage, Tx
from primeflowd.instants import DAY, SECOND, Micros
from primeflowd.model import first_id
from primeflowd.pace import BUSY, LATE, QUIET, Pace, Speed

T = TypeVar("T")

KINDS: Final = ("batches", "items", "deliveries", "attempts", "answers", "response_bodies")

CALM: Final = 1.0
"""It is quiet once nobody else has written for so many seconds."""

LATE_AFTER: Final = 12 * 3600.0
"""Seconds from the beginning of a purge until it is late, and takes more of the writer's time: what
comes in all day must not fill the disk."""

LOOKED_AT: Final = 500
"""Rows that one look goes through, at most."""

_OCTETS: Final = 4096
"""Bytes given back to the file system for what would be one row."""

CROWD: Final = 100
PATIENCE: Final = 5.0
"""While more writes than that wait for a commit, a step waits too, for at most so many seconds."""

_LOOK_EVERY: Final = 0.05

log = structlog.get_logger()


class _Resigned(Exception):
    """Another node is the eldest now."""


class Retention:
    """The service that purges.

    Attributes:
        removed: how many rows, by kind.
        purged_at: when the last purge that left nothing old began; None before the first.
    """

    def __init__(
        self,
        storage: Storage,
        settings: RetentionSettings,
        clock: Clock,
        is_eldest: Callable[[], bool] = lambda: True,
        timer: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`is_eldest`: of several nodes only one purges for all. `timer`: seconds, for what steps
        take; it is called in the storage's thread."""
        self.removed: Counter[str] = Counter(dict.fromkeys(KINDS, 0))
        self.purged_at: Micros | None = None
        self._storage = storage
        self._settings = settings
        self._clock = clock
        self._is_eldest = is_eldest
        self._timer = timer
        self._nap = trio.CancelScope()
        # By what a step removes. How many writes others have made, and since when none.
        self._speeds: dict[str, Speed] = defaultdict(Speed)
        self._own = self._others = 0
        self._calm_since = self._began = trio.current_time()
        # Everything up to here was looked at, since then.
        self._bodies_after = ""
        self._bodies_began: Micros = 0

    def reconfigure(self, settings: RetentionSettings) -> None:
        """Go by `settings` from now on; the next purge begins `every` after the last one."""
        self._settings = settings
        self._nap.cancel()

    async def run(self) -> None:
        """Purge now and then, until cancelled."""
        while True:
            await self._pause()
            try:
                await self._purge()
            except StorageUnavailable as error:
                log.warning("purge_delayed", error=str(error))
            except _Resigned:
                self.purged_at = None

    async def _pause(self) -> None:
        since = trio.current_time()
        while (until := since + self._settings.every.seconds) > trio.current_time():
            with trio.CancelScope() as self._nap:
                await trio.sleep_until(until)

    async def _purge(self) -> None:
        self._check_eldest()
        self._began = trio.current_time()
        began, before = self._clock.now(), self.removed.copy()
        try:
            await self._remove_answers()
            await self._forget_bodies()
            await self._remove_batches()
        finally:
            if removed := self.removed - before:
                seconds = round((self._clock.now() - began) / SECOND, 1)
                log.info("old_rows_removed", seconds=seconds, **removed)
        await self._give_back()
        self.purged_at = began

    async def _remove_answers(self) -> None:
        created_before = self._clock.now() - self._settings.answers.micros
        limit = count = 0
        while count == limit:
            limit = self._amount("answers")
            remove = methodcaller("delete_answers", created_before, limit)
            count = await self._step("answers", remove, int)
            self.removed["answers"] += count

    async def _forget_bodies(self) -> None:
        age, now = self._settings.response_bodies.micros, self._clock.now()
        if not age:
            return
        if now - self._bodies_began >= DAY:
            # All over again, now and then: for attempts that were made long after their deliveries.
            self._bodies_began, self._bodies_after = now, ""
        before = now - age
        end: str | None = self._bodies_after
        while end is not None:
            look = methodcaller("old_bodies", before, self._bodies_after, LOOKED_AT)
            ids, end = await self._look(look)
            while ids:
                some = ids[: self._amount("response_bodies")]
                ids = ids[len(some) :]
                forget = methodcaller("forget_bodies", some, before)
                forgotten = await self._step("response_bodies", forget, int)
                self.removed["response_bodies"] += forgotten
            self._bodies_after = first_id(before) if end is None else end

    async def _remove_batches(self) -> None:
        age = self._settings.batches.micros
        if not age:
            return
        before = self._clock.now() - age
        position: BatchPosition | None = None
        at_end = False
        while not at_end:
            look = methodcaller("expired_batches", before, position, LOOKED_AT)
            expired, position = await self._look(look)
            while expired:
                # Most have a row of each kind, besides items.
                some = expired[: self._amount("batches") // 3]
                expired = expired[len(some) :]
                await self._remove(some, before)
            at_end = position is None

    async def _remove(self, batches: Sequence[tuple[str, str]], before: Micros) -> None:
        complete = False
        while not complete:
            rows = self._amount("batches")
            remove = methodcaller("remove_batches", batches, before, rows)
            gone = await self._step("batches", remove, _rows_of)
            for kind in ("batches", "items", "deliveries", "attempts"):
                self.removed[kind] += getattr(gone, kind)
            complete = gone.complete

    async def _give_back(self) -> None:
        left = given = await self._look(lambda tx: tx.give_back(0))
        while left:
            left = await self._give_some()
        if given:
            await self._look(lambda tx: tx.give_back(0))
            log.info("space_given_back", octets=given)

    async def _give_some(self) -> int:
        rows = self._amount("space")
        give = methodcaller("give_back", rows * _OCTETS)
        return await self._step("space", give, lambda _: rows)

    async def _look(self, function: Callable[[Tx], T]) -> T:
        """Raises as _step."""
        self._check_eldest()
        pace, began = self._pace(), trio.current_time()
        result = await self._storage.read(function)
        await trio.sleep(pace.rest * (trio.current_time() - began))
        return result

    async def _step(self, kind: str, function: Callable[[Tx], T], rows: Callable[[T], int]) -> T:
        """One small transaction, and a pause. `rows`: how many went, by its result.

        Raises:
            StorageUnavailable, _Resigned: nothing was done.
        """
        with trio.move_on_after(PATIENCE):
            while self._storage.statistics().backlog > CROWD:  # noqa: ASYNC110 -- nobody tells
                await trio.sleep(_LOOK_EVERY)
        self._check_eldest()
        pace, began = self._pace(), trio.current_time()
        result, took = await self._storage.write(self._timed(function))
        self._own += 1
        self._speeds[kind].learn(rows(result), took)
        await trio.sleep(pace.rest * (trio.current_time() - began))
        return result

    def _timed(self, function: Callable[[Tx], T]) -> Callable[[Tx], tuple[T, float]]:
        def timed(tx: Tx) -> tuple[T, float]:
            began = self._timer()
            return function(tx), self._timer() - began

        return timed

    def _pace(self) -> Pace:
        statistics = self._storage.statistics()
        others = statistics.operations + statistics.backlog - self._own
        if others != self._others:
            self._others, self._calm_since = others, trio.current_time()
        now = trio.current_time()
        if now - self._calm_since >= CALM:
            return QUIET
        return LATE if now - self._began >= LATE_AFTER else BUSY

    def _amount(self, kind: str) -> int:
        """Rows for the next step of this kind."""
        pace = self._pace()
        return self._speeds[kind].rows(pace.aim, pace.most)

    def _check_eldest(self) -> None:
        if not self._is_eldest():
            raise _Resigned


def _rows_of(gone: Removed) -> int:
    return gone.batches + gone.items + gone.deliveries + gone.attempts
