"""When the scheduler's loop turns next.

Owns that time, by Trio's clock, which cannot be set: an instant of the time of day is converted
as it comes, and what the clock does later moves nothing. Guarantees that the loop turns by the
earliest time that anybody asked for, also if it was asked for during a turn. Only `wait` blocks;
it wakes nobody for a time that is not earlier than the loop's own.
"""

import math

import trio

from primeflowd.clock import Clock
from primeflowd.instants import SECOND, Micros


class Alarm:
    """For one loop: `rearm` at the beginning of each turn, `wait` at its end."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._time = math.inf
        self._rung = trio.Event()

    def by(self, time: float) -> None:
        """Have the loop turn at `time` on Trio's clock, at the latest."""
        if time < self._time:
            self._time = time
            self._rung.set()

    def by_instant(self, instant: Micros) -> None:
        """As `by`, at an instant of the time of day."""
        self.by(self.time_of(instant))

    def time_of(self, instant: Micros) -> float:
        """When `instant` will be on Trio's clock, if the time of day is not set before it."""
        return trio.current_time() + (instant - self._clock.now()) / SECOND

    def rearm(self) -> None:
        """A turn begins. Whoever wants another one during it gets it."""
        self._rung = trio.Event()
        self._time = math.inf

    async def wait(self, until: float) -> None:
        """Wait until `until`, or less if somebody wants the next turn earlier."""
        self._time = until
        # A loop that never waits would starve the senders it feeds.
        with trio.move_on_at(max(until, trio.current_time() + 0.001)):
            await self._rung.wait()
