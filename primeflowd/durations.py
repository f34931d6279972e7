"""The grammar of durations: Go's `time.ParseDuration` without a sign, and `d` for 24 hours.

Used for the delays of retry policies (contract 3.2) and for every duration in the config file.
Pure. A duration keeps the text it was written in, because clients get it back as they sent it.
"""

import re
from functools import lru_cache
from typing import Final

from primeflowd.instants import DAY, MILLISECOND, SECOND, Micros

# In nanoseconds, so that every unit is a whole number.
_UNITS: Final = {
    "ns": 1,
    "us": 1_000,
    "\u00b5s": 1_000,  # micro sign
    "\u03bcs": 1_000,  # Greek letter mu; Go takes both
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
    "d": 86_400_000_000_000,
}
# Longest unit first, so that "ms" is not read as "m" and a stray "s". re.ASCII is no help here:
# [0-9] rather than \d is what keeps other scripts' digits out.
_PART: Final = re.compile(
    r"([0-9]*)(?:\.([0-9]*))?(" + "|".join(sorted(_UNITS, key=len, reverse=True)) + ")"
)

MIN_DELAY: Final[Micros] = MILLISECOND
MAX_DELAY: Final[Micros] = 30 * DAY
# Long enough for any sensible spelling of 30 days; stops a megabyte of digits from being parsed.
_MAX_TEXT: Final = 64
# Durations are computed in nanoseconds over this denominator, so that "0.1s" is exact.
_DENOMINATOR: Final = 10**_MAX_TEXT
_MICROSECOND: Final = 1_000 * _DENOMINATOR
# Go counts in 64 bits; beyond that (292 years), sums of instants would not fit a database either.
_MAX_EXACT: Final = (2**63 - 1) * _DENOMINATOR


class InvalidDuration(ValueError):
    """The text is no duration of the grammar."""


class Duration:
    """A span of time with its spelling; compares and hashes by spelling.

    Attributes:
        text: as written, for instance `1h30m`.
        micros: length in microseconds, rounded up so that a wait is never cut short.
    """

    __slots__ = ("micros", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.micros = parse(text)

    @property
    def seconds(self) -> float:
        """Length in seconds, as Trio wants it."""
        return self.micros / 1_000_000

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Duration) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"Duration({self.text!r})"


def parse(text: str) -> Micros:
    """Length of `text` in microseconds, rounded up.

    Raises:
        InvalidDuration: `text` is not of the grammar.
    """
    return -(-_exact(text) // _MICROSECOND)


def parse_delay(text: str) -> Micros:
    """Length of a retry delay in microseconds; it lies within 1 ms and 30 days.

    Raises:
        InvalidDuration: not of the grammar, or outside these limits.
    """
    exact = _exact(text)
    # Compared before it is rounded up, or 999999ns would pass for 1ms.
    if not MIN_DELAY * _MICROSECOND <= exact <= MAX_DELAY * _MICROSECOND:
        raise InvalidDuration(f"not within 1ms and 30d: {text!r}")
    return -(-exact // _MICROSECOND)


@lru_cache(maxsize=4096)
def _exact(text: str) -> int:
    """Length of `text` in nanoseconds times _DENOMINATOR."""
    if text == "0":
        return 0  # the one number that needs no unit
    if not text or len(text) > _MAX_TEXT:
        raise InvalidDuration(f"not a duration: {text[:_MAX_TEXT]!r}")
    exact = 0
    position = 0
    while position < len(text):
        part = _PART.match(text, position)
        if part is None or not (part[1] or part[2]):
            raise InvalidDuration(f"not a duration: {text!r}")
        whole, fraction, unit = part[1] or "0", part[2] or "", _UNITS[part[3]]
        exact += int(whole) * unit * _DENOMINATOR
        exact += int(fraction or "0") * unit * (_DENOMINATOR // 10 ** len(fraction))
        position = part.end()
    if exact > _MAX_EXACT:
        raise InvalidDuration(f"longer than 292 years: {text!r}")
    return exact


def shown(length: Micros) -> str:
    """A length for people, as `1d 3h 15m` or `14m 59s`: in at most three units, never longer than
    it is."""
    parts: list[str] = []
    rest = length // SECOND
    for unit, seconds in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, seconds)
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts[:3]) or f"{length // MILLISECOND}ms"
