"""Per-destination queues: who is sent to next, and how many attempts each may have at once.

Owns, for each destination (scheme, host and port), the deliveries that are due now, a concurrency
window, and whether it is suspended. Guarantees that destinations take turns (round robin), so that
one with a thousand due deliveries delays another by one round at most, and that no destination has
more attempts under way than its window.

How a window opens and closes, and when a destination is suspended: destination.py.

An operator's rules for a destination (destination_rules.py) go on top of that: a cap on attempts at
once, a token bucket, or that it is shut. Only those that have rules pay for them.

Whoever puts in several can have them looked at together (`gather`, `announce`).

Only `take` and `turn` block. Source of the scheme: Postfix SCHEDULER_README.
"""

from collections import deque
from collections.abc import Callable, Collection, Mapping
from heapq import heappop, heappush

import msgspec
import trio

from primeflowd.clock import Clock, SystemClock
from primeflowd.config import DeliverySettings
from primeflowd.destination import Change, Destination, Held, Limits
from primeflowd.destination_rules import Rules
from primeflowd.instants import Micros

# Idle destinations are forgotten beyond this many; what is lost is a learnt window.
_REMEMBERED = 4096


class DestinationStatistics(msgspec.Struct, frozen=True):
    """`window` is the number of attempts allowed at once; `suspended_until` None if it is not;
    `oldest_due` is when the first of the queue was due, None if nothing is queued."""

    queued: int
    in_flight: int
    window: int
    suspended_until: Micros | None
    oldest_due: Micros | None = None


