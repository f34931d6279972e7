"""The clocks: the machine's, the storage's, and one that follows Trio's so that tests need not
sleep."""

import time
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

import trio

from primeflowd.instants import SECOND, Micros


class Clock(Protocol):
    """Tells the time of day. Waiting is Trio's business."""

    def now(self) -> Micros:
        """The present instant; may step when the system's clock is set."""
        ...


class SystemClock:
    """The machine's time of day."""

    def now(self) -> Micros:
        return time.time_ns() // 1000


class SharedClock:
    """The storage's time of day, which all its nodes go by: another clock, set right by it."""

    def __init__(self, nanoseconds: Callable[[], int] = time.time_ns) -> None:
        """`nanoseconds` since 1970, by a clock of ours. (Not a Clock: every callback asks the time
        more than once, and one call less each time is worth it.)"""
        self._nanoseconds = nanoseconds
        self._ahead: Micros = 0

    def now(self) -> Micros:
        return self._nanoseconds() // 1000 + self._ahead

    def correct(self, theirs: Micros, before: Micros, after: Micros) -> None:
        """Storage said `theirs` at some moment between `before` and `after` on this clock.

        Within those it may be right, and is left alone: it must not jitter with the network.
        """
        if not before <= theirs <= after:
            self._ahead += theirs - (before + after) // 2


uptime: Final[Callable[[], float]] = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
"""Seconds since the machine started, those in which it was suspended included."""


class TrioClock:
    """Time of day that advances with `trio.current_time()`, from a fixed instant on.

    Under `trio.testing.MockClock` a test decides when time passes. Only for use in a Trio task.
    """

    def __init__(self, start: Micros = 1_700_000_000 * SECOND) -> None:
        self._start = start
        self._zero = trio.current_time()

    def now(self) -> Micros:
        return self._start + round((trio.current_time() - self._zero) * SECOND)
