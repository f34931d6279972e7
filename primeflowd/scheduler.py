"""The scheduler: storage is the queue, and this is the bounded window onto it.

Owns the deliveries that this node holds in memory. Claims from storage what is due within the
horizon, up to `active_limit` in all and `destination_share` of it for one destination; keeps what
is due later in the timer wheel; moves what is due into its destination's queue. What it has no
room for stays in storage, unclaimed, for a later claim or another node.

Guarantees: nothing is started before it is due; a delivery is held at most once; memory is
bounded whatever waits in storage. Blocks on storage. While storage is out of reach it keeps what
it holds and tries again; it never raises for that.
"""

import structlog
import trio

from primeflowd.clock import Clock
from primeflowd.config import DeliverySettings
from primeflowd.destinations import Destinations, Held
from primeflowd.errors import StorageUnavailable
from primeflowd.hookspecs import Storage
from primeflowd.instants import MILLISECOND, SECOND, Micros
from primeflowd.model import Delivery
from primeflowd.timer_wheel import TimerWheel

log = structlog.get_logger()

# How often storage is asked when nothing says that it has more, and when something does.
_CLAIM_EVERY: Micros = 5 * SECOND
_CLAIM_HUNGRY: Micros = 100 * MILLISECOND
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
        self._limit = settings.active_limit
        self._share = max(1, int(settings.active_limit * settings.destination_share))
        self._held: dict[str, Held] = {}
        self._count: dict[str, int] = {}
        self._bodies = 0
        self._wheel: TimerWheel[str] = TimerWheel()
        # Claims to give back, in one transaction at the next turn of the loop.
        self._surplus: set[str] = set()
        # Storage is known, or likely, to have due rows that nobody holds.
        self._hungry = True
        self._next_claim: Micros = 0
        self._wake = trio.Event()
        self._closed = False

    def node_for(self, destination: str) -> str | None:
        """This node's id if there is room for another delivery to `destination`.

        Called in storage's thread: it only reads. A few too many may be promised between a
        transaction and its commit; `admit` gives those back.
        """
        if self._has_room(destination):
            return self._node_id
        self._hungry = True
        return None

    def admit(self, delivery: Delivery, body: bytes | None) -> None:
        """Hold a delivery that was just claimed for this node, if there is room."""
        if delivery.id in self._held or delivery.id in self._surplus:
            # In the second case its claim is being given back at this moment; once that is
            # durable it is claimed afresh.
            return
        if not self._has_room(delivery.destination):
            self._give_back(delivery.id)
            return
        if body is not None and self._bodies + len(body) > _BODY_BUDGET:
            body = None
        self._bodies += len(body) if body is not None else 0
        held = Held(delivery, body)
        self._held[delivery.id] = held
        self._count[delivery.destination] = self._count.get(delivery.destination, 0) + 1
        self._place(held)

    def drop(self, delivery_id: str) -> None:
        """Let go of a delivery that was ended by a person, unless a sender has it by now."""
        held = self._held.get(delivery_id)
        if held is None:
            return
        if self._wheel.cancel(delivery_id) or self._destinations.remove(held):
            self._forget(held)
            self._give_back(delivery_id)

    def hasten(self, delivery: Delivery) -> None:
        """Start a waiting delivery now. One that another node holds is that node's business."""
        held = self._held.get(delivery.id)
        if held is None:
            if delivery.claimed_by == self._node_id:
                self.admit(delivery, None)
            else:
                self._hungry = True
                self._rouse()
        elif self._wheel.cancel(delivery.id):
            held.delivery = delivery
            self._destinations.put(held)

    def keeps(self, after: Delivery) -> bool:
        """Whether a delivery that goes on waiting shall stay claimed by this node."""
        assert after.due_at is not None
        return not self._closed and after.due_at <= self._clock.now() + self._horizon

    def settle(self, held: Held, after: Delivery | None) -> None:
        """An attempt is over: hold the delivery on if its claim was kept, else forget it.

        `after` None: it is no longer this node's, or was ended meanwhile.
        """
        self._drop_body(held)
        if after is not None and after.claimed_by is not None and not self._closed:
            held.delivery = after
            self._place(held)
            return
        self._forget(held)
        if self._hungry and self._clock.now() >= self._claim_time():
            self._rouse()

    def postpone(self, held: Held, until: Micros) -> None:
        """Hold a delivery that could not be attempted for reasons of our own."""
        self._wheel.add(held.delivery.id, until)
        self._rouse()

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
            now = self._clock.now()
            for name in self._destinations.reopen(now):
                log.debug("destination_probe", destination=name)
            for delivery_id in self._wheel.advance(now):
                self._destinations.put(self._held[delivery_id])
            try:
                await self._return_surplus()
                if now >= self._claim_time():
                    await self._claim(now)
            except StorageUnavailable as error:
                log.warning("claim_failed", error=str(error))
                self._next_claim = now + SECOND
                self._hungry = False
            await self._sleep()

    async def _sleep(self) -> None:
        instants = [self._claim_time()]
        for instant in (self._wheel.next_due(), self._destinations.next_reopening()):
            if instant is not None:
                instants.append(instant)
        wait = (min(instants) - self._clock.now()) / SECOND
        # A loop that never waits would starve the senders it feeds.
        with trio.move_on_after(max(wait, 0.001)):
            await self._wake.wait()

    def _claim_time(self) -> Micros:
        """When storage shall be asked next; hunger brings it forward while there is room."""
        if self._hungry and len(self._held) < self._limit:
            return self._next_claim - _CLAIM_EVERY + _CLAIM_HUNGRY
        return self._next_claim

    async def _claim(self, now: Micros) -> None:
        room = min(self._limit - len(self._held), _CLAIM_AT_ONCE)
        self._next_claim = now + _CLAIM_EVERY
        if room <= 0:
            return
        self._hungry = False
        until = now + self._horizon
        held = {name: n for name, n in self._count.items() if n}
        claimed = await self._storage.write(
            lambda tx: tx.claim(self._node_id, until, room, self._share, held), self._claimed
        )
        if len(claimed) == room or any(n >= self._share for n in self._count.values()):
            self._hungry = True

    def _claimed(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            self.admit(delivery, None)

    async def _return_surplus(self) -> None:
        if not self._surplus:
            return
        ids = frozenset(self._surplus)
        await self._storage.write(lambda tx: tx.release(self._node_id, ids))
        self._surplus -= ids

    def _has_room(self, destination: str) -> bool:
        return (
            not self._closed
            and len(self._held) < self._limit
            and self._count.get(destination, 0) < self._share
        )

    def _place(self, held: Held) -> None:
        """Into the queue of its destination, or into the wheel until it is due."""
        due = held.delivery.due_at
        assert due is not None
        if due <= self._clock.now():
            self._destinations.put(held)
            return
        earliest = self._wheel.next_due()
        self._wheel.add(held.delivery.id, due)
        if earliest is None or due < earliest:
            self._rouse()

    def _forget(self, held: Held) -> None:
        self._drop_body(held)
        del self._held[held.delivery.id]
        destination = held.delivery.destination
        left = self._count[destination] - 1
        if left:
            self._count[destination] = left
        else:
            del self._count[destination]

    def _drop_body(self, held: Held) -> None:
        if held.body is not None:
            self._bodies -= len(held.body)
            held.body = None

    def _give_back(self, delivery_id: str) -> None:
        self._surplus.add(delivery_id)
        self._hungry = True
        self._rouse()

    def _rouse(self) -> None:
        self._wake.set()
