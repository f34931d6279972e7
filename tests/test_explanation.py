"""Explanations, pure: the schedule by the rules of retry.py, what holds back, what would help."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from primeflowd.explanation import (
    DestinationNow,
    Explanation,
    Surroundings,
    explain,
    policy_of,
)
from primeflowd.instants import HOUR, MILLISECOND, MINUTE, SECOND, Micros
from primeflowd.model import Attempt, Delivery, Verdict
from primeflowd.retry import after_attempt, after_interruption
from primeflowd.retry_policies import EffectivePolicy
from primeflowd.testing.factories import DESTINATION, NOW, make_attempt, make_delivery

NODE = "node-1"
RETRY = Verdict(decision="retry", reason="http_status", detail="500")


def around(delivery: Delivery, **changes: Any) -> Surroundings:
    values: dict[str, Any] = {
        "node_id": NODE,
        "living": [NODE, "node-2"],
        "delivering": False,
        "destination": DestinationNow(),
        "policy_now": policy_of(delivery),
    }
    return Surroundings(**values | changes)


def explained(
    delivery: Delivery, *attempts: Attempt, now: Micros = NOW, **changes: Any
) -> Explanation:
    return explain(delivery, attempts, around(delivery, **changes), now)


def failed(number: int, at: Micros, took: int = 0, reason: str = "http_status") -> Attempt:
    return make_attempt(
        attempt_number=number,
        status_code=500 if reason == "http_status" else None,
        failure_reason=reason,
        error_message=f"{reason} it was",
        created_at=at,
        response_time=took,
    )


def kinds(explanation: Explanation) -> list[str]:
    return [hold.kind for hold in explanation.held_back_by]


def test_schedule_of_a_new_delivery() -> None:
    """3.5, 3.6: the first attempt at once, then each delay from the end of the one before."""
    steps = explained(make_delivery(claimed_by=NODE)).schedule
    assert [(each.attempt_number, each.state, each.delay, each.at - NOW) for each in steps] == [
        (1, "waiting", None, 0),
        (2, "planned", "15m", 15 * MINUTE),
        (3, "planned", "1h", 75 * MINUTE),
        (4, "planned", "24h", 75 * MINUTE + 24 * HOUR),
    ]


def test_an_overdue_attempt_puts_off_those_after_it() -> None:
    """3.6: their delays run from an end that is still to come."""
    steps = explained(make_delivery(), now=NOW + HOUR).schedule
    assert [each.at - NOW for each in steps[:2]] == [0, HOUR + 15 * MINUTE]


def test_attempts_on_record_and_the_one_that_waits() -> None:
    """5.5: what each met; 3.6: `hastened` is one that did not wait for its delay."""
    first = failed(1, NOW, took=2_000)
    due = NOW + 2 * SECOND + 15 * MINUTE
    early, in_time = failed(2, due - MILLISECOND), failed(2, due)
    waiting = make_delivery(attempt_count=2, due_at=due + HOUR)
    for second, hastened in ((early, True), (in_time, False)):
        steps = explained(waiting, first, second, now=due + SECOND).schedule
        assert [(each.state, each.delay, each.hastened) for each in steps] == [
            ("made", None, False),
            ("made", "15m", hastened),
            ("waiting", "1h", False),
            ("planned", "24h", False),
        ]
        assert [each.attempt for each in steps] == [first, second, None, None]


def test_an_interrupted_attempt_takes_a_number_and_no_retry() -> None:
    """5.6: the next one waits for no delay, and as many retries are left as before."""
    cut = failed(1, NOW, reason="interrupted")
    delivery = make_delivery(attempt_count=1, interruptions=1)
    steps = explained(delivery, cut).schedule
    assert [(each.attempt_number, each.state, each.delay) for each in steps] == [
        (1, "interrupted", None),
        (2, "waiting", None),
        (3, "planned", "15m"),
        (4, "planned", "1h"),
        (5, "planned", "24h"),
    ]


@given(
    delays=st.lists(st.sampled_from(["1s", "15m", "1h30m", "7d"]), max_size=5).map(tuple),
    more=st.integers(0, 4),
    events=st.lists(st.sampled_from(["fail", "interrupt"]), max_size=12),
    late=st.integers(0, HOUR),
)
def test_the_schedule_is_what_retry_does(
    delays: tuple[str, ...], more: int, events: list[str], late: Micros
) -> None:
    """3.3, 3.6: foretold from any state on, it is what comes if every attempt fails at once."""
    retries = len(delays) + more if delays else 0
    delivery = make_delivery(delays=delays, max_retries=retries, claimed_by=NODE)
    attempts: list[Attempt] = []
    for event in events:
        if delivery.due_at is None:
            break
        at = delivery.due_at
        number = delivery.attempt_count + 1
        if event == "fail":
            attempts.append(failed(number, at))
            delivery = after_attempt(delivery, RETRY, at, wait_cap=0)
        else:
            attempts.append(failed(number, at, reason="interrupted"))
            delivery = after_interruption(delivery, at)
    now = NOW if delivery.due_at is None else delivery.due_at + late
    steps = explained(delivery, *attempts, now=now).schedule
    assert [step.attempt_number for step in steps] == list(range(1, len(steps) + 1))
    assert not any(step.hastened for step in steps)
    foretold = [step.at for step in steps if step.attempt is None]
    came: list[Micros] = []
    while delivery.due_at is not None:
        came.append(delivery.due_at)
        delivery = after_attempt(delivery, RETRY, max(now, delivery.due_at), wait_cap=0)
    assert foretold == came


def test_not_due() -> None:
    delivery = make_delivery(due_at=NOW + 90 * SECOND)
    found = explained(delivery)
    assert kinds(found) == ["not_due"]
    assert found.held_back_by[0].until == delivery.due_at
    assert "in 1m 30s" in found.held_back_by[0].text
    assert found.would_go[0] == "wait until 2026-05-06T10:01:30Z"
    assert f"primeflowd deliveries retry {delivery.id}, or POST " in found.would_go[1]
    assert found.would_go[1].endswith(f"/v1/deliveries/{delivery.id}/attempt-now")


def test_a_suspension_that_ends_before_it_is_due_holds_nothing_back() -> None:
    """It will be over by then."""
    delivery = make_delivery(due_at=NOW + MINUTE, claimed_by=NODE)
    for until, expected in ((NOW + 5, ["not_due"]), (NOW + HOUR, ["not_due", "suspended"])):
        there = DestinationNow(queued=3, window=0, suspended_until=until)
        assert kinds(explained(delivery, destination=there)) == expected
    assert any(
        "not while the destination is suspended" in each
        for each in explained(delivery, destination=there).would_go
    )


def test_of_a_disabled_destination_it_says_why_and_who_can_help() -> None:
    """5.6: it waits, due or not; attempt-now does not help."""
    disabled = DestinationNow(disabled="moves to another host")
    found = explained(make_delivery(claimed_by=None), destination=disabled)
    assert kinds(found) == ["disabled"]
    assert found.held_back_by[0].text == f"{DESTINATION} is disabled: moves to another host"
    assert found.would_go == (
        f"an operator enables it: primeflowd destinations enable {DESTINATION}",
    )
    later = explained(make_delivery(due_at=NOW + HOUR), destination=disabled)
    assert kinds(later) == ["not_due", "disabled"]
    assert any("not while the destination is disabled" in each for each in later.would_go)


def test_held_back_by_its_destination() -> None:
    delivery = make_delivery(claimed_by=NODE)
    full = DestinationNow(queued=4, in_flight=5, window=5)
    assert kinds(explained(delivery, destination=full)) == ["window"]
    assert "5 attempts are under way" in explained(delivery, destination=full).summary
    probed = DestinationNow(queued=4, in_flight=1, window=1, probing=True)
    assert "probed" in explained(delivery, destination=probed).held_back_by[0].text
    free = DestinationNow(queued=4, in_flight=4, window=5)
    assert kinds(explained(delivery, destination=free)) == ["turn"]
    ill = DestinationNow(queued=4, window=0, suspended_until=NOW + SECOND)
    found = explained(delivery, destination=ill)
    assert kinds(found) == ["suspended"]
    assert "answers the probe at 2026-05-06T10:00:01Z" in found.would_go[0]
    # Over, but not reopened yet: the scheduler is about to.
    assert kinds(explained(delivery, destination=replace(ill, suspended_until=NOW))) == ["turn"]


def test_claimed_by_nobody_and_by_others() -> None:
    """Another node's window and queue are its own: this one can only say which to ask."""
    ill = DestinationNow(window=0, suspended_until=NOW + HOUR)
    assert kinds(explained(make_delivery())) == ["unclaimed"]
    theirs = explained(make_delivery(claimed_by="node-2"), destination=ill)
    assert kinds(theirs) == ["other_node"]
    assert theirs.claimed_by_living
    assert "ask node node-2" in theirs.would_go[0]
    lost = explained(make_delivery(claimed_by="node-3"), destination=ill)
    assert kinds(lost) == ["lost_node"]
    assert not lost.claimed_by_living
    assert "lease_ttl" in lost.would_go[0]


