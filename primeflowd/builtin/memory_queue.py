"""Batches, items, deliveries and the queue of a storage in memory.

Queries scan; only what every callback asks for is looked up. Fails as a database would:
UniqueViolation where a row exists.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from itertools import accumulate
from typing import Final, TypeVar

from msgspec.structs import replace

from primeflowd.builtin.memory_access import MemoryAccess, newest_first, of_org
from primeflowd.errors import UniqueViolation
from primeflowd.hookspecs import BatchFilter, DeliveryFilter, Fate, Page, Shape
from primeflowd.instants import Micros
from primeflowd.model import TERMINAL_DELIVERY, Attempt, Batch, Delivery, Item

R = TypeVar("R", Batch, Delivery)

_BATCH_CHANGES: Final = (
    *("status", "output", "items_total", "items_succeeded", "items_failed", "items_cancelled"),
    *("cancellation_reason", "payload", "started_at", "completed_at", "updated_at"),
)
_DELIVERY_CHANGES: Final = (
    *("status", "failure_reason", "failure_detail", "attempt_count", "interruptions"),
    *("signing_secret_id", "due_at", "claimed_by", "updated_at", "completed_at"),
)


class MemoryQueue(MemoryAccess):
    """Dicts, whose values are never changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self._batches: dict[str, Batch] = {}
        self._items: dict[tuple[str, str], dict[int, Item]] = {}
        self._deliveries: dict[str, Delivery] = {}
        self._in_flight: dict[str, str] = {}
        self._unclaimed: dict[str, bool] = {}
        self._attempts: dict[str, tuple[Attempt, ...]] = {}

    # Batches and items

    def batch(self, org_id: str, batch_id: str) -> Batch | None:
        return of_org(self._batches, org_id, batch_id)

    def taken_batch_ids(self, batch_ids: Collection[str]) -> set[str]:
        return {batch_id for batch_id in batch_ids if batch_id in self._batches}

    def insert_batch(self, batch: Batch) -> None:
        if batch.id in self._batches:
            raise UniqueViolation(f"batch {batch.id} exists")
        self._put(self._batches, batch.id, batch)

    def update_batch(self, batch: Batch) -> None:
        if stored := of_org(self._batches, batch.org_id, batch.id):
            self._put(self._batches, batch.id, _changed(stored, batch, _BATCH_CHANGES))

    def batches(self, org_id: str, where: BatchFilter, page: Page) -> list[Batch]:
        found = (
            batch
            for batch in self._batches.values()
            if batch.org_id == org_id
            and where.status in (None, batch.status)
            and where.plan_id in (None, batch.plan_id)
            and _created_within(batch, where)
        )
        return _page(found, page)

    def items(
        self, org_id: str, batch_id: str, after_index: int | None, limit: int | None
    ) -> list[Item]:
        found = self._items.get((org_id, batch_id), {})
        after = [found[i] for i in sorted(found) if after_index is None or i > after_index]
        return after[:limit]

    def find_items(
        self, org_id: str, batch_id: str, indexes: Collection[int], client_refs: Collection[str]
    ) -> list[Item]:
        return [
            item
            for item in self._items.get((org_id, batch_id), {}).values()
            if item.sequence_index in indexes or item.client_ref in client_refs
        ]

    def put_items(self, items: Sequence[Item]) -> None:
        for key in {(item.org_id, item.batch_id) for item in items}:
            own = {i.sequence_index: i for i in items if (i.org_id, i.batch_id) == key}
            merged = self._items.get(key, {}) | own
            refs = [item.client_ref for item in merged.values() if item.client_ref is not None]
            if len(refs) != len(set(refs)):
                raise UniqueViolation(f"two items of batch {key} share a client_ref")
            self._put(self._items, key, merged)

    # Deliveries

    def insert_delivery(self, delivery: Delivery) -> None:
        if delivery.id in self._deliveries:
            raise UniqueViolation(f"delivery {delivery.id} exists")
        self._store(delivery)

    def _store(self, delivery: Delivery) -> None:
        if delivery.status not in TERMINAL_DELIVERY:
            self._claim_key(self._in_flight, delivery.batch_id, delivery.id)
        elif self._in_flight.get(delivery.batch_id) == delivery.id:
            self._put(self._in_flight, delivery.batch_id, None)
        waits = delivery.status == "pending" and delivery.claimed_by is None
        self._put(self._unclaimed, delivery.id, waits or None)
        self._put(self._deliveries, delivery.id, delivery)

    def delivery(self, org_id: str | None, delivery_id: str) -> Delivery | None:
        if org_id is None:
            return self._deliveries.get(delivery_id)
        return of_org(self._deliveries, org_id, delivery_id)

    def in_flight(self, org_id: str, batch_id: str) -> Delivery | None:
        delivery_id = self._in_flight.get(batch_id)
        return self.delivery(org_id, delivery_id) if delivery_id is not None else None

    def deliveries(self, org_id: str, where: DeliveryFilter, page: Page) -> list[Delivery]:
        return _page(self._matching(org_id, where), page)

    def count_deliveries(self, org_id: str, where: DeliveryFilter) -> int:
        return len(self._matching(org_id, where))

    def failed_after(
        self, org_id: str, where: DeliveryFilter, position: str | None, limit: int
    ) -> list[Delivery]:
        found = [
            delivery
            for delivery in self._matching(org_id, where)
            if delivery.status == "failed" and (position is None or delivery.id > position)
        ]
        return sorted(found, key=lambda delivery: delivery.id)[:limit]

    def _matching(self, org_id: str, where: DeliveryFilter) -> list[Delivery]:
        return [
            delivery
            for delivery in self._deliveries.values()
            if delivery.org_id == org_id
            and where.status in (None, delivery.status)
            and where.batch_id in (None, delivery.batch_id)
            and (where.failure_reason in (None, delivery.failure_reason))
            and where.destination in (None, delivery.destination)
            and (where.ids is None or delivery.id in where.ids)
            and _created_within(delivery, where)
        ]

    def update_delivery(self, delivery: Delivery) -> None:
        if stored := self._deliveries.get(delivery.id):
            self._store(_changed(stored, delivery, _DELIVERY_CHANGES))

    def attempts(self, delivery_ids: Collection[str]) -> dict[str, list[Attempt]]:
        return {
            delivery_id: sorted(self._attempts[delivery_id], key=lambda a: a.attempt_number)
            for delivery_id in delivery_ids
            if delivery_id in self._attempts
        }

    def payloads(
        self, deliveries: Collection[Delivery], within: int | None = None
    ) -> dict[str, bytes]:
        found = {
            delivery.id: batch.payload
            for delivery in deliveries
            if (batch := self.batch(delivery.org_id, delivery.batch_id))
            and batch.payload is not None
        }
        if within is None:
            return found
        totals = accumulate(map(len, found.values()))
        return {
            delivery_id: payload
            for (delivery_id, payload), total in zip(found.items(), totals, strict=True)
            if total <= within
        }

    # The queue

    def claim(
        self, node_id: str, until: Micros, limit: int, share: int, held: dict[str, int]
    ) -> list[Delivery]:
        waiting = (self._deliveries[delivery_id] for delivery_id in self._unclaimed)
        due = sorted(
            (delivery.due_at, delivery.id, delivery.destination)
            for delivery in waiting
            if delivery.due_at is not None and delivery.due_at <= until
        )
        taken = Counter(held)
        claimed: list[Delivery] = []
        for _, delivery_id, destination in due:
            if len(claimed) >= limit:
                break
            if taken[destination] < share:
                taken[destination] += 1
                claimed.append(self._reclaim(delivery_id, node_id))
        return claimed

    def _reclaim(self, delivery_id: str, node_id: str | None) -> Delivery:
        delivery = replace(self._deliveries[delivery_id], claimed_by=node_id)
        self._store(delivery)
        return delivery

    def shape(self, org_id: str | None, edges: Sequence[Micros], limit: int) -> Shape:
        counts: dict[str, list[int]] = {}
        for delivery in self._deliveries.values():
            if delivery.due_at is not None and org_id in (None, delivery.org_id):
                row = counts.setdefault(delivery.destination, [0] * (len(edges) + 1))
                row[bisect_right(edges, delivery.due_at)] += 1
        largest = sorted(counts.items(), key=lambda row: (-sum(row[1]), row[0]))[:limit]
        total = tuple(sum(row[at] for row in counts.values()) for at in range(len(edges) + 1))
        named = tuple((destination, tuple(row)) for destination, row in largest)
        return Shape(named, total, len(counts))

    def release(self, node_id: str, delivery_ids: Collection[str] | None) -> int:
        claimed = self.claimed(node_id)
        return self._free(claimed if delivery_ids is None else claimed & set(delivery_ids))

    def claimed(self, node_id: str) -> set[str]:
        return {d.id for d in self._deliveries.values() if d.claimed_by == node_id}

    def _free(self, delivery_ids: Collection[str]) -> int:
        for delivery_id in delivery_ids:
            self._reclaim(delivery_id, None)
        return len(delivery_ids)

    def record_attempt(self, node_id: str, attempt: Attempt, after: Delivery) -> Fate:
        stored = self._deliveries.get(after.id)
        if stored is None or stored.claimed_by != node_id:
            return "lost"
        recorded = self._attempts.get(attempt.delivery_id, ())
        if any(other.attempt_number == attempt.attempt_number for other in recorded):
            raise UniqueViolation(f"attempt {attempt.attempt_number} is on record already")
        ended = stored.status in TERMINAL_DELIVERY
        if ended:
            after = replace(
                stored,
                attempt_count=stored.attempt_count + 1,
                interruptions=after.interruptions,
                updated_at=after.updated_at,
                claimed_by=None,
            )
        self._store(_changed(stored, after, _DELIVERY_CHANGES))
        self._put(self._attempts, attempt.delivery_id, (*recorded, attempt))
        return "ended" if ended else "recorded"


def _changed(stored: R, new: R, names: tuple[str, ...]) -> R:
    """`stored` with what may change taken from `new`; the rest stays, as an UPDATE leaves it."""
    return replace(stored, **{name: getattr(new, name) for name in names})


def _created_within(value: Batch | Delivery, where: BatchFilter | DeliveryFilter) -> bool:
    after, before = where.created_after, where.created_before
    return (after is None or value.created_at > after) and (
        before is None or value.created_at < before
    )


def _page(values: Iterable[R], page: Page) -> list[R]:
    found = newest_first(values)
    if page.before is not None:
        found = [value for value in found if (value.created_at, value.id) < page.before]
    return found[: page.limit]
