"""What an attempt looks like on record (contract 5.5, 5.6). Pure."""

import codecs

from primeflowd.instants import MILLISECOND, Micros
from primeflowd.model import Attempt, Delivery, FailureReason, Outcome, Verdict


def of_outcome(
    attempt_id: str,
    after: Delivery,
    outcome: Outcome,
    verdict: Verdict,
    secret_id: str | None,
    max_response_body: int,
) -> Attempt:
    """The attempt that met `outcome` and left its delivery as `after`."""
    return Attempt(
        id=attempt_id,
        org_id=after.org_id,
        delivery_id=after.id,
        attempt_number=after.attempt_count,
        status_code=outcome.status_code,
        response_body=(
            None if outcome.status_code is None else response_text(outcome.body, max_response_body)
        ),
        response_time=(outcome.ended_at - outcome.started_at) // MILLISECOND,
        error_message=outcome.error_message,
        # A plugin's verdict may lack the reason that every failure has.
        failure_reason=(
            None if verdict.decision == "success" else verdict.reason or "internal_error"
        ),
        signing_secret_id=secret_id,
        created_at=outcome.started_at,
    )


def of_interruption(
    attempt_id: str,
    after: Delivery,
    cause: str,
    started_at: Micros,
    ended_at: Micros,
    secret_id: str | None,
) -> Attempt:
    """The attempt that was cut short for a cause of our own, as `primeflowd was shut down`."""
    return Attempt(
        id=attempt_id,
        org_id=after.org_id,
        delivery_id=after.id,
        attempt_number=after.attempt_count,
        status_code=None,
        response_body=None,
        response_time=(ended_at - started_at) // MILLISECOND,
        error_message=f"interrupted: {cause} during this attempt",
        failure_reason="interrupted",
        signing_secret_id=secret_id,
        created_at=started_at,
    )


def unsent(failure: FailureReason, message: str, now: Micros) -> Outcome:
    """The outcome of an attempt that came to its end before the network."""
    return Outcome(
        status_code=None, failure=failure, error_message=message, started_at=now, ended_at=now
    )


def response_text(body: bytes, limit: int) -> str:
    """The first bytes of a response as valid text of at most `limit` bytes of UTF-8."""
    if len(body) <= limit:
        try:
            text = body.decode()
        except UnicodeDecodeError:
            pass
        else:
            if "\0" not in text:
                return text
    # A body that fills the limit may end within a character: the decoder, not told that this is
    # the end, leaves that character out instead of replacing it.
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(body, final=len(body) < limit)
    # NUL is text to SQLite but not to PostgreSQL; every storage shall show the same.
    text = text.replace("\x00", "\ufffd")
    # Replacement characters are longer than the bytes they stand for.
    return text.encode()[:limit].decode(errors="ignore")
