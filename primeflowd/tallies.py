"""What the hot path counts for metrics: plain numbers, added to where things happen.

Nothing here knows of an exposition format; metrics.py reads these when it is asked. An attempt
costs well under a microsecond, which is why a counter of a library, with its lock, is not used.
Everything but `watch_loop` is synchronous, and everything is for the Trio thread.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Final

import trio

from primeflowd.histogram import Histogram
from primeflowd.hookspecs import RecordedAttempt
from primeflowd.instants import MILLISECOND, SECOND
from primeflowd.model import FailureReason

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
        self, tell: Callable[[Sequence[RecordedAttempt]], None]
    ) -> Callable[[Sequence[RecordedAttempt]], None]:
        """`tell`, with the attempts counted before: for whoever is told of attempts on record."""
        outcomes, ended = self.outcomes, self.ended
        took, waited = self.durations.observe_all, self.first_delays.observe_all

        def recorded(records: Sequence[RecordedAttempt]) -> None:
            for record in records:
                attempt, delivery = record.attempt, record.delivery
                outcomes[attempt.status_code or attempt.failure_reason] += 1
                if delivery.due_at is None:
                    ended[delivery.failure_reason] += 1
            took([record.attempt.response_time for record in records])
            waited(
                [
                    record.attempt.created_at - record.delivery.created_at
                    for record in records
                    if record.attempt.attempt_number == 1
                ]
            )
            tell(records)

        return recorded


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
