"""Retention of a storage in memory: what is old is found by looking at all, and removed."""

from collections.abc import Collection, Iterable, Sequence

from msgspec.structs import replace

from primeflowd.builtin.memory_queue import MemoryQueue
from primeflowd.hookspecs import BatchPosition, Removed
from primeflowd.instants import Micros
from primeflowd.model import TERMINAL_BATCH, TERMINAL_DELIVERY, Delivery, first_id


class MemoryRetention(MemoryQueue):
    def expired_batches(
        self, before: Micros, after: BatchPosition | None, limit: int
    ) -> tuple[list[tuple[str, str]], BatchPosition | None]:
        places = sorted(
            (batch.org_id, batch.created_at, batch.id)
            for batch in self._batches.values()
            if batch.created_at < before
        )
        places = [place for place in places if after is None or place > after][:limit]
        expired = [(org, batch_id) for org, _, batch_id in places if self._ended(batch_id, before)]
        return expired, places[-1] if len(places) == limit else None

    def remove_batches(
        self, batches: Sequence[tuple[str, str]], before: Micros, limit: int
    ) -> Removed:
        gone = Removed()
        for org_id, batch_id in sorted(batches):
            batch = self.batch(org_id, batch_id)
            own = [d for d in self._deliveries.values() if d.batch_id == batch_id]
            if batch is None or not self._ended(batch_id, before) or _lives(own, before):
                continue
            of_batch = self._items.get((org_id, batch_id), {})
            left = limit - gone.batches - gone.items - gone.deliveries - gone.attempts
            if left <= 0:
                return replace(gone, complete=False)
            kept = dict(sorted(of_batch.items())[left:])
            self._put(self._items, (org_id, batch_id), kept or None)
            gone = replace(gone, items=gone.items + len(of_batch) - len(kept))
            if kept:
                return replace(gone, complete=False)
            for delivery in own:
                count = len(self._attempts.get(delivery.id, ()))
                self._put(self._attempts, delivery.id, None)
                self._put(self._deliveries, delivery.id, None)
                gone = replace(gone, deliveries=gone.deliveries + 1, attempts=gone.attempts + count)
            self._put(self._batches, batch_id, None)
            gone = replace(gone, batches=gone.batches + 1)
        return gone

    def _ended(self, batch_id: str, before: Micros) -> bool:
        batch = self._batches[batch_id]
        return batch.status in TERMINAL_BATCH and batch.updated_at < before

    def old_bodies(self, before: Micros, after: str, limit: int) -> tuple[list[str], str | None]:
        end = first_id(before)
        ids = sorted(each for each in self._attempts if after < each < end)
        looked_at = ids[:limit]
        found = [each for each in looked_at if self._bodies(each, before)]
        return found, looked_at[-1] if len(ids) > limit else None

    def forget_bodies(self, delivery_ids: Collection[str], before: Micros) -> int:
        count = 0
        for delivery_id in delivery_ids:
            numbers = self._bodies(delivery_id, before)
            kept = tuple(
                replace(each, response_body=None) if each.attempt_number in numbers else each
                for each in self._attempts.get(delivery_id, ())
            )
            self._put(self._attempts, delivery_id, kept or None)
            count += len(numbers)
        return count

    def _bodies(self, delivery_id: str, before: Micros) -> set[int]:
        """The numbers of a delivery's attempts that have an old body."""
        return {
            each.attempt_number
            for each in self._attempts.get(delivery_id, ())
            if each.response_body and each.created_at < before
        }

    def give_back(self, octets: int) -> int:
        return 0


def _lives(deliveries: Iterable[Delivery], before: Micros) -> bool:
    return any(
        each.status not in TERMINAL_DELIVERY
        or each.claimed_by is not None
        or each.updated_at >= before
        for each in deliveries
    )
