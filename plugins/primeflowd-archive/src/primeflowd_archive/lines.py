"""What the archive says of an attempt. Pure.

Neither payload nor secrets: the query of a callback URL is left out, because that is where people
put tokens, and of signing secrets there is the id alone.
"""

from typing import Final

import msgspec

from primeflowd.hookspecs import RecordedAttempt
from primeflowd.instants import MILLISECOND, rfc3339


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt; the fields are named as in primeflowd's API where that has them.

    Attributes:
        url: the callback URL without its query.
        started_at, ended_at, next_attempt_at: RFC 3339, UTC.
        failure_reason_code: of the attempt; null for a success.
        delivery_status: of the delivery right after the attempt: `pending`, `succeeded`, `failed`.
        response_body: absent unless the settings ask for it.
    """

    attempt_id: str
    delivery_id: str
    batch_id: str
    org_id: str
    destination: str
    url: str
    is_automatic: bool
    attempt_number: int
    max_attempts: int
    started_at: str
    ended_at: str
    response_time_ms: int
    status_code: int | None
    failure_reason_code: str | None
    error_message: str | None
    signing_secret_id: str | None
    delivery_status: str
    next_attempt_at: str | None
    response_body: str | msgspec.UnsetType | None = msgspec.UNSET


_encode: Final = msgspec.json.Encoder().encode


def line(record: RecordedAttempt, *, with_body: bool) -> bytes:
    """The line of an attempt, its end included."""
    attempt, delivery = record.attempt, record.delivery
    ended_at = attempt.created_at + attempt.response_time * MILLISECOND
    return (
        _encode(
            Line(
                attempt_id=attempt.id,
                delivery_id=delivery.id,
                batch_id=delivery.batch_id,
                org_id=delivery.org_id,
                destination=delivery.destination,
                url=delivery.callback_url.partition("?")[0],
                is_automatic=delivery.is_automatic,
                attempt_number=attempt.attempt_number,
                max_attempts=delivery.max_attempts,
                started_at=rfc3339(attempt.created_at),
                ended_at=rfc3339(ended_at),
                response_time_ms=attempt.response_time,
                status_code=attempt.status_code,
                failure_reason_code=attempt.failure_reason,
                error_message=attempt.error_message,
                signing_secret_id=attempt.signing_secret_id,
                delivery_status=delivery.status,
                next_attempt_at=None if delivery.due_at is None else rfc3339(delivery.due_at),
                response_body=attempt.response_body if with_body else msgspec.UNSET,
            )
        )
        + b"\n"
    )
