"""model.py: the values, and what their names promise."""

from typing import get_args
from uuid import UUID

import msgspec
import pytest

from primeflowd import model
from primeflowd.model import (
    TERMINAL_BATCH,
    TERMINAL_DELIVERY,
    TERMINAL_ITEM,
    BatchStatus,
    DeliveryStatus,
    FailureReason,
    ItemStatus,
    Outcome,
    TerminalStatus,
    Verdict,
    new_id,
)
from tests.test_retry import delivery

STRUCTS = [
    value
    for value in vars(model).values()
    if isinstance(value, type) and issubclass(value, msgspec.Struct)
]


def test_ids_are_uuid7_in_canonical_text() -> None:
    """2.8."""
    made = new_id()
    assert UUID(made).version == 7
    assert str(UUID(made)) == made


def test_later_ids_sort_later() -> None:
    """2.8: within a millisecond, too; lists are ordered by them."""
    made = [new_id() for _ in range(10_000)]
    assert made == sorted(made)
    assert len(set(made)) == len(made)


def test_terminal_states() -> None:
    """4.1, 5.1."""
    assert set(get_args(TerminalStatus)) == TERMINAL_BATCH
    assert set(get_args(BatchStatus)) - TERMINAL_BATCH == {"queued", "running"}
    assert set(get_args(ItemStatus)) - TERMINAL_ITEM == {"queued", "running"}
    assert set(get_args(DeliveryStatus)) - TERMINAL_DELIVERY == {"pending", "delivering"}


def test_failure_reasons() -> None:
    """5.3."""
    assert set(get_args(FailureReason)) == {
        "http_status",
        "gone",
        "timeout",
        "dns_error",
        "connection_error",
        "tls_error",
        "response_error",
        "url_not_allowed",
        "cancelled",
        "interrupted",
        "internal_error",
    }


def test_max_attempts_is_one_more_than_the_retries() -> None:
    """3.5."""
    assert delivery(max_retries=0).max_attempts == 1
    assert delivery(max_retries=100).max_attempts == 101


def test_values_are_frozen() -> None:
    assert len(STRUCTS) >= 10
    assert all(struct.__struct_config__.frozen for struct in STRUCTS)
    with pytest.raises(AttributeError):
        delivery().status = "failed"  # type: ignore[misc]


def test_the_first_header_of_a_name_counts() -> None:
    outcome = Outcome(
        status_code=503,
        headers=(("retry-after", "1"), ("retry-after", "2")),
        started_at=0,
        ended_at=1,
    )
    assert outcome.header("retry-after") == "1"
    assert outcome.header("location") is None


def test_a_verdict_says_little_by_default() -> None:
    verdict = Verdict(decision="success")
    assert (verdict.reason, verdict.wait, verdict.destination_failed) == (None, None, False)
