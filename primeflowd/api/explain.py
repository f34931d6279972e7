"""`/v1/deliveries/{id}/explain`: why a delivery is where it is, as this node sees it."""

from collections.abc import Sequence
from functools import partial
from typing import Final

import msgspec

from primeflowd.api import shapes
from primeflowd.api.answer import Answer
from primeflowd.api.call import Call, Route
from primeflowd.api.shapes import AttemptShape, Count, EffectivePolicyShape, Id, Time
from primeflowd.config import DefaultPolicy
from primeflowd.errors import NotFound
from primeflowd.explanation import (
    DestinationNow,
    Explanation,
    Hold,
    HoldKind,
    Surroundings,
    explain,
    policy_of,
)
from primeflowd.hookspecs import Tx
from primeflowd.instants import Micros, rfc3339
from primeflowd.model import Attempt, Delivery, DeliveryStatus, FailureReason
from primeflowd.retry_policies import EffectivePolicy, effective_policy
from primeflowd.timetable import Step, StepState


class StepShape(msgspec.Struct, frozen=True):
    """One attempt: on record, under way or to come. `at` is its start, or when it is due."""

    attempt_number: Count
    state: StepState
    at: Time
    delay: str | None
    hastened: bool
    failure_reason_code: FailureReason | None
    attempt: AttemptShape | None


class HoldShape(msgspec.Struct, frozen=True):
    """What keeps the next attempt from being made now."""

    kind: HoldKind
    until: Time | None
    text: str


class ClaimShape(msgspec.Struct, frozen=True):
    """Who has it in memory."""

    node_id: str
    is_this_node: bool
    is_living: bool


class DestinationNowShape(msgspec.Struct, frozen=True):
    """What this node does for the destination; `window` is null where it has nothing to do."""

    name: str
    queued: Count
    in_flight: Count
    window: Count | None
    suspended_until: Time | None
    probing: bool


class ExplanationShape(msgspec.Struct, frozen=True):
    """Why a delivery is where it is, as one node sees it."""

    delivery_id: Id
    batch_id: Id
    callback_url: str
    status_code: DeliveryStatus
    failure_reason_code: FailureReason | None
    as_of: Time
    node_id: str
    summary: str
    policy: EffectivePolicyShape
    policy_now: EffectivePolicyShape
    schedule: list[StepShape]
    held_back_by: list[HoldShape]
    would_go: tuple[str, ...]
    claimed_by: ClaimShape | None
    destination: DestinationNowShape


class Found(msgspec.Struct, frozen=True):
    """What storage knows, of one moment."""

    delivery: Delivery
    attempts: Sequence[Attempt]
    in_flight: Delivery | None
    policy_now: EffectivePolicy
    living: Sequence[str]


async def get(call: Call) -> Answer:
    """Explain one delivery."""
    services = call.services
    found = await services.storage.read(
        partial(
            _find,
            call.org_id,
            call.identifier("delivery_id"),
            services.config.delivery.default_policy,
        )
    )
    delivery = found.delivery
    around = Surroundings(
        node_id=services.node_id(),
        living=found.living,
        delivering=delivery.status == "pending" and services.delivering(delivery.id),
        destination=services.destination(delivery.destination),
        policy_now=found.policy_now,
        in_flight=found.in_flight,
    )
    now = services.clock.now()
    explanation = explain(delivery, found.attempts, around, now)
    return shapes.answer(200, _shape(delivery, around, explanation, now))


def _find(org_id: str, delivery_id: str, default: DefaultPolicy, tx: Tx) -> Found:
    delivery = tx.delivery(org_id, delivery_id)
    if delivery is None:
        raise NotFound
    batch = tx.batch(org_id, delivery.batch_id)
    other = tx.in_flight(org_id, delivery.batch_id)
    return Found(
        delivery=delivery,
        attempts=tx.attempts([delivery.id]).get(delivery.id, []),
        in_flight=other if other is not None and other.id != delivery.id else None,
        policy_now=effective_policy(tx, org_id, batch.plan_id if batch else "", default),
        living=tx.nodes(),
    )


def _shape(
    delivery: Delivery, around: Surroundings, explanation: Explanation, now: Micros
) -> ExplanationShape:
    claim = None
    if delivery.claimed_by is not None and delivery.due_at is not None:
        claim = ClaimShape(
            node_id=delivery.claimed_by,
            is_this_node=delivery.claimed_by == around.node_id,
            is_living=explanation.claimed_by_living,
        )
    return ExplanationShape(
        delivery_id=delivery.id,
        batch_id=delivery.batch_id,
        callback_url=delivery.callback_url,
        status_code="delivering" if around.delivering else delivery.status,
        failure_reason_code=delivery.failure_reason,
        as_of=rfc3339(now),
        node_id=around.node_id,
        summary=explanation.summary,
        policy=shapes.effective_policy(policy_of(delivery)),
        policy_now=shapes.effective_policy(around.policy_now),
        schedule=[_step(each) for each in explanation.schedule],
        held_back_by=[_hold(each) for each in explanation.held_back_by],
        would_go=explanation.would_go,
        claimed_by=claim,
        destination=_destination(delivery.destination, around.destination),
    )


def _step(step: Step) -> StepShape:
    return StepShape(
        attempt_number=step.attempt_number,
        state=step.state,
        at=rfc3339(step.at),
        delay=step.delay,
        hastened=step.hastened,
        failure_reason_code=step.attempt.failure_reason if step.attempt else None,
        attempt=shapes.attempt(step.attempt) if step.attempt else None,
    )


def _hold(hold: Hold) -> HoldShape:
    return HoldShape(hold.kind, shapes.time(hold.until), hold.text)


def _destination(name: str, there: DestinationNow) -> DestinationNowShape:
    until = there.suspended_until
    return DestinationNowShape(
        name=name,
        queued=there.queued,
        in_flight=there.in_flight,
        window=there.window,
        suspended_until=shapes.time(until),
        probing=there.probing,
    )


ROUTES: Final = (Route("GET", "/v1/deliveries/<delivery_id>/explain", "deliveries:read", get),)
