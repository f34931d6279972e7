"""Nodes: their leases, whose claims stand, and the orders that one gives another.

A lease ends by the storage's clock, never by a node's own. Claims of a node that has no lease are
anybody's, so that a claim committed while its node's lease was being ended is not lost for ever:
the next release_lost() finds it.

A node that stands still in the middle of a transaction keeps its locks, and once its lease is over
its rows are what the others want. None waits for it: it would lose its own lease meanwhile, and be
waited for in turn. What is locked is left, and a later release_lost() finds it. SQLite ignores all
that: there transactions that write exclude each other.
"""

import time
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Select,
    Table,
    delete,
    func,
    insert,
    or_,
    select,
    text,
    tuple_,
    update,
)

from primeflowd.hookspecs import Renewal
from primeflowd.instants import Micros
from primeflowd.model import Delivery
from primeflowd.sql import rows
from primeflowd.sql.session import Session, chunks
from primeflowd.sql.tables import CLAIMED, deliveries, nodes, orders

_POSTGRESQL_NOW: Final = text("SELECT (EXTRACT(EPOCH FROM clock_timestamp()) * 1000000)::bigint")


def _each_claimant() -> Select[Any]:
    """Every node that has a claim: one seek per node, however many claims it has."""
    smallest = func.min(deliveries.c.claimed_by)
    first = select(smallest.label("node_id")).where(CLAIMED).cte("each", recursive=True)
    following = select(smallest).where(CLAIMED, deliveries.c.claimed_by > first.c.node_id)
    each = first.union_all(select(following.scalar_subquery()).where(first.c.node_id.is_not(None)))
    return select(each.c.node_id).where(each.c.node_id.is_not(None))


_claimants: Final = _each_claimant()


class NodeStatements(Session):
    def now(self) -> Micros:
        if self._hot.dialect.name == "postgresql":
            now: Micros = self._read_stored(_POSTGRESQL_NOW)[0][0]
            return now
        # A file is shared by the processes of one machine: its clock is theirs.
        return time.time_ns() // 1000

    def begin_lease(self, node_id: str, ttl: Micros) -> None:
        now = self.now()
        self._write(insert(nodes).values(id=node_id, began_at=now, expires_at=now + ttl))

    def renew_lease(self, node_id: str, ttl: Micros) -> Renewal | None:
        now = self.now()
        own = nodes.c.id == node_id
        # If it has expired, another may have begun to end it: then it is as good as gone. Before,
        # none but an earlier transaction of this node, which was cut off, can have locked it.
        held = or_(nodes.c.expires_at >= now, nodes.c.id.in_(_free(select(nodes.c.id).where(own))))
        if not self._write(update(nodes).where(own, held).values(expires_at=now + ttl)):
            return None
        return Renewal(now, is_eldest=self._living(now)[0] == node_id)

    def nodes(self) -> list[str]:
        return self._living(self.now())

    def _living(self, now: Micros) -> list[str]:
        living = select(nodes.c.id).where(nodes.c.expires_at >= now)
        return [row.id for row in self._read(living.order_by(nodes.c.began_at, nodes.c.id))]

    def end_lease(self, node_id: str) -> int:
        # Of a node that leaves, too: a drain that failed for one claim would keep all the others
        # from the rest until the lease expires.
        self._delete_free(nodes, nodes.c.id == node_id)
        self._delete_free(orders, orders.c.node_id == node_id)
        return self._free_claims(node_id)

    def release_lost(self) -> int:
        # One that is locked is being renewed, or ended by another.
        self._delete_free(nodes, nodes.c.expires_at < self.now())
        # Claims before leases: a node has its lease before its first claim, so one that begins
        # between the two reads has no claim in the first.
        claimants = {row.node_id for row in self._read(_claimants)}
        leased = {row.id for row in self._read(select(nodes.c.id))}
        self._delete_free(orders, orders.c.node_id.not_in(select(nodes.c.id)))
        return sum(self._free_claims(node_id) for node_id in sorted(claimants - leased))

    def _delete_free(self, table: Table, which: ColumnElement[bool]) -> None:
        """Delete the rows that nobody has locked. For small tables."""
        key = table.primary_key.columns
        free = _free(select(*key).where(which))
        self._write(delete(table).where(tuple_(*key).in_(free)))

    def _free_claims(self, node_id: str) -> int:
        held = select(deliveries.c.id).where(CLAIMED, deliveries.c.claimed_by == node_id)
        freed = 0
        for chunk in chunks([row.id for row in self._read(_free(held))]):
            self.left_for_others = True
            # By the key alone, as in claim(): how many were found only we know, and no planner.
            change = update(deliveries).where(deliveries.c.id.in_(chunk))
            freed += self._write(change.values(claimed_by=None))
        return freed

    def claimed(self, node_id: str) -> set[str]:
        return {
            row.id
            for row in self._read(
                select(deliveries.c.id).where(CLAIMED, deliveries.c.claimed_by == node_id)
            )
        }

    def put_order(self, node_id: str, delivery_id: str) -> None:
        self.left_for_others = True
        given = select(orders).where(
            orders.c.node_id == node_id, orders.c.delivery_id == delivery_id
        )
        if not self._read_stored(given):
            self._write(insert(orders).values(node_id=node_id, delivery_id=delivery_id))

    def has_orders(self, node_id: str) -> bool:
        return bool(self._read_stored(_orders_to(node_id).limit(1)))

    def take_orders(self, node_id: str) -> list[Delivery]:
        ids = [row.delivery_id for row in self._read_stored(_orders_to(node_id))]
        found: list[Delivery] = []
        for chunk in chunks(ids):
            self._write(
                delete(orders).where(orders.c.node_id == node_id, orders.c.delivery_id.in_(chunk))
            )
            named = select(*rows.DELIVERIES.columns).where(deliveries.c.id.in_(chunk))
            found += map(rows.DELIVERIES.value, self._read(named))
        return found


def _free(query: Select[Any]) -> Select[Any]:
    """The rows of `query` that nobody has locked, locked until this transaction ends."""
    # Correlated, it would be about the row at hand of the statement that it is part of.
    return query.with_for_update(skip_locked=True).correlate(None)


def _orders_to(node_id: str) -> Select[Any]:
    return select(orders.c.delivery_id).where(orders.c.node_id == node_id)
