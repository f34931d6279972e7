"""The queue: claiming what is due, giving claims up, and recording attempts under a claim."""

from collections import Counter
from collections.abc import Collection
from heapq import nsmallest
from typing import Any, Final, TypeAlias

from sqlalchemy import Integer, Select, bindparam, func, select, update

from primeflowd.hookspecs import Fate
from primeflowd.instants import Micros
from primeflowd.model import Attempt, Delivery
from primeflowd.sql import rows
from primeflowd.sql.session import Session, chunks
from primeflowd.sql.statements import delivery_update, hidden
from primeflowd.sql.tables import DUE, FINISHED, deliveries

Due: TypeAlias = tuple[Micros, str, str]
"""When a delivery is due, its id, its destination; sorts as the queue does."""

HEAD_SLACK: Final = 1_000
"""How many rows of full destinations claim() looks past at the head of the queue before it goes
destination by destination."""

_head: Final = (
    select(deliveries.c.due_at, deliveries.c.id, deliveries.c.destination)
    .where(DUE, deliveries.c.due_at <= bindparam("until"))
    .order_by(deliveries.c.due_at, deliveries.c.id)
    .limit(bindparam("rows", type_=Integer))
    # What another node is claiming at this moment is not waited for. SQLite ignores it: there
    # transactions that write exclude each other.
    .with_for_update(skip_locked=True)
)
"""The head of the queue, from the index alone. All that claim() needs as long as destinations stay
below their share."""

_head_of_destination: Final = _head.where(deliveries.c.destination == bindparam("of"))


def _each_destination() -> Select[Any]:
    """Every destination with unclaimed deliveries, and when the first of them is due.

    Needed when one destination crowds the head: looking past its rows would mean reading them all.
    This is a loose index scan: one seek from each destination to the next, and one for its first
    instant, however many rows lie between. SQLite has no such plan of its own for GROUP BY.
    """
    smallest = func.min(deliveries.c.destination)
    first = select(smallest.label("destination")).where(DUE).cte("each", recursive=True)
    following = select(smallest).where(DUE, deliveries.c.destination > first.c.destination)
    each = first.union_all(
        select(following.scalar_subquery()).where(first.c.destination.is_not(None))
    )
    due = select(func.min(deliveries.c.due_at)).where(
        DUE, deliveries.c.destination == each.c.destination
    )
    return select(each.c.destination, due.scalar_subquery().label("due_at")).where(
        each.c.destination.is_not(None)
    )


_destinations: Final = _each_destination()


class QueueStatements(Session):
    def claim(
        self, node_id: str, until: Micros, limit: int, share: int, held: dict[str, int]
    ) -> list[Delivery]:
        if limit <= 0:
            return []
        due = self._due_at_head(until, limit, share, held)
        if due is None:
            due = self._due_by_destination(until, limit, share, held)
        claimed: list[Any] = []
        for chunk in chunks([delivery_id for _, delivery_id, _ in due]):
            # They are locked: nobody has claimed them since they were read. To ask for DUE again
            # would lead a planner to the index of all that is due.
            change = update(deliveries).where(deliveries.c.id.in_(chunk))
            change = change.values(claimed_by=node_id)
            claimed += self._write_returning(change.returning(*rows.DELIVERIES.columns))
        found = [rows.DELIVERIES.value(row) for row in claimed]
        return sorted(found, key=lambda delivery: (delivery.due_at, delivery.id))

    def _due_at_head(
        self, until: Micros, limit: int, share: int, held: dict[str, int]
    ) -> list[Due] | None:
        """What to claim; None if rows of full destinations may hide some of it."""
        reach = limit + HEAD_SLACK
        head = self._read(_head, {"until": until, "rows": reach})
        taken = Counter(held)
        due: list[Due] = []
        for due_at, delivery_id, destination in head:
            if taken[destination] < share:
                taken[destination] += 1
                due.append((due_at, delivery_id, destination))
                if len(due) == limit:
                    return due
        return due if len(head) < reach else None

    def _due_by_destination(
        self, until: Micros, limit: int, share: int, held: dict[str, int]
    ) -> list[Due]:
        due: list[Due] = []
        latest = until
        for destination, first in sorted(self._read(_destinations), key=lambda row: row.due_at):
            if first > latest:
                break
            room = min(share - held.get(destination, 0), limit)
            if room > 0:
                values = {"until": latest, "of": destination, "rows": room}
                due += [tuple(row) for row in self._read(_head_of_destination, values)]
            if len(due) >= 2 * limit:
                # Enough: from here on only what is due before the last of these counts.
                due = nsmallest(limit, due)
                latest = due[-1][0]
        return nsmallest(limit, due)

    def release(self, node_id: str, delivery_ids: Collection[str] | None) -> int:
        self.left_for_others = True
        change = update(deliveries).values(claimed_by=None)
        if delivery_ids is None:
            return self._write(change.where(deliveries.c.claimed_by == node_id))
        return sum(
            self._write(
                change.where(deliveries.c.id.in_(chunk), hidden(deliveries.c.claimed_by) == node_id)
            )
            for chunk in chunks(delivery_ids)
        )

    def record_attempt(self, node_id: str, attempt: Attempt, after: Delivery) -> Fate:
        if after.id in self._deliveries or after.id in self._records:
            self.flush()
        fate: Fate = "recorded"
        if self._presuming:
            # None is kept back for it: that was just seen to.
            self._records[after.id] = node_id, after
        elif not self._write_hot(self._hot.record, (*delivery_update(after), node_id)):
            if not self._record_late(node_id, after):
                return "lost"
            fate = "ended"
        # As _keep(), for each callback.
        key = attempt.delivery_id, attempt.attempt_number
        if key in self._attempts:
            self._kept_already(key)
        self._attempts[key] = attempt
        return fate

    def _record_late(self, node_id: str, after: Delivery) -> bool:
        """Count an attempt of a delivery that a person ended while it was under way."""
        change = update(deliveries).where(
            deliveries.c.id == after.id,
            hidden(deliveries.c.org_id) == after.org_id,
            hidden(deliveries.c.claimed_by) == node_id,
            FINISHED,
        )
        return bool(
            self._write(
                change.values(
                    attempt_count=deliveries.c.attempt_count + 1,
                    interruptions=after.interruptions,
                    updated_at=after.updated_at,
                    claimed_by=None,
                )
            )
        )
