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

`admit`, `drop`, `hasten`, `settle` and `forget` follow a commit and are called by it
(`on_commit`), in the order of the commits: so what is held never disagrees with who has the claim.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import structlog
import trio

from primeflowd.clock import Clock
from primeflowd.config import DeliverySettings
from primeflowd.destination import Change, Held
from primeflowd.destination_rules import Rules
from primeflowd.destinations import Destinations
from primeflowd.errors import StorageUnavailable
from primeflowd.hookspecs import Storage, Tx
from primeflowd.instants import SECOND, Micros
from primeflowd.model import TERMINAL_DELIVERY, Delivery
from primeflowd.orders import Orders
from primeflowd.room import Room
from primeflowd.stray_claims import StrayClaims
from primeflowd.timer_wheel import TimerWheel

log = structlog.get_logger()

# Seconds until storage is asked again: as a rule, when it is known to have more, after a failure.
_CLAIM_EVERY = 5.0
_CLAIM_HUNGRY = 0.1
_CLAIM_AFTER_FAILURE = 1.0
_CLAIM_AT_ONCE = 2000
# Payloads kept in memory between acceptance and the first attempt; beyond it they are read back.
_BODY_BUDGET = 64 * 1024 * 1024


class Tenure(Protocol):
    """What the scheduler needs of the lease. Any thread."""

    @property
    def node_id(self) -> str: ...
    def holds(self) -> bool: ...


