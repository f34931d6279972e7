"""Retention: what is over and old is removed, in small steps that give way to callbacks.

Of several nodes the eldest does it for all; that another one does it too, for a moment, is
harmless. A purge goes through the storage step by step: looks, on a reader's snapshot, for the
next that is old, and removes it in a short transaction that looks again. After each step it
pauses for several times as long as the step took, so that a storage that is busy is left alone the
more, and before each it waits for a backlog of writes to pass.

Where it stands is kept in memory: it starts over with each purge, or once a day where starting
over means to look at all that is kept. A purge that is cut short, at whatever moment, has removed
whole batches, and the next one goes on.

While storage is out of reach there is no purge; the next one makes up for it.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from operator import methodcaller
from typing import Final, TypeVar

import structlog
import trio

from primeflowd.clock import Clock
from primeflowd.config import RetentionSettings
from primeflowd.errors import StorageUnavailable
from primeflowd.hookspecs import BatchPosition, Storage, Tx
from primeflowd.instants import DAY, SECOND, Micros
from primeflowd.model import first_id

T = TypeVar("T")

KINDS: Final = ("batches", "items", "deliveries", "attempts", "answers", "response_bodies")

ROWS: Final = 300
"""About as many go in one transaction."""

LOOKED_AT: Final = 1_000
"""Rows that one look goes through, at most."""

GIVEN_BACK: Final = 64 * 4096
"""Bytes given back to the file system in one transaction."""

PAUSE: Final = 9
"""A step is followed by a pause of so many times what it took: the writer has at least nine tenths
of its time for callbacks."""

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
    ) -> None:
        """`is_eldest`: of several nodes only one purges for all."""
        self.removed: Counter[str] = Counter(dict.fromkeys(KINDS, 0))
        self.purged_at: Micros | None = None
        self._storage = storage
        self._settings = settings
        self._clock = clock
        self._is_eldest = is_eldest
        self._nap = trio.CancelScope()
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
        count = ROWS
        while count == ROWS:
            count = await self._step(lambda tx: tx.delete_answers(created_before, ROWS))
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
            for some in _portions(ids, ROWS):
                forget = methodcaller("forget_bodies", some, before)
                self.removed["response_bodies"] += await self._step(forget)
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
            # Most have a row of each kind, besides items.
            for some in _portions(expired, ROWS // 3):
                await self._remove(some, before)
            at_end = position is None

    async def _remove(self, batches: Sequence[tuple[str, str]], before: Micros) -> None:
        complete = False
        while not complete:
            gone = await self._step(lambda tx: tx.remove_batches(batches, before, ROWS))
            for kind in ("batches", "items", "deliveries", "attempts"):
                self.removed[kind] += getattr(gone, kind)
            complete = gone.complete

    async def _give_back(self) -> None:
        left = given = await self._look(lambda tx: tx.give_back(0))
        while left:
            left = await self._step(lambda tx: tx.give_back(GIVEN_BACK))
        if given:
            log.info("space_given_back", octets=given)

    async def _look(self, function: Callable[[Tx], T]) -> T:
        self._check_eldest()
        return await self._storage.read(function)

    async def _step(self, function: Callable[[Tx], T]) -> T:
        """One small transaction, and a pause.

        Raises:
            StorageUnavailable, _Resigned: nothing was done.
        """
        with trio.move_on_after(PATIENCE):
            while self._storage.statistics().backlog > CROWD:  # noqa: ASYNC110 -- nobody tells
                await trio.sleep(_LOOK_EVERY)
        self._check_eldest()
        began = trio.current_time()
        result = await self._storage.write(function)
        await trio.sleep(PAUSE * (trio.current_time() - began))
        return result

    def _check_eldest(self) -> None:
        if not self._is_eldest():
            raise _Resigned


def _portions(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (values[start : start + size] for start in range(0, len(values), size))
