"""This node's lease: for how long it may act on what it has claimed.

Storage keeps a row per node, which says when the node is given up and its claims become anybody's.
This renews ours at a third of its time, and trusts it only until the start of the last renewal plus
that time, less a margin: so a node that is cut off from storage, or was stopped, stops acting
before another can have taken over. While doing so it ends what other dead nodes left.

    holds        what is claimed may be attempted
    lapsed       not renewed in time: nothing is started, attempts under way are cut short. If the
                 row is still there at the next renewal, all claims still stand, and it goes on.
    lost         the row was gone at the next renewal: others have the claims. We go on under a new
                 node id, so that nothing done under the old one is ever taken for ours again.

Blocks on storage. While storage is out of reach it keeps trying, and never raises for that.
"""

from collections.abc import Callable
from typing import Final

import structlog
import trio

from primeflowd.clock import SharedClock, uptime
from primeflowd.errors import StorageUnavailable
from primeflowd.hookspecs import Renewal, Storage, Tx
from primeflowd.instants import SECOND, Micros

log = structlog.get_logger()

# Part of the lease's time that is left unused: our clock may run slower than storage's, and between
# a look at the clock and the first byte that is sent some time passes.
_MARGIN: Final = 0.1
# Seconds between tries while storage is out of reach.
_RETRY_FIRST: Final = 0.2


class Lease:
    """Made before the services that ask it, begun before they start."""

    def __init__(
        self,
        storage: Storage,
        clock: SharedClock,
        name: str,
        ttl: Micros,
        elapsed: Callable[[], float] = uptime,
    ) -> None:
        """`name` is no other node's, nor was. `elapsed` counts seconds and is never set."""
        self._storage = storage
        self._clock = clock
        self._name = name
        self._ttl = ttl
        self._elapsed = elapsed
        self._node_id = name
        self._number = 1
        self._trusted_until = float("-inf")
        self._lapsed = False
        self.is_eldest = False
        # What to do when it has lapsed, when it is known to be lost, and when claims of dead nodes
        # were freed, which storage tells the other nodes only. In the Trio thread.
        self.on_lapsed: Callable[[], None] = _nothing
        self.on_lost: Callable[[], None] = _nothing
        self.on_freed: Callable[[], None] = _nothing

    @property
    def node_id(self) -> str:
        """Under what name claims are made now. Any thread."""
        return self._node_id

    def holds(self) -> bool:
        """Whether what this node has claimed is its to act on at this moment. Any thread."""
        return self._elapsed() < self._trusted_until

    def covers(self, claimed_by: str | None) -> bool:
        """Whether a delivery with this claim may be attempted at this moment."""
        return claimed_by == self._node_id and self._elapsed() < self._trusted_until

    async def begin(self, check: Callable[[Tx], None] | None = None) -> int:
        """Get the lease, and end those of dead nodes; how many claims that freed.

        `check` comes first, in the same transaction: what it has seen is true for as long as
        whoever would change it looks for nodes before.

        Raises:
            StorageUnavailable: there is none.
            Whatever `check` raises: there is none, and nothing is changed.
        """
        started = self._elapsed()

        def begin(tx: Tx) -> tuple[int, bool]:
            if check is not None:
                check(tx)
            tx.begin_lease(self._node_id, self._ttl)
            return tx.release_lost(), tx.nodes()[0] == self._node_id

        freed, self.is_eldest = await self._storage.write(begin)
        self._trust_from(started)
        return freed

    async def end(self) -> None:
        """Give the lease and every claim back, for others to take over at once.

        Raises:
            StorageUnavailable: it expires by itself.
        """
        self._trusted_until = float("-inf")
        await self._storage.write(lambda tx: tx.end_lease(self._node_id))

    async def run(self) -> None:
        """Renew the lease, until cancelled."""
        async with trio.open_nursery() as nursery:
            # Apart from each other: a renewal may hang for as long as storage does.
            nursery.start_soon(self._watch)
            nursery.start_soon(self._renew)

    async def _renew(self) -> None:
        every = pause = self._ttl / SECOND / 3
        again = _RETRY_FIRST
        while True:
            await trio.sleep(pause)
            try:
                await self._renew_once()
            except StorageUnavailable as error:
                log.warning("lease_not_renewed", error=str(error))
                pause, again = again, min(2 * again, every)
            else:
                pause, again = every, _RETRY_FIRST

    async def _renew_once(self) -> None:
        started, before = self._elapsed(), self._clock.now()
        new_id = f"{self._name}/{self._number + 1}"

        def renew(tx: Tx) -> tuple[Renewal | None, int]:
            renewal = tx.renew_lease(self._node_id, self._ttl)
            if renewal is None:
                tx.begin_lease(new_id, self._ttl)
            return renewal, tx.release_lost()

        def renewed(result: tuple[Renewal | None, int]) -> None:
            # With the commit: claims that are committed next are made under the new id.
            renewal, freed = result
            if renewal is None:
                self._number += 1
                self._node_id = new_id
                self.is_eldest = False
                log.error("lease_lost", node_id=new_id, hint="other nodes have its deliveries")
                self.on_lost()
            else:
                self.is_eldest = renewal.is_eldest
            self._trust_from(started)
            if freed:
                log.info("claims_recovered", deliveries=freed)
                self.on_freed()

        renewal, _ = await self._storage.write(renew, renewed)
        if renewal is not None:
            self._clock.correct(renewal.now, before, self._clock.now())

    def _trust_from(self, started: float) -> None:
        self._trusted_until = started + self._ttl / SECOND * (1 - _MARGIN)
        if self._lapsed and self.holds():
            self._lapsed = False
            log.info("lease_renewed", node_id=self._node_id)

    async def _watch(self) -> None:
        """Notice when the lease lapses."""
        while True:
            left = self._trusted_until - self._elapsed()
            if left <= 0 and not self._lapsed:
                self._lapsed = True
                log.error(
                    "lease_lapsed",
                    node_id=self._node_id,
                    hint="nothing is sent until storage can be reached again",
                )
                self.on_lapsed()
            # While it has lapsed, look often: a renewal may come, and be the last again.
            await trio.sleep(left if left > 0 else self._ttl / SECOND * _MARGIN)


def _nothing() -> None:
    """For whoever has nothing to do."""
