"""Trace contexts: from headers, and from the ids of deliveries and attempts."""

import re
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from primeflowd.model import new_id
from primeflowd.testing.factories import make_delivery
from primeflowd.trace_context import (
    TraceContext,
    is_sampled,
    of_attempt,
    of_batch,
    of_callback,
    parse,
)

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"

identifiers = st.integers(min_value=1, max_value=2**128 - 1)


@pytest.mark.parametrize(
    ("written", "sampled"),
    [
        (f"00-{TRACE}-{SPAN}-01", True),
        (f"00-{TRACE}-{SPAN}-00", False),
        (f" 00-{TRACE}-{SPAN}-03\t", True),
        (f"01-{TRACE}-{SPAN}-01", True),
        (f"fe-{TRACE}-{SPAN}-02-what-will-be-known-then", False),
    ],
)
def test_valid_headers(written: str, sampled: bool) -> None:
    assert parse([written]) == TraceContext(int(TRACE, 16), int(SPAN, 16), sampled)


@pytest.mark.parametrize(
    "written",
    [
        "",
        "nonsense",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
        f"00-{TRACE}-{SPAN}-01\n",
        f"00-{TRACE[:-1]}٣-{SPAN}-01",
    ],
)
def test_headers_that_are_as_good_as_none(written: str) -> None:
    assert parse([written]) is None


def test_there_is_one_header_or_none() -> None:
    assert parse([]) is None
    assert parse([f"00-{TRACE}-{SPAN}-01"] * 2) is None


@given(st.builds(TraceContext, identifiers, st.integers(1, 2**64 - 1), st.booleans()))
def test_what_is_written_can_be_read(context: TraceContext) -> None:
    assert parse([context.header()]) == context


def test_an_automatic_delivery_is_found_by_its_batch() -> None:
    delivery = make_delivery()
    first, second = new_id(), new_id()
    callback = of_callback(delivery, 1.0)
    assert callback.trace_id == UUID(delivery.batch_id).int
    attempts = [of_attempt(delivery, each, 1.0) for each in (first, second)]
    assert {each.trace_id for each in attempts} == {callback.trace_id}
    assert len({callback.span_id, *(each.span_id for each in attempts)}) == 3
    # What a delivery has become is none of it.
    later = msgspec.structs.replace(delivery, attempt_count=2, status="failed", claimed_by=None)
    assert of_callback(later, 1.0) == callback


def test_a_redelivery_has_a_trace_of_its_own() -> None:
    first = make_delivery()
    again = make_delivery(batch_id=first.batch_id, is_automatic=False)
    assert of_callback(again, 1.0).trace_id == UUID(again.id).int
    assert of_batch(again, 1.0) == of_callback(first, 1.0)


@pytest.mark.parametrize("chosen", [str(UUID(int=0)), "01920000-0000-7000-0000-000000000000"])
def test_any_id_that_a_client_may_choose_makes_a_valid_context(chosen: str) -> None:
    context = of_callback(make_delivery(batch_id=chosen), 1.0)
    assert parse([context.header()]) == context


@pytest.mark.parametrize("ratio", [0.0, 0.25, 0.5, 0.75, 1.0])
def test_uuids_are_sampled_by_the_ratio(ratio: float) -> None:
    """Of version 7, whose bits are anything but evenly spread, as are those counted upwards."""
    count = 4_000
    for ids in ([UUID(new_id()).int for _ in range(count)], list(range(count))):
        taken = sum(is_sampled(each, ratio) for each in ids)
        assert taken == pytest.approx(ratio * count, abs=count / 20)


def test_what_is_not_sampled_says_so() -> None:
    delivery = make_delivery()
    assert re.fullmatch("00-.*-00", of_attempt(delivery, new_id(), 0.0).header())
    assert re.fullmatch("00-.*-01", of_attempt(delivery, new_id(), 1.0).header())
