"""Counts of values by size: what a distribution costs where things happen often.

Not locked: one thread observes. Another may read meanwhile, and misses the value of that moment.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Final

COMMIT_TIMES: Final = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
"""Bounds, in seconds, for what a transaction takes: from a disk that lies to one that hangs."""


class Histogram:
    """How many values were at most each bound.

    Attributes:
        bounds: ascending, in the unit of the values.
        unit: how many of these make a second.
        counts: how many values lie between each bound and the one before; last, beyond all.
        total: the sum of the values.
    """

    __slots__ = ("bounds", "counts", "total", "unit")

    def __init__(self, unit: int, seconds: Sequence[float]) -> None:
        self.unit = unit
        self.bounds = [round(bound * unit) for bound in seconds]
        self.counts = [0] * (len(seconds) + 1)
        self.total = 0

    def observe(self, value: int) -> None:
        self.observe_all((value,))

    def observe_all(self, values: Iterable[int]) -> None:
        for value in values:
            # A clock that was set back makes negative spans, and a sum that sinks looks like a
            # restart.
            if value > 0:
                self.counts[bisect_left(self.bounds, value)] += 1
                self.total += value
            else:
                self.counts[0] += 1
