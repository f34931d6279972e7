"""The pause between commits: what comes shortly after one shares the next.

It is kept from the beginning of a group that had company, several operations, to that of the next:
so there is none while groups are small, which is while there is time to spare, and none where a
commit takes longer by itself, such as on a server or a slow disk. Blocks the thread that it is kept
in; closing cuts it short.
"""

import threading
import time
from collections.abc import Callable
from typing import Final

COMPANY: Final = 3
"""Operations in a group after which there is a pause. One that comes by itself after each commit
would only wait."""

SPACING: Final = 0.001
"""Seconds from the beginning of such a group to that of the next, at least.

A commit costs the same few hundred microseconds of CPU for one callback as for five. Single POSTs,
by microseconds of CPU for each, and milliseconds to the arrival, p50 and p99:

                                     1,000/s               3,100/s
  no pause                           623   0.71   2.78     289   2.26   7.34
  0.00125, after any group           565   1.51   3.81     275   2.04   6.68
  0.00125, after three operations    625   0.75   2.79     264   1.82   5.44
  0.002, after three operations      560   1.45   4.26     242   2.49   6.27

                                     3,600/s
  0.00125, after three operations    240   2.15   5.40
  0.001, after three operations      247   1.73   4.72

At full load a commit takes longer than this.
"""


class Spacing:
    """Keeps groups apart: in one thread that waits, while another may end it."""

    def __init__(
        self,
        seconds: float = SPACING,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        """`sleep`: seconds; by default it comes back at once after end()."""
        self._seconds = seconds
        self._clock = clock
        self._sleep = sleep or self._sleep_unless_ended
        self._began = self._earliest = clock()
        self._over = False
        self._ended = threading.Lock()
        self._ended.acquire()

    def wait(self) -> None:
        """Wait until a group may begin, and take it that one does."""
        now = self._clock()
        if now < self._earliest and not self._over:
            self._sleep(self._earliest - now)
            now = self._clock()
        self._began = now

    def took(self, operations: int) -> None:
        """The group that has begun is of so many."""
        if operations >= COMPANY:
            self._earliest = self._began + self._seconds

    def end(self) -> None:
        """Wait no more, now and later."""
        if not self._over:
            self._over = True
            self._ended.release()

    def _sleep_unless_ended(self, seconds: float) -> None:
        self._ended.acquire(timeout=seconds)
