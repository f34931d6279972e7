"""What the hot path counts for metrics: plain numbers, added to where things happen.

Nothing here knows of an exposition format; metrics.py reads these when it is asked. An attempt
costs well under a microsecond, which is why a counter of a library, with its lock, is not used.
Everything but `watch_loop` is synchronous, and everything is for the Trio thread.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Final

import trio

from primeflowd.histogram import Histogram
from primeflowd.hookspecs import RecordedAttempt
from primeflowd.instants import MILLISECOND, SECOND
from primeflowd.model import Delivery, FailureReason, Outcome, Verdict

LOOK_EVERY: Final = 1.0
"""Seconds between two looks at how late the event loop is."""


class AttemptTally:
    """What became of attempts, of their deliveries, and how long everything took.

    Attributes:
        outcomes: attempts by the status of the answer, or the reason why there was none.
        ended: deliveries that an attempt ended, by the reason of the failure; None: succeeded.
        first_delays: from the acceptance of a delivery to its first attempt.
        durations: of attempts, from start to end.
        lateness: of later attempts against the instant at which they were due.
    """

    def __init__(self) -> None:
        self.outcomes: defaultdict[int | FailureReason | None, int] = defaultdict(int)
        self.ended: defaultdict[FailureReason | None, int] = defaultdict(int)
        self.first_delays = Histogram(
            SECOND,
            (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800),
        )
        self.durations = Histogram(
            SECOND // MILLISECOND,
            (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60),
        )
        self.lateness = Histogram(
            SECOND, (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
        )

    def recording(
        self, tell: Callable[[RecordedAttempt], None]
    ) -> Callable[[RecordedAttempt], None]:
        """`tell`, with the attempt counted before: for whoever is told of attempts on record."""
        outcomes, ended = self.outcomes, self.ended
        took, waited = self.durations.observe, self.first_delays.observe

        def recorded(record: RecordedAttempt) -> None:
            attempt, delivery = record.attempt, record.delivery
            outcomes[attempt.status_code or attempt.failure_reason] += 1
            took(attempt.response_time)
            if attempt.attempt_number == 1:
                waited(attempt.created_at - delivery.created_at)
            if delivery.due_at is None:
                ended[delivery.failure_reason] += 1
            tell(record)

        return recorded

    def timing(
        self, classify: Callable[[Outcome, Delivery], Verdict]
    ) -> Callable[[Outcome, Delivery], Verdict]:
        """`classify`, with the lateness of retries measured before: it is the one place that sees
        an attempt together with the due time it had. Interrupted attempts do not come by."""
        late = self.lateness.observe

        def classified(outcome: Outcome, delivery: Delivery) -> Verdict:
            if delivery.attempt_count and delivery.due_at is not None:
                late(outcome.started_at - delivery.due_at)
            return classify(outcome, delivery)

        return classified


class RequestTally:
    """API requests.

    Attributes:
        counts: how many were answered, by method, template of the route, and status.
    """

    def __init__(self) -> None:
        self.counts: defaultdict[tuple[str, str, int], int] = defaultdict(int)

    def count(self, method: str, route: str | None, status: int) -> None:
        """`route`: the template, never a path; None if the request led to no route. `method`: one
        that exists, as both servers see to."""
        self.counts[method, route or "none", status] += 1


def loop_lags() -> Histogram:
    """A histogram for `watch_loop`."""
    return Histogram(SECOND, (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5))


async def watch_loop(lags: Histogram) -> None:
    """Put down every now and then how late the event loop wakes a task; until cancelled."""
    while True:
        due = trio.current_time() + LOOK_EVERY
        await trio.sleep_until(due)
        lags.observe(round((trio.current_time() - due) * SECOND))
