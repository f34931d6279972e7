"""When which key is due: a wheel of buckets, one per tick. Pure; the caller brings the time.

A key fires at the end of the tick that its due instant falls in: never early, at most one tick
late. Adding, cancelling and firing cost the same however many keys wait; an idle wheel costs
nothing. Memory follows the keys that wait, not those that were ever added: a cancelled key leaves
its bucket at once.
"""

from collections.abc import Hashable
from heapq import heapify, heappop, heappush
from typing import Final, Generic, TypeVar

from primeflowd.instants import MILLISECOND, Micros

K = TypeVar("K", bound=Hashable)

# Stale entries that the heap of ticks may hold beside as many as there are buckets.
_SLACK: Final = 64


class TimerWheel(Generic[K]):
    """Keys by the instant at which they are due; each key at most once.

    Args:
        tick: width of a bucket in microseconds, and the most that a key fires late.
    """

    def __init__(self, tick: Micros = 50 * MILLISECOND) -> None:
        if tick < 1:
            raise ValueError("a tick is at least one microsecond")
        self._tick = tick
        self._tick_of: dict[K, int] = {}
        # Keys of a tick in the order added: a dict, so that cancelling is cheap. Never empty.
        self._buckets: dict[int, dict[K, None]] = {}
        # Every tick with a bucket, and stale ones whose bucket was emptied by cancelling. A tick
        # that got a bucket anew is in here twice; the second one is stale once the first fired.
        self._ticks: list[int] = []

    def __len__(self) -> int:
        return len(self._tick_of)

    def __contains__(self, key: object) -> bool:
        return key in self._tick_of

    def add(self, key: K, due: Micros) -> None:
        """Let `key` fire at `due`, instead of when it was to fire before."""
        tick = -(-due // self._tick)  # rounded up, for never early
        if key in self._tick_of:
            self.cancel(key)
        self._tick_of[key] = tick
        bucket = self._buckets.get(tick)
        if bucket is None:
            self._buckets[tick] = {key: None}
            heappush(self._ticks, tick)
        else:
            bucket[key] = None

    def cancel(self, key: K) -> bool:
        """Forget `key`; False if it was not waiting."""
        tick = self._tick_of.pop(key, None)
        if tick is None:
            return False
        bucket = self._buckets[tick]
        del bucket[key]
        if not bucket:
            del self._buckets[tick]
            # Else a wheel that is filled and cancelled for ever, far ahead, would never shrink.
            if len(self._ticks) > 2 * len(self._buckets) + _SLACK:
                self._ticks = list(self._buckets)
                heapify(self._ticks)
        return True

    def clear(self) -> list[K]:
        """Take out every key, in no order."""
        cleared = list(self._tick_of)
        self._tick_of.clear()
        self._buckets.clear()
        self._ticks.clear()
        return cleared

    def advance(self, now: Micros) -> list[K]:
        """Take out the keys that are due by `now`, tick by tick in order.

        A clock that stepped back only makes this wait; a key already overdue when it was added
        comes with the next call.
        """
        fired: list[K] = []
        while self._ticks and self._ticks[0] * self._tick <= now:
            fired.extend(self._buckets.pop(heappop(self._ticks), ()))
        for key in fired:
            del self._tick_of[key]
        return fired

    def next_due(self) -> Micros | None:
        """The earliest instant at which `advance` would return anything; None if nothing waits."""
        while self._ticks and self._ticks[0] not in self._buckets:
            heappop(self._ticks)
        return self._ticks[0] * self._tick if self._ticks else None
