"""instants.py: exact conversions between microseconds, datetimes and RFC 3339."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primeflowd.instants import DAY, SECOND, Micros, from_datetime, rfc3339, to_datetime

instants = st.integers(
    from_datetime(datetime.min.replace(tzinfo=UTC)), from_datetime(datetime.max.replace(tzinfo=UTC))
)
zones = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@pytest.mark.parametrize(
    ("instant", "spelt"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1, "1970-01-01T00:00:00.000001Z"),
        (-1, "1969-12-31T23:59:59.999999Z"),
        (500_000, "1970-01-01T00:00:00.500000Z"),
        (20579 * DAY + 10 * 3600 * SECOND, "2026-05-06T10:00:00Z"),
        (-62_135_596_800 * SECOND, "0001-01-01T00:00:00Z"),
    ],
)
def test_rfc3339(instant: Micros, spelt: str) -> None:
    """2.8: UTC with Z; six digits of fraction or none."""
    assert rfc3339(instant) == spelt


@given(instants)
def test_rfc3339_reads_back_as_the_same_instant(instant: Micros) -> None:
    """2.8."""
    spelt = rfc3339(instant)
    assert spelt.endswith("Z")
    assert len(spelt) in (20, 27)
    assert from_datetime(datetime.fromisoformat(spelt)) == instant


@given(instants)
def test_datetimes_are_exact_and_utc(instant: Micros) -> None:
    moment = to_datetime(instant)
    assert moment.tzinfo is UTC
    assert from_datetime(moment) == instant


@given(st.datetimes(datetime(2, 1, 1), datetime(9998, 12, 31), timezones=zones))
def test_any_zone_names_the_same_instant(moment: datetime) -> None:
    assert to_datetime(from_datetime(moment)) == moment


def test_a_datetime_without_a_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="time zone"):
        from_datetime(datetime(2026, 5, 6))
