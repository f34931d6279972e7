"""Per-destination queues: who is sent to next, and how many attempts each may have at once.

Owns, for each destination (scheme, host and port), the deliveries that are due now, a concurrency
window, and whether it is suspended. Guarantees that destinations take turns (round robin), so that
one with a thousand due deliveries delays another by one round at most, and that no destination has
more attempts under way than its window.

The window follows Postfix's queue manager: it opens by one for every window's worth of successes
(slow start from `window_initial`) and closes likewise on failures, down to 1. A window's worth of
attempts that met no answer at all, with none between that did, is a *failed cohort*; after
`suspend_after` of them, spread over `suspend_period` at least, the destination is suspended. When
the suspension ends, a single attempt probes it: any answer reopens it at `window_initial`, none
suspends it again for twice as long, up to `suspend_max`. Attempts that were under way when it was
suspended decide nothing any more, however late they end.

A destination that answers, if only with errors, is never suspended: its attempts cost little, and
each is owed to its delivery's retry policy at its time.

An operator's rules for a destination (destination_rules.py) go on top of that: a cap on attempts at
once, a token bucket, or that it is shut. Only those that have rules pay for them.

Only `take` and `turn` block. Source of the scheme: Postfix SCHEDULER_README.
"""

from collections import deque
from collections.abc import Callable, Collection, Mapping
from heapq import heappop, heappush
from math import ceil
from typing import Final, Literal, TypeAlias

import msgspec
import trio

from primeflowd.clock import Clock, SystemClock
from primeflowd.config import DeliverySettings
from primeflowd.destination_rules import Rules
from primeflowd.instants import MILLISECOND, SECOND, Micros
from primeflowd.model import Delivery

Change: TypeAlias = Literal["suspended", "recovered"]
"""What the end of an attempt may mean for its destination."""

# Idle destinations are forgotten beyond this many; what is lost is a learnt window.
_REMEMBERED = 4096
# A bucket that is empty waits for at least so long, if it holds what comes in meanwhile: a turn of
# the scheduler for each of a thousand tokens a second would cost more than the attempts.
_SIP: Final[Micros] = 10 * MILLISECOND


class Held:
    """A delivery in memory, claimed by this node.

    Attributes:
        body: the payload while it is kept; None means that the sender reads it from storage.
        dropped: a person ended it while a sender had it; it must not be started again.
        era: how often its destination had been suspended when it was taken.
        rules: those of its destination when it was taken; None for none.
    """

    __slots__ = ("body", "delivery", "dropped", "era", "rules")

    def __init__(self, delivery: Delivery, body: bytes | None) -> None:
        self.delivery = delivery
        self.body = body
        self.dropped = False
        self.era = 0
        self.rules: Rules | None = None


class DestinationStatistics(msgspec.Struct, frozen=True):
    """`window` is the number of attempts allowed at once; `suspended_until` None if it is not;
    `oldest_due` is when the first of the queue was due, None if nothing is queued."""

    queued: int
    in_flight: int
    window: int
    suspended_until: Micros | None
    oldest_due: Micros | None = None


class _Destination:
    __slots__ = (
        "counted_at",
        "dry_until",
        "era",
        "failed_cohorts",
        "failing_since",
        "in_flight",
        "in_ring",
        "name",
        "probing",
        "queue",
        "rules",
        "suspended_until",
        "suspension",
        "tokens",
        "window",
    )

    def __init__(self, name: str, window: float, rules: Rules | None) -> None:
        self.name = name
        self.rules = rules
        # As of `counted_at`; until when there is none, None where there is one.
        self.tokens = 0.0 if rules is None else float(rules.burst)
        self.counted_at: Micros = 0
        self.dry_until: Micros | None = None
        self.queue: deque[Held] = deque()
        self.in_flight = 0
        self.window = window
        self.failed_cohorts = 0.0
        self.failing_since: Micros | None = None
        self.era = 0
        self.suspended_until: Micros | None = None
        self.suspension: Micros = 0
        self.probing = False
        self.in_ring = False

    def allowed(self) -> int:
        if self.suspended_until is not None or (self.rules is not None and self.rules.shut):
            return 0
        window = 1 if self.probing else int(self.window)
        if self.rules is not None and self.rules.concurrency:
            return min(window, self.rules.concurrency)
        return window

    def cohort(self) -> float:
        """The part of a window's worth of attempts that one attempt makes."""
        return 1 / int(self.window)

    def eligible(self) -> bool:
        if not self.queue:
            return False
        if self.rules is None and self.suspended_until is None and not self.probing:
            return self.in_flight < int(self.window)
        return self.dry_until is None and self.in_flight < self.allowed()


