"""The JSON of batches, items, deliveries and attempts, and what that of other objects is made of.

What only one module shows is in that module. Fields are in the order shown; deliveries and their
attempts have exactly those of document B. JSON that came from a client is embedded as the bytes
that are stored, never parsed. Instants are RFC 3339 with `Z` (contract 2.8). All functions are
pure.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta, Raw

from primeflowd.api.answer import Answer
from primeflowd.instants import Micros, rfc3339
from primeflowd.model import (
    Attempt,
    Batch,
    BatchStatus,
    Delivery,
    DeliveryStatus,
    FailureReason,
    Item,
    ItemStatus,
    PolicySource,
)
from primeflowd.retry_policies import EffectivePolicy

Shape: TypeAlias = msgspec.Struct | Mapping[str, object]

# What the document of the API says of a field; encoding does not look at it.
Id: TypeAlias = Annotated[str, Meta(extra_json_schema={"format": "uuid"})]
Time: TypeAlias = Annotated[
    str, Meta(description="RFC 3339, in UTC", extra_json_schema={"format": "date-time"})
]
Count: TypeAlias = Annotated[int, Meta(ge=0)]

encode: Final = msgspec.json.Encoder().encode


def answer(status: int, shape: object) -> Answer:
    """An answer with this object as its body."""
    return Answer(status, encode(shape))


def page(shapes: Sequence[Shape], following: str | None) -> Answer:
    """The answer to a list: 200, and the cursor of the next page or null."""
    return Answer(200, encode({"items": shapes, "next": following}))


class BatchShape(msgspec.Struct, frozen=True):
    """A batch. `metadata` and `output` as the client gave them; null until known."""

    id: Id
    org_id: str
    plan_id: str
    callback_url: str | None
    status: BatchStatus
    metadata: Raw | None
    output: Raw | None
    items_total: Count | None
    items_succeeded: Count
    items_failed: Count
    items_cancelled: Count
    cancellation_reason: str | None
    created_at: Time
    started_at: Time | None
    completed_at: Time | None
    updated_at: Time


class ItemShape(msgspec.Struct, frozen=True):
    """An item of a batch."""

    sequence_index: Count
    client_ref: str | None
    status_code: ItemStatus
    input: Raw | None
    output: Raw | None
    error: Raw | None
    updated_at: Time


class AttemptShape(msgspec.Struct, frozen=True):
    """One POST of a callback, on record."""

    id: Id
    delivery_id: Id
    attempt_number: Count
    status_code: int | None
    response_body: str | None
    response_time_ms: Count
    error_message: str | None
    created_at: Time


class DeliveryShape(msgspec.Struct, frozen=True):
    """A callback on its way, or arrived, with every attempt on record."""

    id: Id
    batch_id: Id
    callback_url: str
    payload_bytes: str
    payload: Raw
    signing_secret_id: Id | None
    is_automatic: bool
    status_code: DeliveryStatus
    failure_reason_code: FailureReason | None
    failure_detail: str | None
    attempt_count: Count
    max_attempts: Count
    next_attempt_at: Time | None
    created_at: Time
    updated_at: Time
    completed_at: Time | None
    attempts: list[AttemptShape]


class EffectivePolicyShape(msgspec.Struct, frozen=True):
    """The retry policy that a delivery made now would get, and where it comes from."""

    source: PolicySource
    plan_id: str
    delays: tuple[str, ...]
    max_retries: Count
    max_attempts: Count


def time(instant: Micros | None) -> str | None:
    """As rfc3339, of something that may not have happened."""
    return None if instant is None else rfc3339(instant)


def batch(value: Batch) -> BatchShape:
    # In the order of the fields: by name, so many cost as much as encoding them, and every batch
    # that is sent by itself is answered with one.
    return BatchShape(
        value.id,
        value.org_id,
        value.plan_id,
        value.callback_url,
        value.status,
        _raw(value.metadata),
        _raw(value.output),
        value.items_total,
        value.items_succeeded,
        value.items_failed,
        value.items_cancelled,
        value.cancellation_reason,
        rfc3339(value.created_at),
        time(value.started_at),
        time(value.completed_at),
        rfc3339(value.updated_at),
    )


def item(value: Item) -> ItemShape:
    return ItemShape(
        sequence_index=value.sequence_index,
        client_ref=value.client_ref,
        status_code=value.status,
        input=_raw(value.input),
        output=_raw(value.output),
        error=_raw(value.error),
        updated_at=rfc3339(value.updated_at),
    )


def delivery(
    value: Delivery, payload: bytes, attempts: Sequence[Attempt], *, delivering: bool = False
) -> DeliveryShape:
    """`delivering`: a sender is on it now, which storage does not know."""
    return DeliveryShape(
        id=value.id,
        batch_id=value.batch_id,
        callback_url=value.callback_url,
        payload_bytes=payload.decode(),
        payload=Raw(payload),
        signing_secret_id=value.signing_secret_id,
        is_automatic=value.is_automatic,
        status_code="delivering" if delivering and value.status == "pending" else value.status,
        failure_reason_code=value.failure_reason,
        failure_detail=value.failure_detail,
        attempt_count=value.attempt_count,
        max_attempts=value.max_attempts,
        next_attempt_at=time(value.due_at),
        created_at=rfc3339(value.created_at),
        updated_at=rfc3339(value.updated_at),
        completed_at=time(value.completed_at),
        attempts=[attempt(each) for each in attempts],
    )


def attempt(value: Attempt) -> AttemptShape:
    return AttemptShape(
        id=value.id,
        delivery_id=value.delivery_id,
        attempt_number=value.attempt_number,
        status_code=value.status_code,
        response_body=value.response_body,
        response_time_ms=value.response_time,
        error_message=value.error_message,
        created_at=rfc3339(value.created_at),
    )


def effective_policy(value: EffectivePolicy) -> EffectivePolicyShape:
    return EffectivePolicyShape(
        source=value.source,
        plan_id=value.plan_id,
        delays=value.delays,
        max_retries=value.max_retries,
        max_attempts=value.max_retries + 1,
    )


def _raw(document: bytes | None) -> Raw | None:
    return None if document is None else Raw(document)