class Destinations:
    """The due deliveries of all destinations, handed out fairly.

    Attributes:
        gathering: nobody is woken for what is put in; see `gather`.
        on_dry: told when a destination has spent its tokens, and when `reopen` is due for it.
    """

    def __init__(self, settings: DeliverySettings, clock: Clock | None = None) -> None:
        self.on_dry: Callable[[Micros], None] = lambda when: None
        self._clock = clock or SystemClock()
        self._rules: Mapping[str, Rules] = {}
        self._destinations: dict[str, Destination] = {}
        # Suspended, being probed, or shut.
        self._ill: dict[str, None] = {}
        # The suspended ones by when that ends; each is in here once.
        self._reopenings: list[tuple[Micros, str]] = []
        # When destinations that are out of tokens have one again; may be out of date.
        self._refills: list[tuple[Micros, str]] = []
        self._forget_at = _REMEMBERED
        # Destinations that may be eligible, in the order of their turns.
        self._ring: deque[Destination] = deque()
        # Whoever waits for a turn waits for this.
        self._turn: trio.Event | None = None
        self._queued = 0
        self._closed = False
        self.gathering = False
        self.reconfigure(settings)

    def reconfigure(self, settings: DeliverySettings) -> None:
        """Go by `settings` from now on. A window that is wider than they allow is narrowed, for the
        attempts to come; a suspension under way ends when it was to, if that is not beyond
        `suspend_max`."""
        self._limits = Limits.of(settings)
        for destination in self._destinations.values():
            destination.window = min(destination.window, self._limits.window_max)

    def put(self, held: Held) -> None:
        """Queue a delivery that is due."""
        name = held.delivery.destination
        destination = self._destinations.get(name)
        if destination is None:
            if len(self._destinations) >= self._forget_at:
                self._forget_idle()
            destination = self._destinations[name] = Destination(
                name, self._limits.window_initial, self._rules.get(name)
            )
        destination.queue.append(held)
        self._queued += 1
        if not destination.in_ring:
            self._offer(destination)

    def gather(self) -> None:
        """Wake nobody for what comes, until `announce`: there is more, and somebody will look."""
        self.gathering = True

    def announce(self) -> None:
        """Gather no more, and wake whoever waits, if there is something left to take."""
        self.gathering = False
        if self._ring:
            self._wake()

    def take_now(self) -> Held | None:
        """The next delivery to attempt, from the destination whose turn it is; None if there is
        none at the moment, or no more at all. The caller must call `done` with it afterwards."""
        if self._closed:
            return None
        ring = self._ring
        while ring:
            destination = ring[0]
            if not destination.eligible():
                ring.popleft()
                destination.in_ring = False
                continue
            held = destination.queue.popleft()
            self._queued -= 1
            destination.in_flight += 1
            held.era = destination.era
            held.rules = destination.rules
            if held.rules is not None:
                self._spend(destination, held.rules)
            # Pass the turn on; the destination has another if one more may start.
            if not destination.eligible():
                ring.popleft()
                destination.in_ring = False
            elif len(ring) > 1:
                ring.rotate(-1)
            return held
        return None

    async def take(self) -> Held | None:
        """As take_now, but waits until there is one. None means closed. Cancellation takes
        nothing. Does not always checkpoint."""
        while (held := self.take_now()) is None and not self._closed:
            await self.turn()
        return held

    async def turn(self) -> None:
        """Wait until there may be something to take, or never again."""
        if self._ring or self._closed:
            return
        if self._turn is None:
            self._turn = trio.Event()
        await self._turn.wait()

    def done(
        self, held: Held, failed: bool | None, now: Micros, answered: bool = False
    ) -> Change | None:
        """An attempt has ended; what that changed for its destination, None if nothing.

        Args:
            failed: whether the destination looked ill; None says nothing about it (the attempt
                was cut short, or never reached the network).
            answered: a failure was an answer all the same: the destination can be reached.
        """
        destination = self._destinations[held.delivery.destination]
        destination.in_flight -= 1
        change: Change | None = None
        # Under way since before the last suspension, it says nothing new, and is not the probe.
        if failed is not None and held.era == destination.era:
            if not failed:
                change = destination.succeeded(self._limits)
            elif answered:
                change = destination.strained(self._limits)
            else:
                change = destination.failed(self._limits, now)
            if change is not None:
                self._changed(destination, change)
        if destination.queue and not destination.in_ring:
            self._offer(destination)
        return change

    def remove(self, held: Held) -> bool:
        """Take a delivery out of its queue; False if a sender has it already."""
        destination = self._destinations.get(held.delivery.destination)
        if destination is None:
            return False
        try:
            destination.queue.remove(held)
        except ValueError:
            return False
        self._queued -= 1
        return True

    def clear(self) -> list[Held]:
        """Take out everything that is queued."""
        cleared: list[Held] = []
        for destination in self._destinations.values():
            cleared += destination.queue
            destination.queue.clear()
        self._queued = 0
        return cleared

    def ill(self) -> Collection[str]:
        """The destinations that are suspended, being probed, or shut by their rules: those of the
        moment at which one is looked up. Any thread may do that."""
        return self._ill.keys()

    def is_shut(self, name: str) -> bool:
        """Whether its rules forbid to send there for now. Any thread."""
        rules = self._rules.get(name)
        return rules is not None and rules.shut

    def govern(self, rules: Mapping[str, Rules]) -> None:
        """Have these rules hold from now on, and no others."""
        former, self._rules = self._rules, rules
        for name in former.keys() | rules.keys():
            if former.get(name) == rules.get(name):
                continue
            destination = self._destinations.get(name)
            if destination is not None:
                destination.rules = rules.get(name)
                destination.tokens = 0.0 if destination.rules is None else destination.rules.burst
                destination.dry_until = None
                self._offer(destination)
            self._mark(name)

    def shed(self, name: str, keep: int) -> list[Held]:
        """Take out what is queued for a destination beyond its first `keep` deliveries."""
        if name not in self._destinations:
            return []
        queue = self._destinations[name].queue
        shed = [queue.pop() for _ in range(len(queue) - keep)]
        self._queued -= len(shed)
        return shed

    def reopen(self, now: Micros) -> list[str]:
        """End the suspensions that are over, each with a probe; the destinations' names. And give
        those that were out of tokens their turn."""
        self._refill(now)
        over: list[str] = []
        # Further off than any suspension is long: the clock was set back, and we do not wait for
        # it to catch up.
        while (
            self._reopenings and not now < self._reopenings[0][0] <= now + self._limits.suspend_max
        ):
            _, name = heappop(self._reopenings)
            destination = self._destinations[name]
            destination.suspended_until = None
            destination.probing = True
            self._offer(destination)
            over.append(name)
        return over

    def next_reopening(self) -> Micros | None:
        """When `reopen` is due: the first suspension ends, or a bucket has a token; None if there
        is neither."""
        return min((heap[0][0] for heap in (self._reopenings, self._refills) if heap), default=None)

    def close(self) -> None:
        """Hand out nothing more; every `take` returns None."""
        self._closed = True
        self._wake()

    @property
    def closed(self) -> bool:
        return self._closed

    def __len__(self) -> int:
        return self._queued

    def statistics(self) -> dict[str, DestinationStatistics]:
        """What each known destination is doing."""
        return {
            name: DestinationStatistics(
                len(d.queue),
                d.in_flight,
                d.allowed(),
                d.suspended_until,
                d.queue[0].delivery.due_at if d.queue else None,
            )
            for name, d in self._destinations.items()
        }

    def _offer(self, destination: Destination) -> None:
        """Give a destination its turn if it may have one, and wake whoever waits for it."""
        if not destination.in_ring and destination.eligible():
            destination.in_ring = True
            self._ring.append(destination)
            if self._turn is not None and not self.gathering:
                self._wake()

    def _wake(self) -> None:
        if self._turn is not None:
            self._turn.set()
            self._turn = None

    def _mark(self, name: str) -> None:
        """Enter a destination among the ill ones, or take it out."""
        destination = self._destinations.get(name)
        ill = destination is not None and (
            destination.probing or destination.suspended_until is not None
        )
        if ill or self.is_shut(name):
            self._ill[name] = None
        else:
            self._ill.pop(name, None)

    def _spend(self, destination: Destination, rules: Rules) -> None:
        """An attempt was begun under a rate."""
        if not rules.rate or rules.disabled is not None:
            return
        destination.spend(rules, self._clock.now())
        if destination.dry_until is not None:
            heappush(self._refills, (destination.dry_until, destination.name))
            self.on_dry(destination.dry_until)

    def _refill(self, now: Micros) -> None:
        while self._refills:
            when, name = self._refills[0]
            destination = self._destinations.get(name)
            if destination is not None and destination.dry_until == when:
                # Further off than a token takes: the clock was set back.
                if now < when <= now + destination.longest_wait():
                    return
                destination.dry_until = None
                self._offer(destination)
            heappop(self._refills)

    def _changed(self, destination: Destination, change: Change) -> None:
        if change == "suspended":
            assert destination.suspended_until is not None
            heappush(self._reopenings, (destination.suspended_until, destination.name))
        self._mark(destination.name)

    def _forget_idle(self) -> None:
        idle = [
            name
            for name, d in self._destinations.items()
            if not (d.queue or d.in_flight or d.rules) and d.suspended_until is None
        ]
        for name in idle:
            del self._destinations[name]
            self._ill.pop(name, None)
        # Where few are idle, not again for each new one: that would take time by the square.
        self._forget_at = max(_REMEMBERED, 2 * len(self._destinations))
