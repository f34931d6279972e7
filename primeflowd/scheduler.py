"""The scheduler: storage is the queue, and this is the bounded window onto it.

Owns the deliveries that this node holds in memory. Claims from storage what is due within the
horizon, up to `active_limit` in all and `destination_share` of it for one destination; keeps what
is due later in the timer wheel; moves what is due into its destination's queue. What it has no
room for stays in storage, unclaimed, for a later claim or another node. Of a destination that is
suspended it holds no more than a few for probing: else a handful of dead ones would fill it.

Guarantees: nothing is started before it is due; a delivery is held at most once; memory is
bounded whatever waits in storage; what waits there longer is not overtaken for ever by what is
new. Blocks on storage. While storage is out of reach it keeps what it holds and tries again; it
never raises for that.

`admit`, `drop`, `hasten` and `settle` follow a commit and are called by it (`on_commit`), in the
order of the commits: so what is held never disagrees with who has the claim.
"""

import math
from collections import Counter

import structlog
import trio

from primeflowd.clock import Clock
from primeflowd.config import DeliverySettings
from primeflowd.destinations import Change, Destinations, Held
from primeflowd.errors import StorageUnavailable
from primeflowd.hookspecs import Storage, Tx
from primeflowd.instants import SECOND, Micros
from primeflowd.model import Delivery
from primeflowd.room import Room
from primeflowd.timer_wheel import TimerWheel

log = structlog.get_logger()

# Seconds until storage is asked again: as a rule, when it is known to have more, after a failure.
_CLAIM_EVERY = 5.0
_CLAIM_HUNGRY = 0.1
_CLAIM_AFTER_FAILURE = 1.0
_CLAIM_AT_ONCE = 2000
# Payloads kept in memory between acceptance and the first attempt; beyond it they are read back.
_BODY_BUDGET = 64 * 1024 * 1024


