"""Making deliveries, and what people may ask of one: again, not at all, or now.

Operations over one transaction, as in lifecycle.py: each looks first and writes last.
"""

from typing import cast

from msgspec.structs import replace

from primeflowd.callback_url import parse
from primeflowd.errors import NotFound, StateRefused
from primeflowd.hookspecs import Tx
from primeflowd.instants import Micros, rfc3339
from primeflowd.model import TERMINAL_BATCH, TERMINAL_DELIVERY, Batch, Delivery, new_id
from primeflowd.retry_policies import effective_policy
from primeflowd.unit import Unit


def redeliver(unit: Unit, org_id: str, batch_id: str) -> Delivery:
    """Make another delivery of an ended batch: the same bytes, the policy resolved anew (4.9).

    Raises:
        NotFound: no such batch.
        StateRefused: `invalid_state`, `missing_callback_url`, `conflict` (contract 4.8).
    """
    batch = unit.tx.batch(org_id, batch_id)
    if batch is None:
        raise NotFound
    if batch.status not in TERMINAL_BATCH:
        raise StateRefused(
            "invalid_state", f"batch {batch.id} is {batch.status}: only an ended one has a callback"
        )
    if batch.callback_url is None or batch.payload is None:
        raise StateRefused("missing_callback_url", f"batch {batch.id} has no callback_url")
    if other := unit.tx.in_flight(org_id, batch.id):
        due = rfc3339(cast("Micros", other.due_at))
        raise StateRefused(
            "conflict",
            f"delivery {other.id} of this batch is in flight, its next attempt at {due}; "
            "cancel it first, or have it attempted now",
            {"delivery_id": other.id, "next_attempt_at": due},
        )
    return make_delivery(unit, batch, batch.payload, is_automatic=False)


def cancel_delivery(unit: Unit, org_id: str, delivery_id: str) -> Delivery:
    """End a delivery as `failed`/`cancelled`; an attempt under way still goes on record.

    Raises:
        NotFound: no such delivery.
        StateRefused: `invalid_state`, it has ended.
    """
    delivery = _open_delivery(unit.tx, org_id, delivery_id)
    # The claim stays: a sender that is on it now must still be able to record its attempt. If none
    # is, its node releases it after the commit.
    ended = replace(
        delivery,
        status="failed",
        failure_reason="cancelled",
        failure_detail="cancelled by request",
        due_at=None,
        updated_at=unit.now,
        completed_at=unit.now,
    )
    unit.tx.update_delivery(ended)
    unit.dropped.append(ended)
    return ended


def attempt_now(unit: Unit, org_id: str, delivery_id: str) -> Delivery:
    """Make a waiting delivery due at once; its retries are not touched.

    Raises:
        NotFound: no such delivery.
        StateRefused: `invalid_state`, it has ended.
    """
    delivery = _open_delivery(unit.tx, org_id, delivery_id)
    hastened = replace(
        delivery,
        due_at=min(unit.now, cast("Micros", delivery.due_at)),
        claimed_by=delivery.claimed_by or unit.node_for(delivery.destination),
        updated_at=unit.now,
    )
    unit.tx.update_delivery(hastened)
    unit.hastened.append(hastened)
    return hastened


def make_delivery(unit: Unit, batch: Batch, frozen: bytes, *, is_automatic: bool) -> Delivery:
    """Insert a delivery of an ended batch with a callback URL, due at once, with the policy and
    secret of now."""
    url = batch.callback_url
    assert url is not None
    destination = parse(url).destination
    claimed_by = unit.claims.get(destination)
    if claimed_by is None:
        claimed_by = unit.node_for(destination)
        if claimed_by is not None:
            unit.claims[destination] = claimed_by
    pattern = unit.patterns.get((batch.org_id, batch.plan_id))
    if pattern is None:
        pattern = unit.patterns[batch.org_id, batch.plan_id] = _pattern(unit, batch)
    delivery = replace(
        pattern,
        id=new_id(),
        batch_id=batch.id,
        callback_url=url,
        destination=destination,
        is_automatic=is_automatic,
        claimed_by=claimed_by,
    )
    unit.tx.insert_delivery(delivery)
    unit.made.append((delivery, frozen))
    return delivery


def _pattern(unit: Unit, batch: Batch) -> Delivery:
    """What deliveries of the batch's org and plan are made from now, wherever they go."""
    policy = effective_policy(unit.tx, batch.org_id, batch.plan_id, unit.default_policy)
    secret = unit.tx.current_secret(batch.org_id)
    return Delivery(
        id="",
        batch_id="",
        org_id=batch.org_id,
        callback_url="",
        destination="",
        is_automatic=True,
        status="pending",
        failure_reason=None,
        failure_detail=None,
        attempt_count=0,
        interruptions=0,
        delays=policy.delays,
        max_retries=policy.max_retries,
        policy_source=policy.source,
        policy_plan_id=policy.plan_id,
        signing_secret_id=secret.id if secret else None,
        due_at=unit.now,
        claimed_by=None,
        created_at=unit.now,
        updated_at=unit.now,
        completed_at=None,
    )


def _open_delivery(tx: Tx, org_id: str, delivery_id: str) -> Delivery:
    delivery = tx.delivery(org_id, delivery_id)
    if delivery is None:
        raise NotFound
    if delivery.status in TERMINAL_DELIVERY:
        raise StateRefused("invalid_state", f"delivery {delivery.id} has {delivery.status} already")
    return delivery
