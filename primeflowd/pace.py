"""The pace of a chore in a storage that others write to: how much at once, and how often.

How much follows from what it took before: a storage on a slow disk, or one that is busy, gets
shorter steps.
"""

from typing import Final, NamedTuple


class Pace(NamedTuple):
    """How steps follow each other.

    Attributes:
        aim: seconds that the work of one should take.
        most: rows that go in one, however quickly they do.
        rest: a step, or a look, is followed by a pause of so many times what it took.
    """

    aim: float
    most: int
    rest: int


BUSY: Final = Pace(aim=0.0015, most=300, rest=9)
"""While others write. A step's time is mostly waiting for its turn and for the disk: of the
writer's own time it takes a few per cent."""

LATE: Final = Pace(aim=0.005, most=1_500, rest=3)
"""While others write, and much is left to do after many hours."""

QUIET: Final = Pace(aim=0.005, most=1_500, rest=1)
"""While nobody does: who comes meanwhile waits for one such step. Other nodes of the storage, whom
we do not see, have half of the time."""

LEAST: Final = 30
"""Rows that go in one step, however long they take: the step's own costs are as high."""


class Speed:
    """How many rows of a kind go in how long, by what steps took."""

    def __init__(self) -> None:
        self._each = 0.0
        self._tried = 2 * LEAST

    def rows(self, seconds: float, most: int) -> int:
        fitting = int(seconds / self._each) if self._each else most
        return max(LEAST, min(fitting, most, self._tried))

    def learn(self, rows: int, seconds: float) -> None:
        if rows < LEAST:
            # Mostly what any step costs.
            return
        # Half of it is what was known: one that had to wait for the disk says little.
        each = seconds / rows
        self._each = (self._each + each) / 2 if self._each else each
        # Few rows tell little about many.
        self._tried = max(self._tried, 2 * rows)
