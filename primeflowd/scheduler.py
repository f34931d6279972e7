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

import structlog
import trio

from primeflowd.clock import Clock
from primeflowd.config import DeliverySettings
from primeflowd.destinations import Change, Destinations, Held
from primeflowd.errors import StorageUnavailable
from primeflowd.hookspecs import Storage
from primeflowd.instants import SECOND, Micros
from primeflowd.model import Delivery
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
        self._limit = settings.active_limit
        self._share = max(1, int(settings.active_limit * settings.destination_share))
        self._share_if_ill = min(self._share, settings.window_initial)
        self._held: dict[str, Held] = {}
        self._count: dict[str, int] = {}
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
        room = self._has_room(destination)
        if room and not self._all_behind and destination not in self._behind:
            return self._node_id
        self._behind.add(destination)
        # Without room it is `_forget` that finds out when there is some.
        self._hungry = self._hungry or room
        return None

    def admit(self, delivery: Delivery, body: bytes | None) -> None:
        """Hold a delivery that was just claimed for this node, if there is room."""
        if delivery.id in self._held or delivery.id in self._surplus:
            # In the second case its claim is about to be given back, and is claimed afresh.
            return
        if not self._has_room(delivery.destination):
            self._behind.add(delivery.destination)
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
            and not self._overfull(after.destination)
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
            self._forget(held)
            self._give_back(held.delivery.id)
        else:
            self._wait(held, until)

    def turned(self, destination: str, change: Change) -> None:
        """A destination was suspended: only what probes need is held on. Or it recovered."""
        if change == "recovered":
            self._want_more()
            return
        for held in self._destinations.shed(destination, self._share_if_ill):
            self._forget(held)
            self._give_back(held.delivery.id)

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
        hungry = self._hungry and len(self._held) < self._limit
        return max(self._asked_at + (_CLAIM_HUNGRY if hungry else _CLAIM_EVERY), self._storage_from)

    async def _claim(self) -> None:
        self._asked_at = trio.current_time()
        room = min(self._limit - len(self._held), _CLAIM_AT_ONCE)
        if room <= 0:
            return
        # Not after the transaction: what is refused during it may be unseen by it.
        self._hungry = False
        until = self._clock.now() + self._horizon
        taken = dict(self._count)
        for name in self._destinations.ill():
            taken[name] = taken.get(name, 0) + self._share - self._share_if_ill
        claimed = await self._storage.write(
            lambda tx: tx.claim(self._node_id, until, room, self._share, taken), self._claimed
        )
        self._all_behind = len(claimed) == room
        self._hungry = self._hungry or self._all_behind
        self._behind = {name for name, count in self._count.items() if count >= self._share}

    def _claimed(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            self.admit(delivery, None)

    async def _return_surplus(self) -> None:
        ids = frozenset(self._surplus)

        def released(_: int) -> None:
            # With the commit: one that is claimed again right after it shall be admitted.
            self._surplus -= ids
            self._hungry = True

        await self._storage.write(lambda tx: tx.release(self._node_id, ids), released)

    def _share_of(self, destination: str) -> int:
        return self._share_if_ill if destination in self._destinations.ill() else self._share

    def _has_room(self, destination: str) -> bool:
        return (
            not self._closed
            and len(self._held) < self._limit
            and self._count.get(destination, 0) < self._share_of(destination)
        )

    def _overfull(self, destination: str) -> bool:
        return self._count.get(destination, 0) > self._share_of(destination)

    def _place(self, held: Held) -> None:
        due = held.delivery.due_at
        assert due is not None
        if due <= self._clock.now():
            self._start(held)
        else:
            self._wait(held, due)

    def _start(self, held: Held) -> None:
        """Into the queue of its destination; back to storage if that has turned ill meanwhile."""
        if self._overfull(held.delivery.destination):
            self._forget(held)
            self._give_back(held.delivery.id)
        else:
            self._destinations.put(held)

    def _wait(self, held: Held, until: Micros) -> None:
        self._wheel.add(held.delivery.id, until)
        due = self._wheel.next_due()
        assert due is not None
        self._turn_by(self._trio_time(due))

    def _forget(self, held: Held) -> None:
        self._drop_body(held)
        was_full = len(self._held) >= self._limit
        del self._held[held.delivery.id]
        destination = held.delivery.destination
        left = self._count[destination] - 1
        if left:
            self._count[destination] = left
        else:
            del self._count[destination]
        if was_full or destination in self._behind:
            self._want_more()

    def _drop_body(self, held: Held) -> None:
        if held.body is not None:
            self._bodies -= len(held.body)
            held.body = None

    def _give_back(self, delivery_id: str) -> None:
        self._surplus.add(delivery_id)
        self._turn_by(self._storage_from)

    def _want_more(self) -> None:
        self._hungry = True
        self._turn_by(self._claim_time())
