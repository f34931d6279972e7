"""The pause between commits: what comes shortly after one shares the next.

It is kept between the beginnings of two, so there is none before the first and none where a commit
takes longer by itself, such as on a server or a slow disk. Blocks the thread that it is kept in;
closing cuts it short.
"""

import threading
import time
from collections.abc import Callable
from typing import Final

SPACING: Final = 0.00125
"""Seconds from the beginning of one group to that of the next, at least.

A commit costs the same few hundred microseconds of CPU for one callback as for five. Single POSTs,
3,100 a second, by microseconds of CPU for each and milliseconds from answer to arrival, p50:

  none     287   1.93
  0.001    271   1.66
  0.0015   239   1.92
  0.002    211   2.29
  0.003    205   3.20

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
        self._earliest = clock()
        self._over = False
        self._ended = threading.Lock()
        self._ended.acquire()

    def wait(self) -> None:
        """Wait until a group may begin, and take it that one does."""
        now = self._clock()
        if now < self._earliest and not self._over:
            self._sleep(self._earliest - now)
            now = self._clock()
        self._earliest = now + self._seconds

    def end(self) -> None:
        """Wait no more, now and later."""
        if not self._over:
            self._over = True
            self._ended.release()

    def _sleep_unless_ended(self, seconds: float) -> None:
        self._ended.acquire(timeout=seconds)
