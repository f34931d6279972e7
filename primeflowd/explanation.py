"""Why a delivery is where it is: its policy, its schedule, what holds it back, what would help.

Pure: what is on record and what this node sees, turned into values and plain sentences. It is one
node's view of one moment; of a delivery that another node has claimed it says which node to ask.
When its attempts were made and when others are due, timetable.py knows.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

import msgspec

from primeflowd import timetable
from primeflowd.durations import shown
from primeflowd.instants import SECOND, Micros, rfc3339
from primeflowd.model import Attempt, Delivery, FailureReason
from primeflowd.retry_policies import EffectivePolicy
from primeflowd.timetable import Step

HoldKind: TypeAlias = Literal[
    "not_due", "disabled", "suspended", "window", "turn", "unclaimed", "other_node", "lost_node"
]


class DestinationNow(msgspec.Struct, frozen=True):
    """What this node does for a destination.

    Attributes:
        queued, in_flight: deliveries that are due here, and attempts under way.
        window: attempts allowed at once at this moment, 0 while suspended.
        probing: a suspension is over and a single attempt finds out whether it answers again.
        disabled: why an operator, or its failing, has it wait; None where it does not.
        rate, concurrency: an operator's limits, of attempts a second and at once; 0 for none.
    """

    queued: int = 0
    in_flight: int = 0
    window: int | None = None
    suspended_until: Micros | None = None
    probing: bool = False
    disabled: str | None = None
    rate: float = 0.0
    concurrency: int = 0


class Surroundings(msgspec.Struct, frozen=True, kw_only=True):
    """What is known besides the delivery itself.

    Attributes:
        node_id: this node.
        living: the nodes whose leases hold.
        delivering: a sender of this node is on it.
        in_flight: the delivery of the same batch that is in flight, if another one is.
    """

    node_id: str
    living: Sequence[str]
    delivering: bool
    destination: DestinationNow
    policy_now: EffectivePolicy
    in_flight: Delivery | None = None


class Hold(msgspec.Struct, frozen=True):
    """Something that keeps the next attempt from being made now; `until` where that is known."""

    kind: HoldKind
    text: str
    until: Micros | None = None


class Explanation(msgspec.Struct, frozen=True):
    """The answer. `claimed_by_living`: the node that claimed it is not known to be gone."""

    schedule: tuple[Step, ...]
    held_back_by: tuple[Hold, ...]
    would_go: tuple[str, ...]
    summary: str
    claimed_by_living: bool


def explain(
    delivery: Delivery, attempts: Sequence[Attempt], around: Surroundings, now: Micros
) -> Explanation:
    """Explain a delivery whose `attempts`, ascending, are all that are on record."""
    steps = tuple(timetable.steps(delivery, attempts, around.delivering, now))
    holds = tuple(_holds(delivery, around, now))
    return Explanation(
        schedule=steps,
        held_back_by=holds,
        would_go=tuple(_remedies(delivery, holds, around)),
        summary=" ".join(_summary(delivery, attempts, steps, holds, around, now)),
        claimed_by_living=delivery.claimed_by in around.living,
    )


def describe_policy(policy: EffectivePolicy) -> str:
    """A policy and where it comes from, for a sentence."""
    if policy.source == "plan":
        name = f"the policy of plan {policy.plan_id!r}"
    else:
        name = "the org's default" if policy.source == "org" else "the daemon's default"
    if not policy.max_retries:
        return f"{name} (no retry)"
    retries = f"{policy.max_retries} {_plural(policy.max_retries, 'retry', 'retries')}"
    return f"{name} ({', '.join(policy.delays)}; {retries})"


def policy_of(delivery: Delivery) -> EffectivePolicy:
    """The policy that was copied onto the delivery when it was made."""
    return EffectivePolicy(
        delivery.policy_source, delivery.policy_plan_id, delivery.delays, delivery.max_retries
    )


def _holds(delivery: Delivery, around: Surroundings, now: Micros) -> Iterator[Hold]:
    due = delivery.due_at
    if due is None or around.delivering:
        return
    if due > now:
        yield Hold("not_due", f"it is due at {_time(due)}, in {shown(due - now)}", due)
    node = delivery.claimed_by
    if node is not None and node != around.node_id:
        if node in around.living:
            yield Hold("other_node", f"node {node} has claimed it, and attempts it when it can")
        else:
            yield Hold("lost_node", f"node {node} has claimed it, and its lease is over")
        return
    there, until = around.destination, around.destination.suspended_until
    if there.disabled is not None:
        yield Hold("disabled", f"{delivery.destination} is disabled: {there.disabled}")
        return
    if until is not None and until > max(now, due):
        text = f"{delivery.destination} gave no answer and is suspended until {_time(until)}"
        yield Hold("suspended", text, until)
        return
    if due > now:
        return
    if there.window is not None and there.in_flight >= there.window > 0:
        under_way = f"{there.in_flight} {_plural(there.in_flight, 'attempt is', 'attempts are')}"
        yield Hold("window", f"{delivery.destination}: {_full(there)}; {under_way} under way")
    elif node is None:
        yield Hold("unclaimed", "no node has claimed it yet: for lack of room, or it is seen to")
    else:
        turn = f"it waits for its turn among {there.queued} that are due there"
        limit = f", at an operator's limit of {there.rate:g} per second" if there.rate else ""
        yield Hold("turn", turn + limit)


def _full(there: DestinationNow) -> str:
    if there.probing:
        return "it is being probed after a suspension"
    if there.window == there.concurrency:
        return f"an operator's limit of {there.concurrency} at once is reached"
    return "its window is full"


def _remedies(delivery: Delivery, holds: Sequence[Hold], around: Surroundings) -> Iterator[str]:
    if around.delivering and delivery.due_at is not None:
        yield "nothing is needed: an attempt is under way at this moment"
    elif delivery.due_at is not None:
        kinds = {hold.kind for hold in holds}
        ill = next((kind for kind in ("suspended", "disabled") if kind in kinds), None)
        for hold in holds:
            if hold.kind != "not_due" or not ill:  # its time alone would not help
                yield from _remedy(delivery, hold)
        if "not_due" in kinds:
            at_once = f"have it attempted now: {_command(delivery, 'attempt-now')}"
            yield f"{at_once}, but not while the destination is {ill}" if ill else at_once
    elif around.in_flight is not None:
        yield (
            f"nothing is needed: delivery {around.in_flight.id} of the same batch is in flight; "
            "explain that one"
        )
    else:
        if reason := _MEND.get(delivery.failure_reason):
            yield f"first {reason}"
        if around.destination.disabled is not None:
            # What is sent again would wait, too: it may be this failure that has disabled it.
            name = f"{delivery.destination}, which is disabled ({around.destination.disabled})"
            command = f"primeflowd destinations enable {delivery.destination}"
            yield f"first have an operator enable {name}: {command}"
        again = f"send the same bytes again, under {describe_policy(around.policy_now)}"
        yield f"{again}: {_command(delivery, 'redeliver')}"


def _command(delivery: Delivery, what: Literal["attempt-now", "redeliver"]) -> str:
    """A request and a command that do the same."""
    if what == "attempt-now":
        request = f"/v1/deliveries/{delivery.id}/attempt-now"
        command = f"primeflowd deliveries retry {delivery.id}"
    else:
        request = f"/v1/batches/{delivery.batch_id}/callback-redeliveries"
        again = " --again" if delivery.status == "succeeded" else ""
        command = f"primeflowd deliveries retry {delivery.id}{again}"
    return f"{command}, or POST {request}"


def _remedy(delivery: Delivery, hold: Hold) -> Iterator[str]:
    if hold.until is not None and hold.kind == "not_due":
        yield f"wait until {_time(hold.until)}"
    elif hold.until is not None:
        yield (
            f"{delivery.destination} answers the probe at {_time(hold.until)}, with whatever "
            "status; until then attempt-now does not help"
        )
    elif hold.kind == "disabled":
        yield f"an operator enables it: primeflowd destinations enable {delivery.destination}"
    elif hold.kind == "other_node":
        yield f"ask node {delivery.claimed_by} for its view: only it knows its window and queue"
    elif hold.kind == "lost_node":
        yield "wait: another node frees it within [storage] lease_ttl"
    elif hold.kind == "window":
        yield f"an attempt under way to {delivery.destination} ends"
    else:
        yield "wait: nothing stands in its way but others before it"


_MEND: dict[FailureReason | None, str] = {
    "url_not_allowed": "allow its address in [delivery.egress], or enable its destination, or "
    "register a batch with another callback_url",
    "gone": "make sure that the receiver is there again: it said 410, gone for good",
    "dns_error": "make sure that the name of its host resolves",
    "connection_error": "make sure that the receiver can be connected to",
    "tls_error": "make sure that the receiver's certificate is valid for its host",
    "timeout": "make sure that the receiver answers within [delivery] timeout",
    "http_status": "make sure that the receiver answers 2xx",
    "response_error": "make sure that the receiver speaks HTTP, within the limits",
}


def _summary(
    delivery: Delivery,
    attempts: Sequence[Attempt],
    steps: Sequence[Step],
    holds: Sequence[Hold],
    around: Surroundings,
    now: Micros,
) -> Iterator[str]:
    count = delivery.attempt_count
    made = f"{count} {_plural(count, 'attempt', 'attempts')}"
    ended = delivery.completed_at
    if delivery.status == "succeeded" and ended is not None:
        yield f"It succeeded at {_past(ended)}, after {made}."
    elif delivery.status == "failed" and ended is not None:
        yield f"It failed for good at {_past(ended)} ({delivery.failure_reason}), after {made}."
        if left := delivery.max_attempts - (count - delivery.interruptions):
            why = "it was cancelled" if delivery.failure_reason == "cancelled" else "this is final"
            unused = _plural(left, "attempt was", "attempts were")
            yield f"{left} more {unused} allowed, but {why}."
    elif around.delivering:
        yield f"Attempt {count + 1} is under way at this moment, on this node."
    else:
        yield _waiting(delivery, holds, now)
    if attempts:
        yield f"The last attempt met {met(attempts[-1])}."
    own = policy_of(delivery)
    yield f"It goes by {describe_policy(own)}, as it stood when the delivery was made."
    if around.policy_now != own:
        yield f"A redelivery would go by {describe_policy(around.policy_now)}."
    if delivery.due_at is not None and len(steps) > 0 and steps[-1].state == "planned":
        yield f"Should all fail, the last attempt is due at {_time(steps[-1].at)} at the earliest."


def met(attempt: Attempt) -> str:
    """What an attempt met, in a few words."""
    if attempt.failure_reason is None:
        return f"{attempt.status_code}"
    if attempt.status_code is not None and attempt.failure_reason in ("http_status", "gone"):
        return f"{attempt.status_code}"
    return in_words(attempt.failure_reason, attempt.error_message or "no more is known")


def in_words(reason: str, message: str) -> str:
    """Why an attempt failed; a message that begins with the reason does not get it twice."""
    return message if message.startswith(reason) else f"{reason}: {message}"


def _waiting(delivery: Delivery, holds: Sequence[Hold], now: Micros) -> str:
    assert delivery.due_at is not None
    reasons = "; ".join(hold.text for hold in holds)
    if delivery.due_at > now:
        return f"It waits for attempt {delivery.attempt_count + 1}: {reasons}."
    overdue = shown(now - delivery.due_at)
    return f"Attempt {delivery.attempt_count + 1} has been due for {overdue}: {reasons}."


def _time(instant: Micros) -> str:
    """Of something to come, to the second, rounded up: at the time told, it is true."""
    return rfc3339(-(-instant // SECOND) * SECOND)


def _past(instant: Micros) -> str:
    return rfc3339(instant // SECOND * SECOND)


def _plural(count: int, one: str, many: str) -> str:
    return one if count == 1 else many
