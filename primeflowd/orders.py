"""Orders of people about deliveries that this node holds, given through another node.

Blocks on storage.
"""

import math
from collections.abc import Callable
from typing import Final

import trio

from primeflowd.hookspecs import Storage
from primeflowd.model import Delivery

_EVERY: Final = 1.0  # seconds


class Orders:
    """Takes them from storage.

    Attributes:
        due_at: when storage is to be asked next, by Trio's clock.
    """

    def __init__(self, storage: Storage, obey: Callable[[list[Delivery]], None]) -> None:
        """`obey` is given the deliveries as they were ordered to be, by the commit."""
        self.due_at = -math.inf
        self._storage = storage
        self._obey = obey

    async def take(self, node_id: str) -> None:
        """Obey the orders to `node_id`, if it is time to ask.

        Raises:
            StorageUnavailable: there may be some.
        """
        now = trio.current_time()
        if now < self.due_at:
            return
        self.due_at = now + _EVERY
        # Reading disturbs nobody; nearly always there are none.
        if await self._storage.read(lambda tx: tx.has_orders(node_id)):
            await self._storage.write(lambda tx: tx.take_orders(node_id), self._obey)
