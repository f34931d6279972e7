"""A token bucket per API key (contract 2.11). Off unless `api.rate_limit` is set.

Memory is bounded: the bucket used least lately is dropped first, and a dropped one starts full,
so that the limiter errs towards letting requests through.
"""

import math
from typing import Final

import trio

from primeflowd.api.errors import Headers, Rejected
from primeflowd.clock import Clock
from primeflowd.config import Api
from primeflowd.instants import SECOND

_BUCKETS: Final = 10_000


class RateLimiter:
    """Counts requests by key id."""

    def __init__(self, settings: Api, clock: Clock, buckets: int = _BUCKETS) -> None:
        self._clock = clock
        self._most = buckets
        # By key id: tokens, and when (Trio's time) there were that many. Least lately used first.
        self._buckets: dict[str, tuple[float, float]] = {}
        self.reconfigure(settings)

    def reconfigure(self, settings: Api) -> None:
        """Go by another limit; what keys have spent stays spent."""
        self._rate = settings.rate_limit
        self._burst = settings.rate_burst

    def take(self, key_id: str) -> Headers:
        """Count one request; the headers that its answer shall carry, none if there is no limit.

        Raises:
            Rejected: 429, with these headers and Retry-After.
        """
        if not self._rate:
            return ()
        now = trio.current_time()
        tokens, at = self._buckets.pop(key_id, (float(self._burst), now))
        tokens = min(self._burst, tokens + (now - at) * self._rate)
        spent = tokens < 1
        tokens -= not spent
        if len(self._buckets) >= self._most:
            del self._buckets[next(iter(self._buckets))]
        self._buckets[key_id] = tokens, now
        full_at = self._clock.now() / SECOND + (self._burst - tokens) / self._rate
        headers = (
            ("X-RateLimit-Limit", str(self._burst)),
            ("X-RateLimit-Remaining", str(int(tokens))),
            # Seconds since the epoch, as GitHub has it.
            ("X-RateLimit-Reset", str(math.ceil(full_at))),
        )
        if spent:
            wait = math.ceil((1 - tokens) / self._rate)
            raise Rejected(
                429,
                "rate_limited",
                "this key makes more requests than it may",
                {"retry_after": str(wait)},
                (*headers, ("Retry-After", str(wait))),
            )
        return headers
