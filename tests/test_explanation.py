"""Explanations, pure: what holds a delivery back, what would help, in which words."""

from typing import Any

from msgspec.structs import replace

from primeflowd.explanation import (
    DestinationNow,
    Explanation,
    Surroundings,
    explain,
    met,
    policy_of,
)
from primeflowd.instants import HOUR, MINUTE, SECOND, Micros
from primeflowd.model import Attempt, Delivery
from primeflowd.retry_policies import EffectivePolicy
from primeflowd.testing.factories import DESTINATION, NOW, make_attempt, make_delivery

NODE = "node-1"


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


def kinds(explanation: Explanation) -> list[str]:
    return [hold.kind for hold in explanation.held_back_by]


def test_what_an_attempt_met_is_said_once() -> None:
    """5.5: the message of one that was cut short says interrupted by itself."""

    def told(reason: str, message: str | None) -> str:
        return met(make_attempt(status_code=None, failure_reason=reason, error_message=message))

    assert told("interrupted", "interrupted: a drain") == "interrupted: a drain"
    assert told("interrupted", None) == "interrupted: no more is known"
    assert told("timeout", "no answer within 5s") == "timeout: no answer within 5s"


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
    # Its time alone makes nothing go.
    assert later.would_go[0] == found.would_go[0]
    assert not any(each.startswith("wait") for each in later.would_go)
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
    slow = explained(delivery, destination=replace(free, rate=0.5)).summary
    assert "its turn among 4 that are due there, at an operator's limit of 0.5 per second" in slow
    capped = DestinationNow(queued=4, in_flight=2, window=2, concurrency=2)
    assert "an operator's limit of 2 at once is reached" in (
        explained(delivery, destination=capped).summary
    )
    narrow = explained(delivery, destination=replace(capped, concurrency=3)).summary
    assert "its window is full; 2 attempts are under way" in narrow
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
    gone = make_attempt(status_code=410, failure_reason="gone")
    found = explained(ended("failed", "gone", 1), gone)
    assert "3 more attempts were allowed, but this is final" in found.summary
    assert found.would_go[0].startswith("first make sure")
    assert "callback-redeliveries" in found.would_go[1]
    shut = DestinationNow(disabled="it answered 410")
    found = explained(ended("failed", "gone", 1), gone, destination=shut)
    enabling = "which is disabled (it answered 410): primeflowd destinations enable"
    assert enabling in found.would_go[1]
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
