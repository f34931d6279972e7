"""The numbers of the hot path: Histogram, AttemptTally, RequestTally, watch_loop."""

from itertools import accumulate

import msgspec
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from primeflowd.histogram import Histogram
from primeflowd.hookspecs import RecordedAttempt
from primeflowd.instants import SECOND
from primeflowd.model import Delivery
from primeflowd.tallies import AttemptTally, RequestTally, loop_lags, watch_loop
from primeflowd.testing.factories import make_attempt, make_delivery


@given(st.lists(st.integers(-5_000, 5_000)))
def test_each_bucket_has_the_values_up_to_its_bound(values: list[int]) -> None:
    histogram = Histogram(1000, (0.5, 1, 2.5))
    for value in values:
        histogram.observe(value)
    assert histogram.bounds == [500, 1000, 2500]
    for bound, count in zip(histogram.bounds, accumulate(histogram.counts), strict=False):
        assert count == sum(value <= bound for value in values)
    assert sum(histogram.counts) == len(values)
    assert histogram.total == sum(value for value in values if value > 0)


def ended(delivery: Delivery, **changes: object) -> Delivery:
    return msgspec.structs.replace(delivery, due_at=None, **changes)


def test_attempts_are_counted_then_told() -> None:
    tally = AttemptTally()
    counted_before: list[int] = []
    recorded = tally.recording(lambda _: counted_before.append(sum(tally.outcomes.values())))
    delivery = make_delivery()
    answered = make_attempt(created_at=delivery.created_at + 3 * SECOND, response_time=40)
    recorded([RecordedAttempt(answered, ended(delivery, status="succeeded", failure_reason=None))])
    late = make_attempt(
        attempt_number=2,
        status_code=None,
        failure_reason="timeout",
        response_time=30_000,
        created_at=delivery.created_at + 90 * SECOND,
    )
    recorded(
        [
            RecordedAttempt(late, msgspec.structs.replace(delivery, failure_reason="timeout")),
            RecordedAttempt(late, ended(delivery, status="failed", failure_reason="timeout")),
        ]
    )
    assert counted_before == [1, 3]
    assert tally.outcomes == {200: 1, "timeout": 2}
    assert tally.ended == {None: 1, "timeout": 1}
    # The first attempt only; that of a delivery that goes on ends nothing.
    assert tally.first_delays.total == 3 * SECOND
    assert tally.durations.total == 40 + 30_000 + 30_000


def test_requests_that_led_nowhere_are_one() -> None:
    tally = RequestTally()
    for _ in range(100):
        tally.count("GET", None, 404)
    tally.count("POST", "/v1/batches", 201)
    assert tally.counts == {("GET", "none", 404): 100, ("POST", "/v1/batches", 201): 1}


async def test_the_loop_is_looked_at_every_second(mock_clock: MockClock) -> None:
    lags = loop_lags()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch_loop, lags)
        await trio.testing.wait_all_tasks_blocked()
        for late in (0.0, 0.25):
            mock_clock.jump(1.0 + late)
            await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert sum(lags.counts) == 2
    assert lags.total == round(0.25 * SECOND)