class Scheduler:
    """Deliveries held by this node, from claim to the end of the attempt."""

    def __init__(
        self,
        storage: Storage,
        destinations: Destinations,
        clock: Clock,
        settings: DeliverySettings,
        lease: Tenure,
    ) -> None:
        self._storage = storage
        self._destinations = destinations
        self._clock = clock
        self._lease = lease
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
        self._orders = Orders(storage, self._obey)
        self._stray = StrayClaims(storage, self._return_if_stray)
        destinations.on_dry = lambda when: self._turn_by(self._trio_time(when))

    def reconfigure(self, settings: DeliverySettings) -> None:
        """Go by `settings` from the next claim on."""
        self._horizon = settings.horizon.micros
        self._room.reconfigure(settings)
        self._want_more()

    @property
    def node_id(self) -> str:
        """Under what name this node claims. Any thread."""
        return self._lease.node_id

    def in_touch(self) -> bool:
        """Whether this node's lease holds."""
        return self._lease.holds()

    def node_for(self, destination: str) -> str | None:
        """This node's id if there is room for another delivery to `destination`.

        Called in storage's thread. A few too many may be promised between a transaction and its
        commit; `admit` gives those back.
        """
        room = not self._closed and self._room.fits(destination) and self._lease.holds()
        if room and not self._all_behind and destination not in self._behind:
            return self._lease.node_id
        self._behind.add(destination)
        if room:  # else it is `forget` that finds out when there is some
            self._hungry = True
        return None

    def admit(self, made: Iterable[tuple[Delivery, bytes | None]]) -> None:
        """Hold deliveries that were just claimed for this node, with their payloads, as far as
        there is room. Those that were not claimed for it are passed over."""
        node_id, now = self._lease.node_id, self._clock.now()
        for delivery, body in made:
            # The lease under which it was claimed may be lost by now: then it is nobody's.
            if delivery.claimed_by != node_id or delivery.id in self._surplus:
                # In surplus, its claim is about to be given back, and it is claimed afresh.
                continue
            if delivery.id in self._held:
                if self._held[delivery.id].delivery.claimed_by != node_id:
                    # A sender still has it from before the lease was lost, and will forget it.
                    self._return(delivery.id)
                continue
            if self._closed or not self._room.take(delivery.destination):
                self._behind.add(delivery.destination)
                self._return(delivery.id)
                continue
            if body is not None:
                bodies = self._bodies + len(body)
                if bodies > _BODY_BUDGET:
                    body = None
                else:
                    self._bodies = bodies
            held = self._held[delivery.id] = Held(delivery, body)
            due = delivery.due_at
            assert due is not None
            if due <= now:
                # There is room for it, as was just seen.
                self._destinations.put(held)
            else:
                self._wait(held, due)

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
            if delivery.claimed_by == self._lease.node_id:
                self.admit([(delivery, None)])
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

    def settle(self, held: Held, after: Delivery) -> None:
        """An attempt is over: hold the delivery on if its claim was kept, else forget it."""
        if after.claimed_by is None or self._closed:
            self.forget([held])
            return
        self._drop_body(held)
        held.delivery = after
        self._place(held)

    def forget(self, ended: Sequence[Held]) -> None:
        """Let go of deliveries that are not this node's any more, or over."""
        was_full = self._room.left() <= 0
        gone: defaultdict[str, int] = defaultdict(int)
        for held in ended:
            if held.body is not None:
                self._bodies -= len(held.body)
                # A sender may still have it.
                held.body = None
            del self._held[held.delivery.id]
            gone[held.delivery.destination] += 1
        for destination, count in gone.items():
            self._room.remove(destination, count)
        if gone and (was_full or not self._behind.isdisjoint(gone)):
            self._want_more()

    def postpone(self, held: Held, until: Micros) -> None:
        """Hold a delivery that could not be attempted for reasons of our own."""
        if held.delivery.claimed_by != self._lease.node_id:
            self.forget([held])
        elif held.dropped:
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

    def govern(self, rules: Mapping[str, Rules]) -> None:
        """Have these rules of destinations hold from now on: what is queued for one that is shut
        goes back to storage, what waits there for one that is open again is claimed."""
        shut = {name for name in self._destinations.ill() if self._destinations.is_shut(name)}
        self._destinations.govern(rules)
        for name in rules:
            if self._destinations.is_shut(name):
                for held in self._destinations.shed(name, 0):
                    self._give_back(held)
                shut.discard(name)
        if shut:
            self._want_more()

    def let_go(self) -> set[str]:
        """Forget all but what senders have; the ids of what is forgotten and still claimed."""
        waiting = [*self._destinations.clear(), *map(self._held.__getitem__, self._wheel.clear())]
        self.forget(waiting)
        ids = {held.delivery.id for held in waiting} | self._surplus
        self._surplus.clear()
        return ids

    def renounce(self) -> None:
        """The lease was lost, and every claim with it. What senders have is found lost when its
        attempt is recorded."""
        self.let_go()
        self._want_more()

    def rouse(self) -> None:
        """There may be unclaimed deliveries in storage: look soon."""
        self._want_more()

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
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen)
            await self._turn()

    async def _listen(self) -> None:
        """Ask storage at once when other nodes may have left something."""
        while True:
            await self._storage.wait_for_others()
            self._orders.due_at = -math.inf
            self._want_more()

    async def _turn(self) -> None:
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
                if trio.current_time() >= self._storage_from:
                    await self._ask_storage()
            except StorageUnavailable as error:
                log.warning("claim_failed", error=str(error))
                self._storage_from = trio.current_time() + _CLAIM_AFTER_FAILURE
                self._hungry = True
            await self._sleep()

    async def _ask_storage(self) -> None:
        if self._surplus:
            await self._return_surplus()
        if not self._lease.holds():
            return
        await self._stray.look(self._lease.node_id)
        await self._orders.take(self._lease.node_id)
        if trio.current_time() >= self._claim_time():
            await self._claim()

    def _obey(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            if delivery.status in TERMINAL_DELIVERY:
                self.drop(delivery.id)
            else:
                self.hasten(delivery)

    def _return_if_stray(self, claimed: set[str]) -> None:
        for delivery_id in claimed - self._held.keys() - self._surplus:
            self._return(delivery_id)

    async def _sleep(self) -> None:
        until = min(self._claim_time(), self._stray.due_at, self._orders.due_at)
        if self._surplus:
            until = -math.inf
        until = max(until, self._storage_from)
        if not self._lease.holds():
            until = max(until, trio.current_time() + _CLAIM_AFTER_FAILURE)
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
        node_id, now, taken = self._lease.node_id, self._clock.now(), self._room.taken()
        places_to_wait = self._places_to_wait()
        budget = max(0, _BODY_BUDGET - self._bodies) // 4

        def claim(tx: Tx) -> tuple[list[Delivery], dict[str, bytes]]:
            due = tx.claim(node_id, now, room, share, taken)
            most = max(0, min(room - len(due), places_to_wait))
            then = dict(Counter(taken) + Counter(delivery.destination for delivery in due))
            later = tx.claim(node_id, now + self._horizon, most, share, then)
            # What is due will be wanted at once: together it costs a tenth of one by one.
            return due + later, tx.payloads(due, budget)

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
        self.admit((delivery, bodies.get(delivery.id)) for delivery in deliveries)

    async def _return_surplus(self) -> None:
        node_id, ids = self._lease.node_id, frozenset(self._surplus)

        def released(_: int) -> None:
            # With the commit: one that is claimed again right after it shall be admitted.
            self._surplus -= ids
            self._hungry = True

        await self._storage.write(lambda tx: tx.release(node_id, ids), released)

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

    def _drop_body(self, held: Held) -> None:
        if held.body is not None:
            self._bodies -= len(held.body)
            held.body = None

    def _give_back(self, held: Held) -> None:
        self.forget([held])
        self._return(held.delivery.id)

    def _return(self, delivery_id: str) -> None:
        self._surplus.add(delivery_id)
        self._turn_by(self._storage_from)

    def _want_more(self) -> None:
        self._hungry = True
        self._turn_by(self._claim_time())
