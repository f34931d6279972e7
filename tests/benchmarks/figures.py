"""Arithmetic of samples: percentiles, medians with their range, ratios."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple


def percentile(samples: Sequence[float], fraction: float) -> float:
    """The smallest sample that at least `fraction` of all do not exceed (nearest rank).

    Not interpolated, so that it is a value that was seen. NaN where there are no samples.
    """
    if not samples:
        return math.nan
    return sorted(samples)[max(0, math.ceil(len(samples) * fraction) - 1)]


class Spread(NamedTuple):
    """Of one figure over the rounds."""

    median: float
    low: float
    high: float

    def text(self, digits: int | None = None) -> str:
        """`median (low-high)`, by default to three significant digits of the median."""
        if math.isnan(self.median):
            return "-"
        if digits is None:
            digits = max(0, 2 - math.floor(math.log10(abs(self.median)))) if self.median else 0
        return f"{self.median:,.{digits}f} ({self.low:,.{digits}f}-{self.high:,.{digits}f})"


def spread(samples: Sequence[float]) -> Spread:
    """NaN where there are none."""
    if not samples:
        return Spread(math.nan, math.nan, math.nan)
    return Spread(statistics.median(samples), min(samples), max(samples))


def ratios(samples: Sequence[float], base: Sequence[float]) -> Spread:
    """Of samples taken in turns, round by round: what disturbed a round disturbed both."""
    return spread([ours / theirs for ours, theirs in zip(samples, base, strict=True) if theirs])
