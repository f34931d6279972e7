"""The deadlines of exchanges: each is over by its time, or is ended.

Owns which connections are in use, and by when each must be done. Guarantees that an exchange is
ended within a tick after its deadline, and that none waits for another's.

Blocks in `run` only, until cancelled; without it nothing is too late. Nothing here fails.
"""

import math
from collections.abc import Callable
from typing import Final

import trio

from primeflowd.connection import Connection

# Seconds that an exchange, or an idle connection, may overstay.
_TICK: Final = 0.05

# Who ended an exchange, see Connection.end.
TOO_LATE: Final = "deadline"
CUT_SHORT: Final = "cut short"


class Deadlines:
    """Of the exchanges of one transport, on Trio's clock. `len` is how many are under way."""

    def __init__(self) -> None:
        # Nearly all have the same time, so the first to begin is the next; those with a time of
        # their own are apart. A cancel scope for each exchange would cost some 7 us.
        self._alike: dict[Connection, float] = {}
        self._apart: dict[Connection, float] = {}
        # What `run` has seen to by its next look, and how it is told that this is too late.
        self._look_for = math.inf
        self._sooner = trio.Event()

    def __len__(self) -> int:
        return len(self._alike) + len(self._apart)

    def watch(self, connection: Connection, deadline: float, own: bool) -> None:
        """See to it that the exchange over `connection` ends. `own`: it has a time of its own."""
        if own:
            self._apart[connection] = deadline
        else:
            self._alike[connection] = deadline
        if deadline < self._look_for:
            self._sooner.set()

    def unwatch(self, connection: Connection) -> float:
        """It is over; its deadline."""
        deadline = self._alike.pop(connection, None)
        return self._apart.pop(connection) if deadline is None else deadline

    def part(self) -> None:
        """Those to come have another time than those under way, which keep theirs."""
        self._apart |= self._alike
        self._alike.clear()
        self._sooner.set()

    def retire(self) -> None:
        """See to it that no connection in use is kept."""
        for connection in (*self._alike, *self._apart):
            connection.retire()

    def cut_short(self) -> None:
        """End every exchange under way."""
        for connection in (*self._alike, *self._apart):
            connection.end(CUT_SHORT)

    async def run(self, others: Callable[[float], float | None]) -> None:
        """End what is too late, until cancelled. `others` sees at each look, given the time, to
        what else has one, and says when there will be more of it, None for never."""
        while True:
            now = trio.current_time()
            for connection, deadline in self._alike.items():
                if deadline > now:
                    break
                connection.end(TOO_LATE)
            for connection, deadline in self._apart.items():
                if deadline <= now:
                    connection.end(TOO_LATE)
            first = next(iter(self._alike.values()), None)
            all_times = (first, others(now), *self._apart.values())
            times = [time for time in all_times if time is not None]
            # Not at once again for one that was told to end and has not yet.
            self._look_for = max(min(times, default=math.inf), now)
            self._sooner = trio.Event()
            # A little later, so that many that began together are ended together.
            with trio.move_on_at(self._look_for + _TICK):
                await self._sooner.wait()
