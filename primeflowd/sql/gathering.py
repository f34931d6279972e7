"""How long a writer lets operations gather before its next commit. Pure, but for the clock.

A commit costs as much by itself as a dozen rows, and the more rows are written together, the fewer
pages of each index are. Where few operations bring many rows each, as bulk requests and records of
attempts do, they are worth waiting for: with 1,024 callbacks under way, a commit then has some 200
callbacks in place of 110, and each costs 0.93 of the CPU. Whoever hands in batches one by one waits
for each: from 64 such clients, a pause after every large commit took a quarter of the rate.
"""

import time
from collections.abc import Callable
from typing import Final

PAUSE: Final = 0.005
"""Seconds from one such commit to the next."""

MANY: Final = 512
"""Rows in a commit. A client that hands in a hundred batches at a time and waits for each answer
has 400, with the attempts of the hundred before: nothing else would come in a pause, and he would
wait for it. One of several such clients soon has more, and a pause then makes the next commit
large, too."""

EACH: Final = 32
"""Rows that its operations bring, on the average."""


class Gathering:
    """What the commits so far say about the next one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock`: seconds."""
        self._clock = clock
        self._until = 0.0

    def committed(self, operations: int, rows: int) -> None:
        """So many operations brought so many rows."""
        worthwhile = rows >= max(MANY, EACH * operations)
        self._until = self._clock() + PAUSE if worthwhile else 0.0

    @property
    def seconds(self) -> float:
        """What is left to wait."""
        return max(0.0, self._until - self._clock()) if self._until else 0.0
