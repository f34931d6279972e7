"""testing/audit.py: it finds what it is there to find."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from primeflowd.testing.audit import Audit, Incident
from primeflowd.testing.receiver_process import Arrival

START = 1_700_000_000.0


def attempt(number: int, seconds: float, **changes: Any) -> dict[str, Any]:
    return {
        "id": f"attempt-{number}",
        "attempt_number": number,
        "status_code": 503 if number == 1 else 200,
        "response_time_ms": 100,
        "created_at": f"2023-11-14T22:13:{20 + seconds:06.3f}Z",
    } | changes


def delivery(**changes: Any) -> dict[str, Any]:
    """One that took two attempts."""
    return {
        "id": "delivery",
        "batch_id": "batch",
        "status_code": "succeeded",
        "attempt_count": 2,
        "attempts": [attempt(1, 0), attempt(2, 1)],
        "payload_bytes": '{"batch_id":"batch"}',
        "completed_at": "2023-11-14T22:13:21.100Z",
        "next_attempt_at": None,
    } | changes


def arrival(number: int, attempt_id: str, seconds: float, label: str = "1.1") -> Arrival:
    headers = {
        "primeflow-delivery-id": "delivery",
        "primeflow-attempt": str(number),
        "primeflow-request-id": attempt_id,
        "primeflow-signature": f"{label}=00ff",
    }
    body = json.dumps({"batch_id": "batch"}, separators=(",", ":")).encode()
    return Arrival(1, headers, body, START + seconds)


BOTH = [arrival(1, "attempt-1", 0), arrival(2, "attempt-2", 1, "2.1")]


def test_all_is_well() -> None:
    audit = Audit(["batch"], [delivery()], BOTH)
    audit.check(["batch"], in_flight=1)
    assert audit.by_node() == {1: 1, 2: 1}
    assert audit.strays == []


def changed_arrival(**changes: Any) -> list[Arrival]:
    first = {name: getattr(BOTH[0], name) for name in ("number", "headers", "body", "time")}
    return [Arrival(**first | changes), BOTH[1]]


FAULTS: dict[str, Callable[[], Audit]] = {
    "lost": lambda: Audit([], [], []),
    "made twice": lambda: Audit(["batch", "again"], [delivery()], BOTH),
    "no delivery": lambda: Audit(["batch"], [], []),
    "two deliveries": lambda: Audit(["batch"], [delivery(), delivery(id="other")], BOTH),
    "has failed": lambda: Audit(["batch"], [delivery(status_code="failed")], BOTH),
    "goes on": lambda: Audit(["batch"], [delivery(completed_at=None)], BOTH),
    "a gap": lambda: Audit(["batch"], [delivery(attempts=[attempt(2, 1)])], BOTH),
    "miscounted": lambda: Audit(["batch"], [delivery(attempt_count=3)], BOTH),
    "at once": lambda: Audit(
        ["batch"], [delivery(attempts=[attempt(1, 0), attempt(2, 0.05)])], BOTH
    ),
    "never arrived": lambda: Audit(["batch"], [delivery()], BOTH[1:]),
    "arrived twice": lambda: Audit(["batch"], [delivery()], [*BOTH, BOTH[0]]),
    "other bytes": lambda: Audit(
        ["batch"], [delivery()], changed_arrival(body=b'{"batch_id": "batch"}')
    ),
    "other number": lambda: Audit(["batch"], [delivery()], [arrival(2, "attempt-1", 0), BOTH[1]]),
    "not on record": lambda: Audit(["batch"], [delivery()], [*BOTH, arrival(2, "stray", 1)]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found(fault: str) -> None:
    with pytest.raises(AssertionError):
        FAULTS[fault]().check(["batch"], in_flight=1)


def test_an_incident_explains_what_is_not_on_record() -> None:
    """Of the run that it befell, or of any; from a little before it on, and not after it."""
    audit = Audit(["batch"], [delivery()], [*BOTH, arrival(2, "stray", 1, "2.1")])
    for label, start, end in (("2.1", 0.5, 2.0), (None, 0.5, 2.0), ("2.1", 1.9, 2.0)):
        audit.check(["batch"], [Incident(label, START + start, START + end)], in_flight=1)
    for label, start, end in (("1.1", 0.5, 2.0), ("2.1", 2.1, 3.0), ("2.1", 0.0, 0.9)):
        with pytest.raises(AssertionError):
            audit.check(["batch"], [Incident(label, START + start, START + end)], in_flight=1)


def test_batches_of_the_test_itself_may_have_any_history() -> None:
    failed = delivery(status_code="failed")
    audit = Audit(["batch", "running"], [failed], BOTH)
    audit.check([], in_flight=1, also=["batch", "running"])
