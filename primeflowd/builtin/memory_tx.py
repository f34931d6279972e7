"""The statements of a storage in memory: all of Tx, of which leases and orders are here."""

from primeflowd.builtin.memory_retention import MemoryRetention
from primeflowd.clock import Clock
from primeflowd.errors import UniqueViolation
from primeflowd.hookspecs import Renewal
from primeflowd.instants import Micros
from primeflowd.model import Delivery


class MemoryTx(MemoryRetention):
    """`clock` is the storage's: what every node goes by."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        # When each node's lease began and expires.
        self._nodes: dict[str, tuple[Micros, Micros]] = {}
        self._orders: dict[tuple[str, str], bool] = {}

    def now(self) -> Micros:
        return self._clock.now()

    def begin_lease(self, node_id: str, ttl: Micros) -> None:
        if node_id in self._nodes:
            raise UniqueViolation(f"node {node_id} has a lease")
        now = self.now()
        self._put(self._nodes, node_id, (now, now + ttl))

    def renew_lease(self, node_id: str, ttl: Micros) -> Renewal | None:
        if node_id not in self._nodes:
            return None
        now = self.now()
        began, _ = self._nodes[node_id]
        self._put(self._nodes, node_id, (began, now + ttl))
        return Renewal(now, is_eldest=self._living(now)[0] == node_id)

    def nodes(self) -> list[str]:
        return self._living(self.now())

    def _living(self, now: Micros) -> list[str]:
        living = [(began, name) for name, (began, until) in self._nodes.items() if until >= now]
        return [node_id for _, node_id in sorted(living)]

    def end_lease(self, node_id: str) -> int:
        self._put(self._nodes, node_id, None)
        self._take(node_id)
        return self._free(self.claimed(node_id))

    def release_lost(self) -> int:
        living = set(self.nodes())
        for node_id in set(self._nodes) - living:
            self._put(self._nodes, node_id, None)
        for node_id in {to for to, _ in self._orders} - living:
            self._take(node_id)
        claimants = {d.claimed_by for d in self._deliveries.values() if d.claimed_by is not None}
        return sum(self._free(self.claimed(node_id)) for node_id in claimants - living)

    def put_order(self, node_id: str, delivery_id: str) -> None:
        self._put(self._orders, (node_id, delivery_id), True)

    def has_orders(self, node_id: str) -> bool:
        return any(to == node_id for to, _ in self._orders)

    def take_orders(self, node_id: str) -> list[Delivery]:
        return [self._deliveries[delivery_id] for delivery_id in self._take(node_id)]

    def _take(self, node_id: str) -> list[str]:
        """The ids that orders to a node name; the orders are gone."""
        named = [delivery_id for to, delivery_id in self._orders if to == node_id]
        for delivery_id in named:
            self._put(self._orders, (node_id, delivery_id), None)
        return named
