"""One destination: its queue, its window, whether it is suspended, its tokens. Pure.

The window follows Postfix's queue manager: it opens by one for every window's worth of successes
(slow start from `window_initial`) and closes likewise on failures, down to 1. A window's worth of
attempts that met no answer at all, with none between that did, is a *failed cohort*; after
`suspend_after` of them, spread over `suspend_period` at least, the destination is suspended. When
the suspension ends, a single attempt probes it: any answer reopens it at `window_initial`, none
suspends it again for twice as long, up to `suspend_max`. Attempts that were under way when it was
suspended decide nothing any more, however late they end.

A destination that answers, if only with errors, is never suspended: its attempts cost little, and
each is owed to its delivery's retry policy at its time.

An operator may set a rate: then each attempt takes a token from a bucket of `burst`, which fills up
by `rate` a second. Source of the scheme: Postfix SCHEDULER_README.
"""

from collections import deque
from math import ceil
from typing import Final, Literal, Self, TypeAlias

import msgspec

from primeflowd.config import DeliverySettings
from primeflowd.destination_rules import Rules
from primeflowd.instants import MILLISECOND, SECOND, Micros
from primeflowd.model import Delivery

Change: TypeAlias = Literal["suspended", "recovered"]
"""What the end of an attempt may mean for its destination."""

# A bucket that is empty waits for at least so long, if it holds what comes in meanwhile: a turn of
# the scheduler for each of a thousand tokens a second would cost more than the attempts.
_SIP: Final[Micros] = 10 * MILLISECOND


class Limits(msgspec.Struct, frozen=True):
    """What settings say of all destinations. Periods in microseconds."""

    window_initial: float
    window_max: float
    suspend_after: int
    suspend_period: Micros
    suspend_min: Micros
    suspend_max: Micros

    @classmethod
    def of(cls, settings: DeliverySettings) -> Self:
        # More than a quarter of the pool for one destination would leave too little for others
        # while it hangs; a pool too small for that shares as well as it can.
        ceiling = max(1, settings.concurrency // 4)
        return cls(
            float(min(settings.window_initial, ceiling)),
            float(min(max(settings.window_max, settings.window_initial), ceiling)),
            settings.suspend_after,
            settings.suspend_period.micros,
            settings.suspend_min.micros,
            settings.suspend_max.micros,
        )


class Held(msgspec.Struct, eq=False, gc=False):
    """A delivery in memory, claimed by this node.

    Attributes:
        body: the payload while it is kept; None means that the sender reads it from storage.
        dropped: a person ended it while a sender had it; it must not be started again.
        era: how often its destination had been suspended when it was taken.
        rules: those of its destination when it was taken; None for none.
    """

    delivery: Delivery
    body: bytes | None
    dropped: bool = False
    era: int = 0
    rules: Rules | None = None


class Destination:
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

    def succeeded(self, limits: Limits) -> Change | None:
        """An attempt has met a receiver that looks well. As `strained` and `failed`, says whether
        that has changed anything for others."""
        if self.failing_since is not None or self.probing:
            recovered = self._reached(limits)
            if recovered is not None:
                return recovered
        window = self.window
        if window < limits.window_max:
            window += self.cohort()
            self.window = window if window < limits.window_max else limits.window_max
        return None

    def strained(self, limits: Limits) -> Change | None:
        """An attempt has met an answer that says that it is not well."""
        recovered = self._reached(limits)
        if recovered is None:
            self.window = max(1.0, self.window - self.cohort())
        return recovered

    def failed(self, limits: Limits, now: Micros) -> Change | None:
        """An attempt has met no answer."""
        self.failed_cohorts += self.cohort()
        self.window = max(1.0, self.window - self.cohort())
        if self.failing_since is None:
            self.failing_since = now
        if not self.probing and (
            self.failed_cohorts < limits.suspend_after
            or now < self.failing_since + limits.suspend_period
        ):
            return None
        self.probing = False
        self.era += 1
        self.suspension = min(limits.suspend_max, self.suspension * 2 or limits.suspend_min)
        self.suspended_until = now + self.suspension
        return "suspended"

    def _reached(self, limits: Limits) -> Change | None:
        """It answered: what spoke for suspending it is void."""
        self.failed_cohorts = 0.0
        self.failing_since = None
        if not self.probing:
            return None
        self.probing = False
        self.suspension = 0
        self.window = limits.window_initial
        return "recovered"

    def spend(self, rules: Rules, now: Micros) -> None:
        """Take a token; it is dry for a while if that was the last one."""
        # The clock may have been set back: that brings no tokens.
        gained = max(0, now - self.counted_at) * rules.rate / SECOND
        self.tokens = min(float(rules.burst), self.tokens + gained) - 1
        self.counted_at = now
        if self.tokens < 1:
            wait = ceil((1 - self.tokens) * SECOND / rules.rate)
            at_least = min(_SIP, ceil((rules.burst - self.tokens) * SECOND / rules.rate))
            self.dry_until = now + max(wait, at_least)

    def longest_wait(self) -> Micros:
        """For how long it may be dry, at most."""
        rate = self.rules.rate if self.rules is not None else 0.0
        return ceil(2 * SECOND / rate) + _SIP if rate else 0
