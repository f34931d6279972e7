"""What the receiver's answer asks for: its `Retry-After` header and its JSON body. Pure.

Both come from a stranger: what is no valid wish, or no wish at all, asks nothing. Whatever they
hold, nothing is raised.
"""

import email.utils
import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from primeflowd.durations import InvalidDuration, parse
from primeflowd.instants import SECOND, Micros, from_datetime
from primeflowd.model import Outcome

# Some 30,000 years, beyond every cap; more would only make integers that do not fit 64 bits.
_MOST_SECONDS: Final = 10**12
# The end of the year 9999. Milliseconds since the epoch, a common slip, lie beyond it.
_LAST_INSTANT: Final = 253_402_300_800


class Wish(msgspec.Struct, frozen=True):
    """What an answer asks for.

    Attributes:
        retry: whether the callback shall be sent again; None if the answer does not say.
        wait: how many microseconds after the end of the attempt, at least.
    """

    retry: bool | None = None
    wait: Micros = 0


_NONE: Final = Wish()


def wish_of(outcome: Outcome, content_types: Sequence[re.Pattern[str]] | None) -> Wish:
    """Header and body taken together: a refusal in the body wins, else the longer wait counts.

    `content_types` None does not look at the body.
    """
    header = _of_header(outcome)
    body = _NONE if content_types is None else _of_body(outcome, content_types)
    if body.retry is False:
        return body
    return Wish(header.retry or body.retry, max(header.wait, body.wait))


def _of_header(outcome: Outcome) -> Wish:
    """RFC 9110's number of seconds, or one of its three forms of a date."""
    value = (outcome.header("retry-after") or "").strip()
    if value.isascii() and value.isdigit():
        # Lengthwise first: a megabyte of digits is not worth making a number of.
        seconds = _MOST_SECONDS if len(value.lstrip("0")) > 12 else int(value)
        return Wish(True, seconds * SECOND)
    try:
        moment = email.utils.parsedate_to_datetime(value)
        # The form of asctime names no zone; an HTTP date is always UTC.
        instant = from_datetime(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        return _NONE
    return Wish(True, max(0, instant - outcome.ended_at))


def _of_body(outcome: Outcome, content_types: Sequence[re.Pattern[str]]) -> Wish:
    content_type = (outcome.header("content-type") or "").partition(";")[0].strip().lower()
    if not any(pattern.match(content_type) for pattern in content_types) or _is_cut(outcome):
        return _NONE
    try:
        answer = msgspec.json.decode(outcome.body)
    except (ValueError, RecursionError):
        # msgspec's errors are ValueErrors; so is Python's for invalid UTF-8.
        return _NONE
    return _of_object(answer, outcome.ended_at) if isinstance(answer, dict) else _NONE


def _is_cut(outcome: Outcome) -> bool:
    """Whether less of the body was read than was announced. Most of what is cut is no JSON any
    more; an object with something behind it may be cut to one."""
    announced = outcome.header("content-length")
    return announced is not None and announced.strip() != str(len(outcome.body))


def _of_object(answer: dict[str, Any], ended_at: Micros) -> Wish:
    retry = answer.get("retry")
    if retry is False:
        return Wish(False)
    instant, span = _instant(answer.get("retry_at")), _span(answer.get("retry_after"))
    if retry is not True and instant is None and span is None:
        return _NONE
    return Wish(True, max(0, 0 if instant is None else instant - ended_at, span or 0))


def _instant(value: object) -> Micros | None:
    """Of an RFC 3339 date with time and zone, or of seconds since the epoch."""
    if isinstance(value, str):
        try:
            return from_datetime(msgspec.convert(value, datetime))
        except ValueError:  # not a date, or one without a zone
            return None
    seconds = _number(value)
    return None if seconds is None or seconds >= _LAST_INSTANT else math.ceil(seconds * SECOND)


def _span(value: object) -> Micros | None:
    """Of a duration in primeflowd's grammar, or of seconds."""
    if isinstance(value, str):
        try:
            return parse(value)
        except InvalidDuration:
            return None
    seconds = _number(value)
    return None if seconds is None else math.ceil(min(seconds, _MOST_SECONDS) * SECOND)


def _number(value: object) -> float | None:
    """A number that is not negative; True is none, although Python says so."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if value >= 0 else None
