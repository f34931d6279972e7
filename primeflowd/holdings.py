"""What this node holds: its deliveries in memory, from their claim to the end of the attempt.

Owns them, the timer wheel in which those wait that are due later, the room and the payloads that
they take, and the claims that are to be given back. Every claim of this node is either of a
delivery held here, or in `surplus`. What is due goes into its destination's queue. Of a
destination that is suspended no more than a few are held for probing: else a handful of dead
ones would fill the node.

Guarantees: a delivery is held at most once; memory is bounded whatever waits in storage. What
there is no room for stays there, unclaimed, for a later claim or another node (unclaimed.py).

Nothing here blocks. `admit`, `drop`, `hasten`, `settle`, `forget`, `obey` and `returned` follow a
commit and are called by it (`on_commit`), in the order of the commits: so what is held never
disagrees with who has the claim.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Protocol

from primeflowd.alarm import Alarm
from primeflowd.clock import Clock
from primeflowd.config import DeliverySettings
from primeflowd.destination import Change, Held
from primeflowd.destination_rules import Rules
from primeflowd.destinations import Destinations
from primeflowd.instants import Micros
from primeflowd.model import TERMINAL_DELIVERY, Delivery
from primeflowd.room import Room
from primeflowd.timer_wheel import TimerWheel
from primeflowd.unclaimed import Unclaimed

# Payloads kept in memory until their deliveries are let go of; beyond it they are read back, which
# takes several times the work of an attempt.
_BODY_BUDGET = 64 * 1024 * 1024
# Of that, what those may take that were attempted already: a wave of retries leaves room for what
# comes in.
_BODIES_OF_RETRIES = _BODY_BUDGET // 2


class Tenure(Protocol):
    """What is needed of the lease. Any thread."""

    @property
    def node_id(self) -> str: ...
    def holds(self) -> bool: ...


class Holdings:
    """Up to `active_limit` deliveries in all, and `destination_share` of it for one destination.

    Attributes:
        room: how many there are, and how many more may be.
        unclaimed: what waits in storage.
        alarm: when the scheduler is to look after all this again.
        surplus: ids of deliveries that are not held any more, whose claims are to be given back.
        horizon: how far ahead of its due instant a delivery is held.
    """

    def __init__(
        self,
        destinations: Destinations,
        clock: Clock,
        settings: DeliverySettings,
        lease: Tenure,
    ) -> None:
        self._destinations = destinations
        self._clock = clock
        self._lease = lease
        self.horizon = settings.horizon.micros
        self.room = Room(settings, destinations)
        self.alarm = Alarm(clock)
        self.unclaimed = Unclaimed(self.room, self.alarm)
        self.surplus: set[str] = set()
        self._held: dict[str, Held] = {}
        self._bodies = 0
        self._wheel: TimerWheel[str] = TimerWheel()
        self._closed = False

    def reconfigure(self, settings: DeliverySettings) -> None:
        """Go by `settings` from the next claim on."""
        self.horizon = settings.horizon.micros
        self.room.reconfigure(settings)
        self.unclaimed.want_more()

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
        room = not self._closed and self.room.fits(destination) and self._lease.holds()
        unclaimed = self.unclaimed
        if room and not unclaimed.everywhere and destination not in unclaimed.destinations:
            return self._lease.node_id
        unclaimed.destinations.add(destination)
        if room:  # else it is `forget` that finds out when there is some
            unclaimed.hungry = True
        return None

    def admit(self, made: Iterable[tuple[Delivery, bytes | None]]) -> None:
        """Hold deliveries that were just claimed for this node, with their payloads, as far as
        there is room. Those that were not claimed for it are passed over."""
        node_id, now = self._lease.node_id, self._clock.now()
        for delivery, body in made:
            # The lease under which it was claimed may be lost by now: then it is nobody's.
            if delivery.claimed_by != node_id or delivery.id in self.surplus:
                # In surplus, its claim is about to be given back, and it is claimed afresh.
                continue
            if delivery.id in self._held:
                if self._held[delivery.id].delivery.claimed_by != node_id:
                    # A sender still has it from before the lease was lost, and will forget it.
                    self._return(delivery.id)
                continue
            if self._closed or not self.room.take(delivery.destination):
                self.unclaimed.destinations.add(delivery.destination)
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
                self.unclaimed.want_more()
        elif self._wheel.cancel(delivery.id):
            held.delivery = delivery
            self._start(held)

    def obey(self, deliveries: list[Delivery]) -> None:
        """Do as people ordered by way of another node; `deliveries` are what became of them."""
        for delivery in deliveries:
            if delivery.status in TERMINAL_DELIVERY:
                self.drop(delivery.id)
            else:
                self.hasten(delivery)

    def keeps(self, after: Delivery) -> bool:
        """Whether a delivery that goes on waiting shall stay claimed by this node."""
        assert after.due_at is not None
        return (
            not self._closed
            and after.due_at <= self._clock.now() + self.horizon
            and not self.room.overfull(after.destination)
            and self.places_to_wait() > 0
        )

    def settle(self, held: Held, after: Delivery) -> None:
        """An attempt is over: hold the delivery on if its claim was kept, else forget it."""
        if after.claimed_by is None or self._closed:
            self.forget([held])
            return
        if held.body is not None and self._bodies > _BODIES_OF_RETRIES:
            self._bodies -= len(held.body)
            held.body = None
        held.delivery = after
        due = after.due_at
        assert due is not None
        if due <= self._clock.now():
            self._start(held)
        else:
            self._wait(held, due)

    def forget(self, ended: Sequence[Held]) -> None:
        """Let go of deliveries that are not this node's any more, or over."""
        was_full = self.room.left() <= 0
        gone: defaultdict[str, int] = defaultdict(int)
        for held in ended:
            if held.body is not None:
                self._bodies -= len(held.body)
                # A sender may still have it.
                held.body = None
            del self._held[held.delivery.id]
            gone[held.delivery.destination] += 1
        for destination, count in gone.items():
            self.room.remove(destination, count)
        if gone and (was_full or not self.unclaimed.destinations.isdisjoint(gone)):
            self.unclaimed.want_more()

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
            self.unclaimed.want_more()
            return
        for held in self._destinations.shed(destination, self.room.share_if_ill):
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
            self.unclaimed.want_more()

    def let_go(self) -> set[str]:
        """Forget all but what senders have; the ids of what is forgotten and still claimed."""
        waiting = [*self._destinations.clear(), *map(self._held.__getitem__, self._wheel.clear())]
        self.forget(waiting)
        ids = {held.delivery.id for held in waiting} | self.surplus
        self.surplus.clear()
        return ids

    def renounce(self) -> None:
        """The lease was lost, and every claim with it. What senders have is found lost when its
        attempt is recorded."""
        self.let_go()
        self.unclaimed.want_more()

    def close(self) -> None:
        """Hold nothing new. What is held stays claimed until its node releases everything."""
        self._closed = True

    def start_due(self, now: Micros) -> None:
        """Move what is due by `now` from the wheel into the queues."""
        for delivery_id in self._wheel.advance(now):
            self._start(self._held[delivery_id])

    def next_due(self) -> Micros | None:
        """When `start_due` is due; None if nothing waits."""
        return self._wheel.next_due()

    def places_to_wait(self) -> int:
        """How many more may be held that are not due yet: these take half of the places, or a wave
        of retries that is still to come would keep out what is due now."""
        return self.room.limit // 2 - len(self._wheel)

    def body_budget(self) -> int:
        """How many more bytes of payloads may be kept."""
        return max(0, _BODY_BUDGET - self._bodies)

    def return_unheld(self, claimed: set[str]) -> None:
        """Of all that storage shows as claimed by this node, give back what it does not hold."""
        for delivery_id in claimed - self._held.keys() - self.surplus:
            self._return(delivery_id)

    def returned(self, ids: AbstractSet[str]) -> None:
        """Their claims were given back. With the commit: one that is claimed again right after it
        shall be admitted."""
        self.surplus -= ids
        self.unclaimed.hungry = True

    def holds(self, delivery_id: str) -> bool:
        return delivery_id in self._held

    def waiting(self) -> int:
        """How many held deliveries are not due yet."""
        return len(self._wheel)

    def __len__(self) -> int:
        return len(self._held)

    def _start(self, held: Held) -> None:
        """Into the queue of its destination; back to storage if that has turned ill meanwhile."""
        if self.room.overfull(held.delivery.destination):
            self._give_back(held)
        else:
            self._destinations.put(held)

    def _wait(self, held: Held, until: Micros) -> None:
        self._wheel.add(held.delivery.id, until)
        due = self._wheel.next_due()
        assert due is not None
        self.alarm.by_instant(due)

    def _give_back(self, held: Held) -> None:
        self.forget([held])
        self._return(held.delivery.id)

    def _return(self, delivery_id: str) -> None:
        self.surplus.add(delivery_id)
        self.alarm.by(self.unclaimed.ask_from)