class Scheduler:
    """Deliveries held by this node, from claim to the end of the attempt."""

    def __init__(
        self,
        storage: Storage,
        destinations: Destinations,
        clock: Clock,
        settings: DeliverySettings,
        node_id: str,
    ) -> None:
        self._storage = storage
        self._destinations = destinations
        self._clock = clock
        self._node_id = node_id
        self._horizon = settings.horizon.micros
        self._room = Room(settings, destinations)
        self._held: dict[str, Held] = {}
        self._bodies = 0
        self._wheel: TimerWheel[str] = TimerWheel()
        # Claims to give back, in one transaction at the next turn of the loop.
        self._surplus: set[str] = set()
        # Storage is known, or likely, to have due rows that nobody holds and that we have room for.
        self._hungry = True
        # Where from: any destination, or these. What is new for them waits in storage, too, or a
        # steady stream of it would take every place that becomes free.
        self._all_behind = False
        self._behind: set[str] = set()
        # All on Trio's clock, which cannot be set: the last claim, when storage may be used
        # again after a failure, and when the loop turns next.
        self._asked_at = -math.inf
        self._storage_from = -math.inf
        self._turn_at = math.inf
        self._wake = trio.Event()
        self._closed = False

    def node_for(self, destination: str) -> str | None:
        """This node's id if there is room for another delivery to `destination`.

        Called in storage's thread. A few too many may be promised between a transaction and its
        commit; `admit` gives those back.
        """
        room = not self._closed and self._room.fits(destination)
        if room and not self._all_behind and destination not in self._behind:
            return self._node_id
        self._behind.add(destination)
        if room:  # else it is `_forget` that finds out when there is some
            self._hungry = True
        return None

    def admit(self, delivery: Delivery, body: bytes | None) -> None:
        """Hold a delivery that was just claimed for this node, if there is room."""
        if delivery.id in self._held or delivery.id in self._surplus:
            # In the second case its claim is about to be given back, and is claimed afresh.
            return
        if self._closed or not self._room.fits(delivery.destination):
            self._behind.add(delivery.destination)
            self._return(delivery.id)
            return
        if body is not None and self._bodies + len(body) > _BODY_BUDGET:
            body = None
        self._bodies += len(body) if body is not None else 0
        held = Held(delivery, body)
        self._held[delivery.id] = held
        self._room.add(delivery.destination)
        self._place(held)

    def drop(self, delivery_id: str) -> None:
        """Let go of a delivery that was ended by a person, unless a sender has it by now."""
        held = self._held.get(delivery_id)
        if held is None:
            return
        if self._wheel.cancel(delivery_id) or self._destinations.remove(held):
            self._give_back(held)
        else:
            # Its attempt goes on record; but if it comes to none, it must not be tried again.
            held.dropped = True

    def hasten(self, delivery: Delivery) -> None:
        """Start a waiting delivery now. One that another node holds is that node's business."""
        held = self._held.get(delivery.id)
        if held is None:
            if delivery.claimed_by == self._node_id:
                self.admit(delivery, None)
            else:
                self._want_more()
        elif self._wheel.cancel(delivery.id):
            held.delivery = delivery
            self._start(held)

    def keeps(self, after: Delivery) -> bool:
        """Whether a delivery that goes on waiting shall stay claimed by this node."""
        assert after.due_at is not None
        return (
            not self._closed
            and after.due_at <= self._clock.now() + self._horizon
            and not self._room.overfull(after.destination)
            and self._places_to_wait() > 0
        )

    def settle(self, held: Held, after: Delivery | None) -> None:
        """An attempt is over: hold the delivery on if its claim was kept, else forget it.

        `after` None: it is no longer this node's, or was ended meanwhile.
        """
        if after is None or after.claimed_by is None or self._closed:
            self._forget(held)
            return
        self._drop_body(held)
        held.delivery = after
        self._place(held)

    def postpone(self, held: Held, until: Micros) -> None:
        """Hold a delivery that could not be attempted for reasons of our own."""
        if held.dropped:
            self._give_back(held)
        else:
            self._wait(held, until)

    def turned(self, destination: str, change: Change) -> None:
        """A destination was suspended: only what probes need is held on. Or it recovered."""
        if change == "recovered":
            self._want_more()
            return
        for held in self._destinations.shed(destination, self._room.share_if_ill):
            self._give_back(held)

    def close(self) -> None:
        """Hold nothing new. What is held stays claimed until its node releases everything."""
        self._closed = True

    def holds(self, delivery_id: str) -> bool:
        return delivery_id in self._held

    def waiting(self) -> int:
        """How many held deliveries are not due yet."""
        return len(self._wheel)

    def __len__(self) -> int:
        return len(self._held)

    async def run(self) -> None:
        """Turn the wheel and claim, until cancelled."""
        while True:
            self._wake = trio.Event()
            # Whoever wants another turn during this one gets it.
            self._turn_at = math.inf
            now = self._clock.now()
            for name in self._destinations.reopen(now):
                log.debug("destination_probe", destination=name)
            for delivery_id in self._wheel.advance(now):
                self._start(self._held[delivery_id])
            try:
                if self._surplus and trio.current_time() >= self._storage_from:
                    await self._return_surplus()
                if trio.current_time() >= self._claim_time():
                    await self._claim()
            except StorageUnavailable as error:
                log.warning("claim_failed", error=str(error))
                self._storage_from = trio.current_time() + _CLAIM_AFTER_FAILURE
                self._hungry = True
            await self._sleep()

    async def _sleep(self) -> None:
        until = self._claim_time()
        if self._surplus:
            until = min(until, self._storage_from)
        for instant in (self._wheel.next_due(), self._destinations.next_reopening()):
            if instant is not None:
                until = min(until, self._trio_time(instant))
        self._turn_at = until
        # A loop that never waits would starve the senders it feeds.
        with trio.move_on_at(max(until, trio.current_time() + 0.001)):
            await self._wake.wait()

    def _turn_by(self, time: float) -> None:
        """Have the loop turn at `time` on Trio's clock, at the latest."""
        if time < self._turn_at:
            self._turn_at = time
            self._wake.set()

    def _trio_time(self, instant: Micros) -> float:
        return trio.current_time() + (instant - self._clock.now()) / SECOND

    def _claim_time(self) -> float:
        """When storage shall be asked next; hunger brings it forward while there is room."""
        hungry = self._hungry and self._room.left() > 0
        return max(self._asked_at + (_CLAIM_HUNGRY if hungry else _CLAIM_EVERY), self._storage_from)

    async def _claim(self) -> None:
        self._asked_at = trio.current_time()
        room, share = min(self._room.left(), _CLAIM_AT_ONCE), self._room.share
        if room <= 0:
            return
        # Not after the transaction: what is refused during it may be unseen by it.
        self._hungry = False
        now, taken = self._clock.now(), self._room.taken()
        places_to_wait = self._places_to_wait()
        budget = max(0, _BODY_BUDGET - self._bodies) // 4

        def claim(tx: Tx) -> tuple[list[Delivery], dict[str, bytes]]:
            due = tx.claim(self._node_id, now, room, share, taken)
            most = max(0, min(room - len(due), places_to_wait))
            then = dict(Counter(taken) + Counter(delivery.destination for delivery in due))
            later = tx.claim(self._node_id, now + self._horizon, most, share, then)
            # What is due will be wanted at once: together it costs a tenth of one by one.
            return due + later, tx.payloads([delivery.batch_id for delivery in due], budget)

        claimed, _ = await self._storage.write(claim, self._claimed)
        self._all_behind = len(claimed) == room
        if self._all_behind:
            self._hungry = True
        # By what was asked for, not by what is held now: places that came free during the
        # transaction were no places to it.
        self._behind = self._room.full(Counter(taken) + Counter(d.destination for d in claimed))

    def _places_to_wait(self) -> int:
        # What is not due yet takes half of the places: a wave of retries that is still to come
        # shall not keep out what is due now.
        return self._room.limit // 2 - len(self._wheel)

    def _claimed(self, claimed: tuple[list[Delivery], dict[str, bytes]]) -> None:
        deliveries, bodies = claimed
        for delivery in deliveries:
            self.admit(delivery, bodies.get(delivery.batch_id))

    async def _return_surplus(self) -> None:
        ids = frozenset(self._surplus)

        def released(_: int) -> None:
            # With the commit: one that is claimed again right after it shall be admitted.
            self._surplus -= ids
            self._hungry = True

        await self._storage.write(lambda tx: tx.release(self._node_id, ids), released)

    def _place(self, held: Held) -> None:
        due = held.delivery.due_at
        assert due is not None
        if due <= self._clock.now():
            self._start(held)
        else:
            self._wait(held, due)

    def _start(self, held: Held) -> None:
        """Into the queue of its destination; back to storage if that has turned ill meanwhile."""
        if self._room.overfull(held.delivery.destination):
            self._give_back(held)
        else:
            self._destinations.put(held)

    def _wait(self, held: Held, until: Micros) -> None:
        self._wheel.add(held.delivery.id, until)
        due = self._wheel.next_due()
        assert due is not None
        self._turn_by(self._trio_time(due))

    def _forget(self, held: Held) -> None:
        self._drop_body(held)
        was_full = self._room.left() <= 0
        del self._held[held.delivery.id]
        self._room.remove(held.delivery.destination)
        if was_full or held.delivery.destination in self._behind:
            self._want_more()

    def _drop_body(self, held: Held) -> None:
        if held.body is not None:
            self._bodies -= len(held.body)
            held.body = None

    def _give_back(self, held: Held) -> None:
        self._forget(held)
        self._return(held.delivery.id)

    def _return(self, delivery_id: str) -> None:
        self._surplus.add(delivery_id)
        self._turn_by(self._storage_from)

    def _want_more(self) -> None:
        self._hungry = True
        self._turn_by(self._claim_time())
