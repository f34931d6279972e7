"""What a line says of an attempt, and what it keeps to itself."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from primeflowd.hookspecs import RecordedAttempt
from primeflowd.instants import SECOND
from primeflowd.testing.factories import NOW, make_attempt, make_delivery
from primeflowd_archive.lines import line


def read(record: RecordedAttempt, *, with_body: bool = False) -> dict[str, Any]:
    data = line(record, with_body=with_body)
    assert data.endswith(b"}\n")
    assert data.count(b"\n") == 1
    fields: dict[str, Any] = json.loads(data)
    return fields


def test_all_that_is_told() -> None:
    attempt = make_attempt(
        attempt_number=2,
        status_code=503,
        response_time=1500,
        failure_reason="http_status",
        error_message="busy",
        signing_secret_id="s",
        response_body="no\nentry",
    )
    delivery = make_delivery(
        callback_url="https://receiver.example/hook?token=t0ps3cret", due_at=NOW + 60 * SECOND
    )
    fields = read(RecordedAttempt(attempt, delivery))
    assert fields == {
        "attempt_id": attempt.id,
        "delivery_id": delivery.id,
        "batch_id": delivery.batch_id,
        "org_id": "org-1",
        "destination": "https://receiver.example:443",
        "url": "https://receiver.example/hook",
        "is_automatic": True,
        "attempt_number": 2,
        "max_attempts": 4,
        "started_at": "2026-05-06T10:00:00Z",
        "ended_at": "2026-05-06T10:00:01.500000Z",
        "response_time_ms": 1500,
        "status_code": 503,
        "failure_reason_code": "http_status",
        "error_message": "busy",
        "signing_secret_id": "s",
        "delivery_status": "pending",
        "next_attempt_at": "2026-05-06T10:01:00Z",
    }


def test_of_a_success() -> None:
    delivery = make_delivery(status="succeeded", due_at=None)
    fields = read(RecordedAttempt(make_attempt(), delivery))
    assert fields["delivery_status"] == "succeeded"
    assert fields["next_attempt_at"] is fields["failure_reason_code"] is None


def test_the_body_is_told_when_asked_for() -> None:
    record = RecordedAttempt(make_attempt(response_body="no\nentry"), make_delivery())
    assert read(record, with_body=True)["response_body"] == "no\nentry"


@given(body=st.text(), message=st.text(), org=st.text())
def test_any_text_is_one_line(body: str, message: str, org: str) -> None:
    record = RecordedAttempt(
        make_attempt(response_body=body, error_message=message), make_delivery(org_id=org)
    )
    fields = read(record, with_body=True)
    assert [fields[key] for key in ("response_body", "error_message", "org_id")] == [
        *(body, message, org)
    ]
