"""Instants and spans of time as integers, and their two spellings.

All instants in primeflowd are `Micros`: whole microseconds since the Unix epoch, UTC. They are
stored, compared and added as integers; only the edges (API, payload) turn them into text.
"""

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final, TypeAlias

Micros: TypeAlias = int
"""Microseconds: since the epoch for an instant, in all for a span."""

MILLISECOND: Final[Micros] = 1_000
SECOND: Final[Micros] = 1_000_000
MINUTE: Final[Micros] = 60 * SECOND
HOUR: Final[Micros] = 60 * MINUTE
DAY: Final[Micros] = 24 * HOUR

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def to_datetime(instant: Micros) -> datetime:
    """The aware UTC datetime of an instant, exact to the microsecond."""
    return _EPOCH + timedelta(microseconds=instant)


def from_datetime(moment: datetime) -> Micros:
    """The instant of an aware datetime, exact to the microsecond.

    Raises:
        ValueError: the datetime has no time zone.
    """
    if moment.tzinfo is None:
        raise ValueError("a datetime without a time zone names no instant")
    return (moment - _EPOCH) // timedelta(microseconds=1)


# What an answer shows has often happened at one instant.
@lru_cache(maxsize=64)
def rfc3339(instant: Micros) -> str:
    """`2026-05-06T10:00:00Z`, or with six digits of fraction where there is one (contract 2.8)."""
    seconds, fraction = divmod(instant, SECOND)
    if fraction:
        return f"{_to_the_second(seconds)}.{fraction:06d}Z"
    return _to_the_second(seconds) + "Z"


# Most instants that are shown are of the last few seconds, and many answers show one.
@lru_cache(maxsize=64)
def _to_the_second(seconds: int) -> str:
    return to_datetime(seconds * SECOND).isoformat()[:-6]
