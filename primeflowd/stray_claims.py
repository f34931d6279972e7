"""Claims that storage shows as this node's though it does not hold the deliveries.

After a commit that failed there may be such claims: it did happen, or is still to happen. Nobody
would ever send those deliveries, so the claims are looked for and given back.

Blocks on storage.
"""

import math
from collections.abc import Callable
from typing import Final

import trio

from primeflowd.hookspecs import Storage

_DOUBT: Final = 15.0
"""For how many seconds after a failed commit it may still turn out to have happened."""


class StrayClaims:
    """Looks for them when a commit has failed.

    Attributes:
        due_at: when it looks next, by Trio's clock.
    """

    def __init__(self, storage: Storage, give_back: Callable[[set[str]], None]) -> None:
        """`give_back` is given the ids of all that is claimed, by a commit: what was claimed by
        those before it is held by then."""
        self.due_at = math.inf
        self._storage = storage
        self._give_back = give_back
        self._failures = storage.statistics().failures
        self._doubtful_until = -math.inf

    async def look(self, node_id: str) -> None:
        """Look for claims of `node_id`, if it is time to.

        Raises:
            StorageUnavailable: there may be some.
        """
        now = trio.current_time()
        failures = self._storage.statistics().failures
        if failures != self._failures:
            self._failures = failures
            self.due_at = now
            self._doubtful_until = now + _DOUBT
        if now < self.due_at:
            return
        await self._storage.write(lambda tx: tx.claimed(node_id), self._give_back)
        # Once more at the end: a database that was cut off may commit what it was sent after it
        # has answered this.
        now = trio.current_time()
        self.due_at = self._doubtful_until if now < self._doubtful_until else math.inf
