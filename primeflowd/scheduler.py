"""The scheduler: storage is the queue, and this keeps the bounded window onto it filled.

Owns the loop that does so. Each turn starts what has come due (holdings.py) and ends suspensions
that are over; gives back to storage the claims of what is not held any more; obeys orders given
through other nodes; and claims what is due within the horizon, as far as there is room for it.
Then it waits until the earliest of all that is due, or until it is woken for something (alarm.py).

Guarantees: nothing is started before it is due. Blocks on storage. While that is out of reach it
goes on starting what is held, and tries again; it never raises for that.
"""

import math
from collections import Counter

import structlog
import trio

from primeflowd.clock import Clock
from primeflowd.destinations import Destinations
from primeflowd.errors import StorageUnavailable
from primeflowd.holdings import Holdings, Tenure
from primeflowd.hookspecs import Storage, Tx
from primeflowd.model import Delivery
from primeflowd.orders import Orders
from primeflowd.stray_claims import StrayClaims

log = structlog.get_logger()

# Seconds between two looks at a lease that does not hold.
_LOOK_AT_LEASE = 1.0
_CLAIM_AT_ONCE = 2000


class Scheduler:
    """Moves deliveries from storage into what this node holds, and on into the queues."""

    def __init__(
        self,
        storage: Storage,
        holdings: Holdings,
        destinations: Destinations,
        clock: Clock,
        lease: Tenure,
    ) -> None:
        self._storage = storage
        self._holdings = holdings
        self._unclaimed = holdings.unclaimed
        self._alarm = holdings.alarm
        self._destinations = destinations
        self._clock = clock
        self._lease = lease
        self._orders = Orders(storage, holdings.obey)
        self._stray = StrayClaims(storage, holdings.return_unheld)
        destinations.on_dry = self._alarm.by_instant

    def rouse(self) -> None:
        """There may be unclaimed deliveries in storage: look soon."""
        self._unclaimed.want_more()

    async def run(self) -> None:
        """Turn the wheel and claim, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen)
            await self._turn()

    async def _listen(self) -> None:
        """Ask storage at once when other nodes may have left something."""
        while True:
            await self._storage.wait_for_others()
            self._orders.due_at = -math.inf
            self._unclaimed.want_more()

    async def _turn(self) -> None:
        while True:
            self._alarm.rearm()
            now = self._clock.now()
            for name in self._destinations.reopen(now):
                log.debug("destination_probe", destination=name)
            self._holdings.start_due(now)
            try:
                if trio.current_time() >= self._unclaimed.ask_from:
                    await self._ask_storage()
            except StorageUnavailable as error:
                log.warning("claim_failed", error=str(error))
                self._unclaimed.out_of_reach()
            await self._alarm.wait(self._next_turn())

    async def _ask_storage(self) -> None:
        if self._holdings.surplus:
            await self._return_surplus()
        if not self._lease.holds():
            return
        await self._stray.look(self._lease.node_id)
        await self._orders.take(self._lease.node_id)
        if trio.current_time() >= self._unclaimed.next_claim():
            await self._claim()

    def _next_turn(self) -> float:
        until = min(self._unclaimed.next_claim(), self._stray.due_at, self._orders.due_at)
        if self._holdings.surplus:
            until = -math.inf
        until = max(until, self._unclaimed.ask_from)
        if not self._lease.holds():
            until = max(until, trio.current_time() + _LOOK_AT_LEASE)
        for instant in (self._holdings.next_due(), self._destinations.next_reopening()):
            if instant is not None:
                until = min(until, self._alarm.time_of(instant))
        return until

    async def _return_surplus(self) -> None:
        node_id, ids = self._lease.node_id, frozenset(self._holdings.surplus)
        await self._storage.write(
            lambda tx: tx.release(node_id, ids), lambda _: self._holdings.returned(ids)
        )

    async def _claim(self) -> None:
        self._unclaimed.asking()
        holdings, all_room = self._holdings, self._holdings.room
        room, share = min(all_room.left(), _CLAIM_AT_ONCE), all_room.share
        if room <= 0:
            return
        node_id, now, taken = self._lease.node_id, self._clock.now(), all_room.taken()
        places_to_wait, budget = holdings.places_to_wait(), holdings.body_budget() // 4

        def claim(tx: Tx) -> tuple[list[Delivery], dict[str, bytes]]:
            due = tx.claim(node_id, now, room, share, taken)
            most = max(0, min(room - len(due), places_to_wait))
            then = dict(Counter(taken) + Counter(delivery.destination for delivery in due))
            later = tx.claim(node_id, now + holdings.horizon, most, share, then)
            # What is due will be wanted at once: together it costs a tenth of one by one.
            return due + later, tx.payloads(due, budget)

        claimed, _ = await self._storage.write(claim, self._claimed)
        # By what was asked for, not by what is held now: places that came free during the
        # transaction were no places to it.
        count = Counter(taken) + Counter(delivery.destination for delivery in claimed)
        self._unclaimed.asked(len(claimed) == room, all_room.full(count))

    def _claimed(self, claimed: tuple[list[Delivery], dict[str, bytes]]) -> None:
        deliveries, bodies = claimed
        self._holdings.admit((delivery, bodies.get(delivery.id)) for delivery in deliveries)