class Destinations:
    """The due deliveries of all destinations, handed out fairly.

    Attributes:
        on_dry: told when a destination has spent its tokens, and when `reopen` is due for it.
    """

    def __init__(self, settings: DeliverySettings, clock: Clock | None = None) -> None:
        self.on_dry: Callable[[Micros], None] = lambda when: None
        self._clock = clock or SystemClock()
        self._rules: Mapping[str, Rules] = {}
        self._destinations: dict[str, _Destination] = {}
        # Suspended, being probed, or shut.
        self._ill: dict[str, None] = {}
        # The suspended ones by when that ends; each is in here once.
        self._reopenings: list[tuple[Micros, str]] = []
        # When destinations that are out of tokens have one again; may be out of date.
        self._refills: list[tuple[Micros, str]] = []
        self._forget_at = _REMEMBERED
        # Destinations that may be eligible, in the order of their turns.
        self._ring: deque[_Destination] = deque()
        # Whoever waits for a turn waits for this.
        self._turn: trio.Event | None = None
        self._queued = 0
        self._closed = False
        self.reconfigure(settings)

    def reconfigure(self, settings: DeliverySettings) -> None:
        """Go by `settings` from now on. A window that is wider than they allow is narrowed, for the
        attempts to come; a suspension under way ends when it was to, if that is not beyond
        `suspend_max`."""
        # More than a quarter of the pool for one destination would leave too little for others
        # while it hangs; a pool too small for that shares as well as it can.
        ceiling = max(1, settings.concurrency // 4)
        self._initial = float(min(settings.window_initial, ceiling))
        self._max = float(min(max(settings.window_max, settings.window_initial), ceiling))
        self._suspend_after = settings.suspend_after
        self._suspend_period = settings.suspend_period.micros
        self._suspend_min = settings.suspend_min.micros
        self._suspend_max = settings.suspend_max.micros
        for destination in self._destinations.values():
            destination.window = min(destination.window, self._max)

    def put(self, held: Held) -> None:
        """Queue a delivery that is due."""
        name = held.delivery.destination
        destination = self._destinations.get(name)
        if destination is None:
            if len(self._destinations) >= self._forget_at:
                self._forget_idle()
            destination = self._destinations[name] = _Destination(
                name, self._initial, self._rules.get(name)
            )
        destination.queue.append(held)
        self._queued += 1
        self._offer(destination)

    def take_now(self) -> Held | None:
        """The next delivery to attempt, from the destination whose turn it is; None if there is
        none at the moment, or no more at all. The caller must call `done` with it afterwards."""
        if self._closed:
            return None
        while self._ring:
            destination = self._ring.popleft()
            destination.in_ring = False
            if not destination.eligible():
                continue
            held = destination.queue.popleft()
            self._queued -= 1
            destination.in_flight += 1
            held.era = destination.era
            held.rules = destination.rules
            if held.rules is not None:
                self._spend(destination, held.rules)
            # One more may start: pass the turn on.
            if destination.queue:
                self._offer(destination)
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
        self, held: Held, failed: bool | None, now: Micros, *, answered: bool = False
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
                change = self._succeeded(destination)
            elif answered:
                change = self._strained(destination)
            else:
                change = self._failed(destination, now)
        if destination.queue:
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
        """The destinations that are suspended, being probed, or shut by their rules. Any thread
        may look one up."""
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
        while self._reopenings and not now < self._reopenings[0][0] <= now + self._suspend_max:
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

    def _offer(self, destination: _Destination) -> None:
        """Give a destination its turn if it may have one, and wake whoever waits for it."""
        if not destination.in_ring and destination.eligible():
            destination.in_ring = True
            self._ring.append(destination)
            if self._turn is not None:
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

    def _spend(self, destination: _Destination, rules: Rules) -> None:
        """An attempt was begun under a rate."""
        if not rules.rate or rules.disabled is not None:
            return
        now = self._clock.now()
        # The clock may have been set back: that brings no tokens.
        gained = max(0, now - destination.counted_at) * rules.rate / SECOND
        destination.tokens = min(float(rules.burst), destination.tokens + gained) - 1
        destination.counted_at = now
        if destination.tokens < 1:
            wait = ceil((1 - destination.tokens) * SECOND / rules.rate)
            at_least = min(_SIP, ceil((rules.burst - destination.tokens) * SECOND / rules.rate))
            destination.dry_until = now + max(wait, at_least)
            heappush(self._refills, (destination.dry_until, destination.name))
            self.on_dry(destination.dry_until)

    def _refill(self, now: Micros) -> None:
        while self._refills:
            when, name = self._refills[0]
            destination = self._destinations.get(name)
            if destination is not None and destination.dry_until == when:
                rate = destination.rules.rate if destination.rules is not None else 0.0
                # Further off than a token takes: the clock was set back.
                longest = now + (ceil(2 * SECOND / rate) + _SIP if rate else 0)
                if now < when <= longest:
                    return
                destination.dry_until = None
                self._offer(destination)
            heappop(self._refills)

    def _succeeded(self, destination: _Destination) -> Change | None:
        if destination.window >= self._max and destination.failing_since is None:
            return None  # as well as it can be
        recovered = self._reached(destination)
        if recovered is None:
            destination.window = min(self._max, destination.window + destination.cohort())
        return recovered

    def _strained(self, destination: _Destination) -> Change | None:
        recovered = self._reached(destination)
        if recovered is None:
            destination.window = max(1.0, destination.window - destination.cohort())
        return recovered

    def _reached(self, destination: _Destination) -> Change | None:
        """It answered: what spoke for suspending it is void."""
        destination.failed_cohorts = 0.0
        destination.failing_since = None
        if not destination.probing:
            return None
        destination.probing = False
        destination.suspension = 0
        destination.window = self._initial
        self._mark(destination.name)
        return "recovered"

    def _failed(self, destination: _Destination, now: Micros) -> Change | None:
        destination.failed_cohorts += destination.cohort()
        destination.window = max(1.0, destination.window - destination.cohort())
        if destination.failing_since is None:
            destination.failing_since = now
        if not destination.probing and (
            destination.failed_cohorts < self._suspend_after
            or now < destination.failing_since + self._suspend_period
        ):
            return None
        destination.probing = False
        destination.era += 1
        destination.suspension = min(
            self._suspend_max, destination.suspension * 2 or self._suspend_min
        )
        destination.suspended_until = now + destination.suspension
        heappush(self._reopenings, (destination.suspended_until, destination.name))
        self._ill[destination.name] = None
        return "suspended"

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
