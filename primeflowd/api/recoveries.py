"""`/v1/deliveries/recover` and `/recoveries/{id}`: bulk redelivery and its progress (5.4)."""

from functools import partial
from typing import Final, Literal

import msgspec

from primeflowd.api import decode, idempotency, shapes
from primeflowd.api.answer import Answer
from primeflowd.api.call import Call, Route
from primeflowd.api.decode import Instant
from primeflowd.api.deliveries import destination
from primeflowd.api.shapes import Count, Id, Time
from primeflowd.errors import NotFound
from primeflowd.hookspecs import Tx
from primeflowd.instants import rfc3339
from primeflowd.model import FailureReason, Recovery
from primeflowd.recovery import start_recovery


class RecoverBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which failed deliveries to redeliver: those created from `since` to `until` (now)."""

    since: Instant
    until: Instant | None = None
    destination: str | None = None
    failure_reason_code: FailureReason | None = None


class RecoveryShape(msgspec.Struct, frozen=True):
    """A bulk redelivery and how far it is: `redelivered` + `skipped` grow towards `matched`."""

    id: Id
    org_id: str
    status: Literal["running", "completed"]
    since: Time
    until: Time
    destination: str | None
    failure_reason_code: FailureReason | None
    matched: Count
    redelivered: Count
    skipped: Count
    created_at: Time
    completed_at: Time | None


class RecoveryStartedShape(msgspec.Struct, frozen=True):
    """A bulk redelivery that was asked for; its progress can be read."""

    id: Id
    matched: Count


_recover: Final = msgspec.json.Decoder(RecoverBody)


async def start(call: Call) -> Answer:
    """Ask for a recovery; the work is done in the background, paced."""
    body = await decode.body(call, _recover)
    since = decode.instant(body.since, "since")
    assert since is not None
    until = decode.instant(body.until, "until")
    if until is not None and until < since:
        raise decode.invalid("until", "expected a time after since")
    operation = partial(
        start_recovery,
        org_id=call.org_id,
        since=since,
        until=until,
        destination=destination(body.destination),
        failure_reason=body.failure_reason_code,
    )
    answer = await idempotency.perform(call, operation, _started)
    # Only to save time: a recovery whose client hung up here is found by the next look.
    call.services.recovery_started()
    return answer


async def get(call: Call) -> Answer:
    """How far a recovery is."""
    recovery = await call.services.storage.read(
        partial(_get, call.org_id, call.identifier("recovery_id"))
    )
    return shapes.answer(200, _shape(recovery))


def _get(org_id: str, recovery_id: str, tx: Tx) -> Recovery:
    recovery = tx.recovery(org_id, recovery_id)
    if recovery is None:
        raise NotFound
    return recovery


def _shape(value: Recovery) -> RecoveryShape:
    return RecoveryShape(
        id=value.id,
        org_id=value.org_id,
        status=value.status,
        since=rfc3339(value.since),
        until=rfc3339(value.until),
        destination=value.destination,
        failure_reason_code=value.failure_reason,
        matched=value.matched,
        redelivered=value.redelivered,
        skipped=value.skipped,
        created_at=rfc3339(value.created_at),
        completed_at=shapes.time(value.completed_at),
    )


def _started(recovery: Recovery) -> Answer:
    return shapes.answer(202, RecoveryStartedShape(recovery.id, recovery.matched))


_PATH: Final = "/v1/deliveries"

ROUTES: Final = (
    Route("POST", f"{_PATH}/recover", "deliveries:write", start),
    Route("GET", f"{_PATH}/recoveries/<recovery_id>", "deliveries:read", get),
)
