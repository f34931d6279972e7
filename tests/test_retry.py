"""retry.py: the arithmetic of contract 3.3, 3.6, 5.1 and 5.6."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from primeflowd.durations import parse_delay
from primeflowd.instants import DAY, HOUR, MILLISECOND, MINUTE, Micros
from primeflowd.model import Delivery, RetryPolicy, Verdict
from primeflowd.retry import after_attempt, after_interruption, delay_before, schedule
from primeflowd.testing.factories import NOW, make_delivery

CAP = DAY

SUCCESS = Verdict(decision="success")
RETRY = Verdict(decision="retry", reason="timeout", detail="no answer in 30s")
FAIL = Verdict(decision="fail", reason="gone", detail="410")


def delivery(**changes: Any) -> Delivery:
    return make_delivery(claimed_by="node", **changes)


def policy(*delays: str, max_retries: int) -> RetryPolicy:
    return RetryPolicy(
        org_id="org",
        plan_id="",
        delays=delays,
        max_retries=max_retries,
        created_at=NOW,
        updated_at=NOW,
    )


@pytest.mark.parametrize(
    ("delays", "max_retries", "waits"),
    [
        (("15m", "1h", "24h"), 3, (15 * MINUTE, HOUR, DAY)),
        (("15m", "1h", "24h"), 2, (15 * MINUTE, HOUR)),
        (("15m", "1h"), 4, (15 * MINUTE, HOUR, HOUR, HOUR)),
        (("1s",), 0, ()),
        ((), 0, ()),
    ],
)
def test_schedule(delays: tuple[str, ...], max_retries: int, waits: tuple[Micros, ...]) -> None:
    """3.3: a longer tail is kept but unused; beyond it the last delay repeats."""
    assert schedule(policy(*delays, max_retries=max_retries)) == waits


@pytest.mark.parametrize(
    ("before", "verdict", "changes"),
    [
        pytest.param(
            delivery(),
            SUCCESS,
            {
                "status": "succeeded",
                "attempt_count": 1,
                "due_at": None,
                "claimed_by": None,
                "completed_at": NOW,
            },
            id="success at once",
        ),
        pytest.param(
            delivery(attempt_count=3, failure_reason="timeout", failure_detail="slow"),
            SUCCESS,
            {
                "status": "succeeded",
                "attempt_count": 4,
                "failure_reason": None,
                "failure_detail": None,
                "due_at": None,
                "claimed_by": None,
                "completed_at": NOW,
            },
            id="success with the last retry leaves no reason of failure",
        ),
        pytest.param(
            delivery(),
            RETRY,
            {
                "attempt_count": 1,
                "failure_reason": "timeout",
                "failure_detail": "no answer in 30s",
                "due_at": NOW + 15 * MINUTE,
            },
            id="first retry waits for the first delay",
        ),
        pytest.param(
            delivery(attempt_count=2, status="delivering"),
            RETRY,
            {
                "status": "pending",
                "attempt_count": 3,
                "failure_reason": "timeout",
                "failure_detail": "no answer in 30s",
                "due_at": NOW + DAY,
            },
            id="delivering goes back to pending",
        ),
        pytest.param(
            delivery(attempt_count=3),
            RETRY,
            {
                "status": "failed",
                "attempt_count": 4,
                "failure_reason": "timeout",
                "failure_detail": "no answer in 30s",
                "due_at": None,
                "claimed_by": None,
                "completed_at": NOW,
            },
            id="policy spent",
        ),
        pytest.param(
            delivery(delays=(), max_retries=0),
            RETRY,
            {
                "status": "failed",
                "attempt_count": 1,
                "failure_reason": "timeout",
                "failure_detail": "no answer in 30s",
                "due_at": None,
                "claimed_by": None,
                "completed_at": NOW,
            },
            id="no retries at all",
        ),
        pytest.param(
            delivery(),
            FAIL,
            {
                "status": "failed",
                "attempt_count": 1,
                "failure_reason": "gone",
                "failure_detail": "410",
                "due_at": None,
                "claimed_by": None,
                "completed_at": NOW,
            },
            id="permanent, with retries left",
        ),
        pytest.param(
            delivery(attempt_count=2, interruptions=2),
            RETRY,
            {
                "attempt_count": 3,
                "failure_reason": "timeout",
                "failure_detail": "no answer in 30s",
                "due_at": NOW + 15 * MINUTE,
            },
            id="interruptions used up no retry",
        ),
        pytest.param(
            delivery(attempt_count=5, interruptions=2),
            RETRY,
            {
                "status": "failed",
                "attempt_count": 6,
                "failure_reason": "timeout",
                "failure_detail": "no answer in 30s",
                "due_at": None,
                "claimed_by": None,
                "completed_at": NOW,
            },
            id="policy spent, after interruptions",
        ),
        pytest.param(
            delivery(max_retries=9, attempt_count=7),
            RETRY,
            {
                "attempt_count": 8,
                "failure_reason": "timeout",
                "failure_detail": "no answer in 30s",
                "due_at": NOW + DAY,
            },
            id="the last delay repeats",
        ),
    ],
)
def test_after_attempt(before: Delivery, verdict: Verdict, changes: dict[str, Any]) -> None:
    """3.3, 5.1, 5.2, 5.6: the whole value after it, so that nothing else changes."""
    after = after_attempt(before, verdict, NOW, wait_cap=CAP)
    assert after == msgspec.structs.replace(before, updated_at=NOW, **changes)


@pytest.mark.parametrize("decision", ["fail", "retry"])
def test_a_failed_delivery_has_a_reason_whatever_a_plugin_says(decision: Any) -> None:
    """5.1."""
    spent = delivery(max_retries=0)
    after = after_attempt(spent, Verdict(decision=decision), NOW, wait_cap=CAP)
    assert (after.status, after.failure_reason) == ("failed", "internal_error")


@pytest.mark.parametrize(
    ("asked", "waits"),
    [
        (None, HOUR),
        (0, HOUR),
        (-DAY, HOUR),
        (HOUR - 1, HOUR),
        (HOUR + 1, HOUR + 1),
        (DAY, DAY),
        (DAY + 1, DAY),
        (10**30, DAY),
    ],
)
def test_the_receivers_wait(asked: Micros | None, waits: Micros) -> None:
    """3.6: honoured up to the cap, and never to shorten a delay."""
    verdict = Verdict(decision="retry", reason="http_status", wait=asked)
    after = after_attempt(delivery(delays=("1h",)), verdict, NOW, wait_cap=CAP)
    assert after.due_at == NOW + waits


def test_a_cap_shorter_than_the_delay_does_not_shorten_it() -> None:
    """3.6."""
    verdict = Verdict(decision="retry", reason="http_status", wait=2 * DAY)
    after = after_attempt(delivery(delays=("1h",)), verdict, NOW, wait_cap=MINUTE)
    assert after.due_at == NOW + HOUR


def test_an_interruption_is_due_again_at_once_and_uses_no_retry() -> None:
    """5.6: on record under a number of its own; what failed before is still told."""
    before = delivery(
        status="delivering", attempt_count=1, failure_reason="timeout", due_at=NOW - HOUR
    )
    after = after_interruption(before, NOW)
    assert after == msgspec.structs.replace(
        before, status="pending", attempt_count=2, interruptions=1, due_at=NOW, updated_at=NOW
    )


spelt_delays = st.sampled_from(["1ms", "500ms", "1s", "1.5h", "15m", "24h", "30d"])
policies = st.lists(spelt_delays, min_size=1, max_size=6).map(tuple)
waits = st.none() | st.integers(-DAY, 40 * DAY)


@given(
    delays=policies,
    max_retries=st.integers(1, 20),
    used=st.integers(0, 19),
    interruptions=st.integers(0, 5),
    wait=waits,
    jitter=st.floats(0, 1),
    cap=st.integers(0, 30 * DAY),
)
def test_a_retry_is_never_early_and_jitter_only_adds(
    delays: tuple[str, ...],
    max_retries: int,
    used: int,
    interruptions: int,
    wait: Micros | None,
    jitter: float,
    cap: Micros,
) -> None:
    """3.6: from the end of the attempt; delay, wait up to the cap, jitter on top."""
    used %= max_retries
    before = delivery(
        delays=delays,
        max_retries=max_retries,
        attempt_count=used + interruptions,
        interruptions=interruptions,
    )
    verdict = Verdict(decision="retry", reason="timeout", wait=wait)
    plain = after_attempt(before, verdict, NOW, wait_cap=cap)
    jittered = after_attempt(before, verdict, NOW, jitter=jitter, wait_cap=cap)
    delay = parse_delay(delays[min(used + 1, len(delays)) - 1])
    assert delay_before(used + 1, delays) == delay

    assert plain.due_at is not None
    assert jittered.due_at is not None
    assert plain.due_at >= NOW + delay
    assert plain.due_at <= NOW + max(delay, cap)
    if wait is not None:
        assert plain.due_at >= NOW + min(wait, cap)
    assert 0 <= jittered.due_at - plain.due_at <= delay
    # The fraction of the delay, to the microsecond that a float may round away.
    assert abs(jittered.due_at - plain.due_at - delay * jitter) <= 1


@given(
    delays=policies,
    max_retries=st.integers(0, 12),
    interrupted=st.lists(st.booleans(), max_size=40),
)
def test_attempts_in_all_are_max_attempts_and_interruptions(
    delays: tuple[str, ...], max_retries: int, interrupted: list[bool]
) -> None:
    """5.5, 5.6: whatever drains come between, each retry of the policy is made once."""
    now, drains = NOW, iter(interrupted)
    waited: list[Micros] = []
    state = delivery(delays=delays, max_retries=max_retries)
    while state.status == "pending":
        assert state.due_at is not None
        now = state.due_at + 7 * MILLISECOND
        if next(drains, False):
            state = after_interruption(state, now)
            assert state.due_at == now
        else:
            state = after_attempt(state, RETRY, now, wait_cap=CAP)
            if state.due_at is not None:
                waited.append(state.due_at - now)
    assert state.status == "failed"
    assert state.attempt_count == state.max_attempts + state.interruptions
    assert tuple(waited) == schedule(policy(*delays, max_retries=max_retries))