def test_under_way() -> None:
    """5.1: shown by the node that is sending."""
    delivery = make_delivery(claimed_by=NODE)
    found = explained(delivery, delivering=True, now=NOW + 5)
    assert found.schedule[0].state == "under_way"
    assert found.held_back_by == ()
    assert found.would_go == ("nothing is needed: an attempt is under way at this moment",)


def ended(status: str, reason: str | None, count: int) -> Delivery:
    return make_delivery(
        status=status,
        failure_reason=reason,
        attempt_count=count,
        due_at=None,
        completed_at=NOW,
    )


def test_succeeded() -> None:
    found = explained(ended("succeeded", None, 1), make_attempt())
    assert [step.state for step in found.schedule] == ["made"]
    assert "succeeded at 2026-05-06T10:00:00Z, after 1 attempt." in found.summary
    assert "met 200" in found.summary
    assert "callback-redeliveries" in found.would_go[0]
    assert "--again" in found.would_go[0]


def test_failed_with_retries_left() -> None:
    """5.2: what ended it early, and what has to be mended before it is sent again."""
    found = explained(ended("failed", "gone", 1), failed(1, NOW, reason="gone"))
    assert "3 more attempts were allowed, but this is final" in found.summary
    assert found.would_go[0].startswith("first make sure")
    assert "callback-redeliveries" in found.would_go[1]
    found = explained(ended("failed", "cancelled", 3))
    assert "1 more attempt was allowed, but it was cancelled" in found.summary
    found = explained(ended("failed", "timeout", 4))
    assert "more attempt" not in found.summary


def test_another_delivery_of_the_batch_is_in_flight() -> None:
    """4.8: a redelivery would be refused."""
    other = make_delivery()
    found = explained(ended("failed", "timeout", 4), in_flight=other)
    assert len(found.would_go) == 1
    assert other.id in found.would_go[0]


def test_policies_that_differ() -> None:
    """3.5: a later edit touches only later deliveries; both are told."""
    plan = EffectivePolicy("plan", "nightly", ("1m",), 2)
    delivery = make_delivery(claimed_by=NODE)
    assert "redelivery would" not in explained(delivery).summary
    summary = explained(delivery, policy_now=plan).summary
    assert "It goes by the daemon's default (15m, 1h, 24h; 3 retries)" in summary
    assert "A redelivery would go by the policy of plan 'nightly' (1m; 2 retries)." in summary
    assert DESTINATION not in summary
    none = EffectivePolicy("org", "", (), 0)
    assert "the org's default (no retry)" in explained(delivery, policy_now=none).summary
