"""durations.py: the grammar of contract 3.2, against exact fractions."""

import math
import re
from fractions import Fraction

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from primeflowd.durations import Duration, InvalidDuration, parse, parse_delay, shown
from primeflowd.instants import DAY, HOUR, MILLISECOND, MINUTE, SECOND, Micros

MICROS_OF_UNIT = {
    "ns": Fraction(1, 1000),
    "us": Fraction(1),
    "\u00b5s": Fraction(1),
    "\u03bcs": Fraction(1),
    "ms": Fraction(1000),
    "s": Fraction(10**6),
    "m": Fraction(60 * 10**6),
    "h": Fraction(3600 * 10**6),
    "d": Fraction(86400 * 10**6),
}
# Written on its own, from the contract's sentence, to judge what the parser takes.
GRAMMAR = re.compile("((?:[0-9]+[.]?[0-9]*|[.][0-9]+)(?:ns|us|\u00b5s|\u03bcs|ms|s|m|h|d))+")


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("15m", 15 * MINUTE),
        ("1h30m", 90 * MINUTE),
        ("1.5h", 90 * MINUTE),
        ("500ms", 500 * MILLISECOND),
        ("7d", 7 * DAY),
        ("1d12h", 36 * HOUR),
        ("1h1h", 2 * HOUR),
        ("1s1h", HOUR + SECOND),
        ("1m1ms", MINUTE + MILLISECOND),
        ("007s", 7 * SECOND),
        (".5s", 500 * MILLISECOND),
        ("1.s", SECOND),
        ("0.1s", 100 * MILLISECOND),
        ("0.000001s", 1),
        ("1us", 1),
        ("1\u00b5s", 1),
        ("1\u03bcs", 1),
        ("0s", 0),
        ("0", 0),
        ("1ns", 1),
        ("1000ns", 1),
        ("1001ns", 2),
        ("0.0000000001s", 1),
        ("9223372036854775807ns", 9223372036854776),
    ],
)
def test_accepted(text: str, micros: Micros) -> None:
    """3.2: Go's grammar and `d`; what is finer than a microsecond is rounded up (3.6)."""
    assert parse(text) == micros


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "1",
        "00",
        "0.0",
        "1.5",
        "s",
        ".s",
        ".",
        "1w",
        "1y",
        "1M",
        "1S",
        "1H",
        "1D",
        "1MS",
        "1mS",
        "1sec",
        "1 s",
        " 1s",
        "1s ",
        "1s\n",
        "1h 30m",
        "1h,30m",
        "-1s",
        "+1s",
        "1h-30m",
        "1..5s",
        "1.5.5s",
        "1,5s",
        "1e3s",
        "0x1s",
        "1_000s",
        "\u0661s",
        "\uff11s",
        "1\u00b2s",
        "1\u0455",
        "1s\x00",
        "inf",
        "nan",
        "P1D",
        "9223372036854775808ns",
        "106752d",
        "9" * 63 + "d",
        "0" * 64 + "1s",
        "1" * 1_000_000 + "s",
    ],
)
def test_refused(text: str) -> None:
    """3.2: no sign, no space, no other unit, no other digits."""
    with pytest.raises(InvalidDuration) as caught:
        parse(text)
    assert len(str(caught.value)) < 200
    with pytest.raises(InvalidDuration):
        parse_delay(text)


digits = st.text("0123456789", max_size=6)
parts = st.tuples(digits, st.none() | digits, st.sampled_from(sorted(MICROS_OF_UNIT))).filter(
    lambda part: part[0] or part[1]
)


def spelt(part: tuple[str, str | None, str]) -> str:
    whole, fraction, unit = part
    return whole + ("" if fraction is None else "." + fraction) + unit


def exact(part: tuple[str, str | None, str]) -> Fraction:
    whole, fraction, unit = part
    number = Fraction(int(whole or "0")) + Fraction(int(fraction or "0"), 10 ** len(fraction or ""))
    return number * MICROS_OF_UNIT[unit]


@given(st.lists(parts, min_size=1, max_size=3))
def test_lengths_are_exact(written: list[tuple[str, str | None, str]]) -> None:
    """3.2, 3.6: no float on the way; never shorter than asked for."""
    length = sum(map(exact, written), Fraction(0))
    assume(length < 292 * 365 * DAY)
    text = "".join(map(spelt, written))
    assert parse(text) == math.ceil(length)
    if MILLISECOND <= length <= 30 * DAY:
        assert parse_delay(text) == math.ceil(length)
    else:
        with pytest.raises(InvalidDuration, match="not within 1ms and 30d"):
            parse_delay(text)


# Too short for anything that is of the grammar but over 292 years.
@given(st.text("0123456789.numshd\u00b5\u03bc -+eM", max_size=6) | st.text(max_size=6))
@example("1.m.5s")
def test_nothing_else_is_accepted(text: str) -> None:
    """3.2."""
    try:
        parse(text)
        accepted = True
    except InvalidDuration:
        accepted = False
    assert accepted == (text == "0" or GRAMMAR.fullmatch(text) is not None)


@pytest.mark.parametrize(
    "text", ["1ms", "0.001s", "1000us", "999us1000ns", "30d", "720h", "2592000s", "29d24h"]
)
def test_delays_on_the_bounds(text: str) -> None:
    """3.2: 1 ms to 30 d."""
    assert parse_delay(text) in (MILLISECOND, 30 * DAY)


@pytest.mark.parametrize(
    "text",
    ["0", "0s", "999us", "999999ns", "0.9999999ms", "30d1ns", "30.0000001d", "721h", "2592001s"],
)
def test_delays_beyond_the_bounds(text: str) -> None:
    """3.2: also where rounding would bring them within."""
    with pytest.raises(InvalidDuration, match="not within 1ms and 30d"):
        parse_delay(text)


def test_a_duration_keeps_its_spelling() -> None:
    """3.2: echoed exactly as sent."""
    duration = Duration("1h30m")
    assert (duration.text, duration.micros, duration.seconds) == ("1h30m", 90 * MINUTE, 5400.0)
    assert repr(duration) == "Duration('1h30m')"
    assert duration == Duration("1h30m")
    assert hash(duration) == hash(Duration("1h30m"))
    assert duration != Duration("90m")
    assert duration != "1h30m"
    with pytest.raises(InvalidDuration):
        Duration("90")


@pytest.mark.parametrize(
    ("length", "text"),
    [
        (0, "0ms"),
        (999, "0ms"),
        (290 * MILLISECOND, "290ms"),
        (SECOND, "1s"),
        (15 * MINUTE - 1, "14m 59s"),
        (DAY + HOUR + 15 * MINUTE + 2 * SECOND, "1d 1h 15m"),
        (DAY + 15 * MINUTE, "1d 15m"),
    ],
)
def test_shown(length: Micros, text: str) -> None:
    """For people: at most three units."""
    assert shown(length) == text


@given(st.integers(MILLISECOND, 40 * DAY))
def test_shown_is_never_longer_than_it_is(length: Micros) -> None:
    """And shorter by less than a unit of those left out."""
    told = sum(parse(part) for part in shown(length).split())
    left_out = MINUTE if length >= DAY else SECOND if length >= SECOND else MILLISECOND
    assert told <= length < told + left_out
