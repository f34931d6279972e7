"""Attempts on their way into storage: put on record together, as many as have come meanwhile.

One transaction for all of them, and one wake-up for its commit, cost a fifth of what a sender that
waits for its own would. Sending goes on meanwhile; `limit` attempts may be on their way, and then
it waits (`room`), so that slow storage slows sending instead of filling memory.

Guarantees: an attempt that was given is on record, or is made again under the same number after a
crash. It is settled by the commit, in the order of the commits: an order about its delivery that is
committed next finds it where it belongs.

Blocks on storage. While that is out of reach it keeps trying with what it has.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import msgspec
import structlog
import trio

from primeflowd.destination import Held
from primeflowd.errors import StorageUnavailable
from primeflowd.hookspecs import Fate, Storage, Tx
from primeflowd.model import Attempt, Delivery

log = structlog.get_logger()

# Seconds that the first attempt of a group waits for others. At full load they ride with what is
# accepted meanwhile; at less, this is what keeps each from having a commit of its own.
_LINGER = 0.01
# Seconds between tries while storage is out of reach.
_RETRY = 0.5


class Record(msgspec.Struct, eq=False, gc=False):
    """An attempt, and its delivery as it is held and after it.

    Attributes:
        held: as it was when the attempt began, so claimed by what this node was called then: it may
            have lost that claim and begun anew since.
        in_doubt: a commit with it failed, and may have happened all the same.
    """

    held: Held
    attempt: Attempt
    after: Delivery
    in_doubt: bool = False


Otherwise: TypeAlias = Mapping[str, tuple[Fate, Delivery]]
"""By the ids of attempts that were not simply recorded: what became of them, and how their
deliveries are stored. Nearly always empty."""


class Records:
    """What is to be recorded. `run` does it; it is not cancelled from outside, but stopped."""

    def __init__(
        self,
        storage: Storage,
        limit: int,
        settle: Callable[[Sequence[Record], Otherwise], None],
    ) -> None:
        """`settle` is told of all attempts of a commit, by the commit."""
        self._storage = storage
        self._limit = limit
        self._settle = settle
        self._waiting: list[Record] = []
        self._writing: Sequence[Record] = ()
        self._scope = trio.CancelScope(shield=True)
        self._given = trio.Event()
        self._hurried = trio.Event()
        self._lot = trio.lowlevel.ParkingLot()

    def reconfigure(self, limit: int) -> None:
        """Go by another limit."""
        self._limit = limit
        self._lot.unpark_all()

    def __len__(self) -> int:
        """How many are not stored yet."""
        return len(self._waiting) + len(self._writing)

    @property
    def full(self) -> bool:
        """Too many are on their way: none shall be added that is not over yet."""
        return len(self._waiting) + len(self._writing) >= self._limit

    async def room(self) -> None:
        """Wait while it is full."""
        while self.full:
            await self._lot.park()

    def give(self, record: Record) -> None:
        """Have an attempt recorded."""
        if not self._waiting:
            self._given.set()
        self._waiting.append(record)

    async def all_stored(self) -> None:
        """Wait until nothing is left to record; from now on nothing lingers."""
        self._hurried.set()
        while len(self):
            await self._lot.park()

    async def run(self) -> None:
        """Record what is given, until stopped."""
        with self._scope:
            while True:
                await self._given.wait()
                self._given = trio.Event()
                with trio.move_on_after(_LINGER):
                    await self._hurried.wait()
                while self._waiting:
                    await self._write()

    def stop(self) -> None:
        """End `run`; what is not stored by now is made again after the next start."""
        self._scope.cancel()

    async def _write(self) -> None:
        self._writing, self._waiting = self._waiting, []
        try:
            await self._storage.write(self._record, self._recorded)
        except StorageUnavailable as error:
            log.warning("attempts_not_recorded", attempts=len(self._writing), error=str(error))
            for record in self._writing:
                record.in_doubt = True
            self._waiting[:0] = self._writing
            self._writing = ()
            await trio.sleep(_RETRY)

    def _record(self, tx: Tx) -> Otherwise:
        doubtful = [record.after.id for record in self._writing if record.in_doubt]
        stored = tx.attempts(doubtful) if doubtful else {}
        otherwise: dict[str, tuple[Fate, Delivery]] = {}
        for record in self._writing:
            attempt, after = record.attempt, record.after
            if stored and any(one.id == attempt.id for one in stored.get(after.id, ())):
                continue
            holder = record.held.delivery.claimed_by
            assert holder is not None
            fate = tx.record_attempt(holder, attempt, after)
            if fate != "recorded":
                ended = tx.delivery(None, after.id) if fate == "ended" else None
                otherwise[attempt.id] = fate, ended or after
        return otherwise

    def _recorded(self, otherwise: Otherwise) -> None:
        written, self._writing = self._writing, ()
        self._settle(written, otherwise)
        self._lot.unpark_all()
