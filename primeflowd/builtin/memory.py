"""Storage in memory, for `memory://`: a fake that passes the same conformance suite as SQLite.

For tests and demonstrations; all is lost at exit. It uses no threads, so it works under Trio's
autojump clock. Each write is a transaction of its own, run in the caller's task; a function that
raises is undone by a journal of what it replaced. Queries scan; only what every callback asks is
looked up.

A test may break it (`fail_with`), or keep commits waiting (`hold()` and `resume()`).
"""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, TypeVar

import outcome
import structlog
import trio
from msgspec.structs import replace

from primeflowd.config import Config
from primeflowd.errors import StorageUnavailable, UniqueViolation
from primeflowd.hookspecs import (
    BatchFilter,
    DeliveryFilter,
    Page,
    Storage,
    StorageStatistics,
    Tx,
    hookimpl,
)
from primeflowd.instants import Micros
from primeflowd.model import (
    TERMINAL_DELIVERY,
    ApiKey,
    Attempt,
    Batch,
    Delivery,
    Item,
    Recovery,
    RetryPolicy,
    SigningSecret,
    StoredAnswer,
)

T = TypeVar("T")
L = TypeVar("L", Batch, Delivery, SigningSecret, ApiKey)
O = TypeVar("O", Batch, Delivery, SigningSecret, Recovery)

URL: Final = "memory://"

_log = structlog.get_logger(__name__)


@hookimpl
def open_storage(
    config: Config, node_id: str | None
) -> AbstractAsyncContextManager[Storage] | None:
    return open_memory() if config.storage_url == URL else None


@asynccontextmanager
async def open_memory() -> AsyncIterator["MemoryStorage"]:
    storage = MemoryStorage()
    yield storage
    storage.fail_with = StorageUnavailable("the storage is closed")


class MemoryTx:
    """Tx over dicts, whose values are never changed in place."""

    def __init__(self) -> None:
        self._batches: dict[str, Batch] = {}
        self._items: dict[str, dict[int, Item]] = {}
        self._deliveries: dict[str, Delivery] = {}
        self._in_flight: dict[str, str] = {}
        self._unclaimed: dict[str, bool] = {}
        self._attempts: dict[str, tuple[Attempt, ...]] = {}
        self._policies: dict[tuple[str, str], RetryPolicy] = {}
        self._secrets: dict[str, SigningSecret] = {}
        self._current: dict[str, str] = {}
        self._keys: dict[str, ApiKey] = {}
        self._digests: dict[str, str] = {}
        self._answers: dict[tuple[str, str, str, str], StoredAnswer] = {}
        self._recoveries: dict[str, Recovery] = {}
        self._notes: dict[str, str] = {}
        self._journal: list[tuple[dict[Any, Any], Any, Any]] = []

    def begin(self) -> None:
        self._journal.clear()

    def undo(self) -> None:
        """Take back everything since begin()."""
        for table, key, before in reversed(self._journal):
            if before is None:
                table.pop(key, None)
            else:
                table[key] = before
        self._journal.clear()

    def _put(self, table: dict[Any, Any], key: Any, value: Any) -> None:
        """Set a value, or remove it with None. Nothing else changes a table."""
        self._journal.append((table, key, table.get(key)))
        if value is None:
            table.pop(key, None)
        else:
            table[key] = value

    def _claim_key(self, index: dict[str, str], key: str, owner: str) -> None:
        """Enter `owner` into a unique index."""
        if index.get(key, owner) != owner:
            raise UniqueViolation(f"{key} belongs to {index[key]}")
        self._put(index, key, owner)

    # Batches and items

    def batch(self, org_id: str, batch_id: str) -> Batch | None:
        return _of_org(self._batches, org_id, batch_id)

    def taken_batch_ids(self, batch_ids: Collection[str]) -> set[str]:
        return {batch_id for batch_id in batch_ids if batch_id in self._batches}

    def insert_batch(self, batch: Batch) -> None:
        if batch.id in self._batches:
            raise UniqueViolation(f"batch {batch.id} exists")
        self._put(self._batches, batch.id, batch)

    def update_batch(self, batch: Batch) -> None:
        if batch.id in self._batches:
            self._put(self._batches, batch.id, batch)

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

    def items(self, batch_id: str, after_index: int | None, limit: int | None) -> list[Item]:
        found = self._items.get(batch_id, {})
        after = [found[i] for i in sorted(found) if after_index is None or i > after_index]
        return after[:limit]

    def find_items(
        self, batch_id: str, indexes: Collection[int], client_refs: Collection[str]
    ) -> list[Item]:
        return [
            item
            for item in self._items.get(batch_id, {}).values()
            if item.sequence_index in indexes or item.client_ref in client_refs
        ]

    def put_items(self, items: Sequence[Item]) -> None:
        for batch_id in {item.batch_id for item in items}:
            own = {item.sequence_index: item for item in items if item.batch_id == batch_id}
            merged = self._items.get(batch_id, {}) | own
            refs = [item.client_ref for item in merged.values() if item.client_ref is not None]
            if len(refs) != len(set(refs)):
                raise UniqueViolation(f"two items of batch {batch_id} share a client_ref")
            self._put(self._items, batch_id, merged)

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
        return _of_org(self._deliveries, org_id, delivery_id)

    def in_flight(self, batch_id: str) -> Delivery | None:
        delivery_id = self._in_flight.get(batch_id)
        return self._deliveries[delivery_id] if delivery_id is not None else None

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
        if delivery.id in self._deliveries:
            self._store(delivery)

    def attempts(self, delivery_ids: Collection[str]) -> dict[str, list[Attempt]]:
        return {
            delivery_id: sorted(self._attempts[delivery_id], key=lambda a: a.attempt_number)
            for delivery_id in delivery_ids
            if delivery_id in self._attempts
        }

    def payloads(self, batch_ids: Collection[str]) -> dict[str, bytes]:
        batches = (self._batches[batch_id] for batch_id in batch_ids if batch_id in self._batches)
        return {batch.id: batch.payload for batch in batches if batch.payload is not None}

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

    def release(self, node_id: str, delivery_ids: Collection[str] | None) -> int:
        chosen = self._deliveries if delivery_ids is None else set(delivery_ids)
        return self._free(
            delivery
            for delivery_id in chosen
            if (delivery := self._deliveries.get(delivery_id)) and delivery.claimed_by == node_id
        )

    def release_lost(self, node_id: str) -> int:
        return self._free(
            delivery
            for delivery in self._deliveries.values()
            if delivery.claimed_by not in (None, node_id)
        )

    def _free(self, deliveries: Iterable[Delivery]) -> int:
        claimed = list(deliveries)
        for delivery in claimed:
            self._reclaim(delivery.id, None)
        return len(claimed)

    def record_attempt(self, node_id: str, attempt: Attempt, after: Delivery) -> bool:
        stored = self._deliveries.get(after.id)
        if stored is None or stored.claimed_by != node_id:
            return False
        recorded = self._attempts.get(attempt.delivery_id, ())
        if any(other.attempt_number == attempt.attempt_number for other in recorded):
            raise UniqueViolation(f"attempt {attempt.attempt_number} is on record already")
        if stored.status in TERMINAL_DELIVERY:
            after = replace(
                stored,
                attempt_count=stored.attempt_count + 1,
                interruptions=after.interruptions,
                updated_at=after.updated_at,
                claimed_by=None,
            )
        self._store(after)
        self._put(self._attempts, attempt.delivery_id, (*recorded, attempt))
        return True

    # Retry policies, signing secrets and API keys

    def policy(self, org_id: str, plan_id: str) -> RetryPolicy | None:
        return self._policies.get((org_id, plan_id))

    def policies(self, org_id: str) -> list[RetryPolicy]:
        return [self._policies[key] for key in sorted(self._policies) if key[0] == org_id]

    def put_policy(self, policy: RetryPolicy) -> None:
        self._put(self._policies, (policy.org_id, policy.plan_id), policy)

    def delete_policy(self, org_id: str, plan_id: str) -> bool:
        exists = (org_id, plan_id) in self._policies
        self._put(self._policies, (org_id, plan_id), None)
        return exists

    def secret(self, org_id: str, secret_id: str) -> SigningSecret | None:
        return _of_org(self._secrets, org_id, secret_id)

    def current_secret(self, org_id: str) -> SigningSecret | None:
        secret_id = self._current.get(org_id)
        return self._secrets[secret_id] if secret_id is not None else None

    def secrets(self, org_id: str | None) -> list[SigningSecret]:
        return _newest_first(s for s in self._secrets.values() if org_id in (None, s.org_id))

    def put_secret(self, secret: SigningSecret) -> None:
        if secret.is_current:
            self._claim_key(self._current, secret.org_id, secret.id)
        elif self._current.get(secret.org_id) == secret.id:
            self._put(self._current, secret.org_id, None)
        self._put(self._secrets, secret.id, secret)

    def key_by_digest(self, digest: str) -> ApiKey | None:
        key_id = self._digests.get(digest)
        return self._keys[key_id] if key_id is not None else None

    def keys(self, org_id: str | None) -> list[ApiKey]:
        return _newest_first(key for key in self._keys.values() if org_id in (None, key.org_id))

    def put_key(self, key: ApiKey) -> None:
        self._claim_key(self._digests, key.digest, key.id)
        self._put(self._keys, key.id, key)

    # Idempotency, recoveries, notes

    def answer(self, org_id: str, method: str, path: str, key: str) -> StoredAnswer | None:
        return self._answers.get((org_id, method, path, key))

    def put_answer(self, answer: StoredAnswer) -> None:
        self._put(self._answers, (answer.org_id, answer.method, answer.path, answer.key), answer)

    def sealed_answers(self) -> list[StoredAnswer]:
        return [answer for answer in self._answers.values() if answer.sealed]

    def delete_answers(self, created_before: Micros, limit: int) -> int:
        expired = sorted(
            (answer.created_at, scope)
            for scope, answer in self._answers.items()
            if answer.created_at < created_before
        )[:limit]
        for _, scope in expired:
            self._put(self._answers, scope, None)
        return len(expired)

    def recovery(self, org_id: str, recovery_id: str) -> Recovery | None:
        return _of_org(self._recoveries, org_id, recovery_id)

    def running_recoveries(self) -> list[Recovery]:
        running = [r for r in self._recoveries.values() if r.status == "running"]
        return sorted(running, key=lambda recovery: (recovery.created_at, recovery.id))

    def put_recovery(self, recovery: Recovery) -> None:
        self._put(self._recoveries, recovery.id, recovery)

    def note(self, name: str) -> str | None:
        return self._notes.get(name)

    def put_note(self, name: str, value: str) -> None:
        self._put(self._notes, name, value)


class MemoryStorage:
    """Storage over one MemoryTx.

    Attributes:
        fail_with: while set, reads and writes raise it, as over a broken disk.
    """

    def __init__(self) -> None:
        self.fail_with: StorageUnavailable | None = None
        self._tx = MemoryTx()
        self._healthy = True
        self._commits = 0
        self._held: list[Callable[[], None]] | None = None

    async def write(
        self, function: Callable[[Tx], T], on_commit: Callable[[T], None] | None = None
    ) -> T:
        """See hookspecs.Storage. A caller cancelled before its turn withdraws the function; one
        cancelled while commits are held does not."""
        await trio.lowlevel.checkpoint()
        if self._held is None:
            return self._commit(function, on_commit)
        waiting: list[trio.lowlevel.Task] = [trio.lowlevel.current_task()]

        def commit() -> None:
            result = outcome.capture(self._commit, function, on_commit)
            for task in waiting:
                trio.lowlevel.reschedule(task, result)

        def abandon(_: object) -> trio.lowlevel.Abort:
            waiting.clear()
            return trio.lowlevel.Abort.SUCCEEDED

        self._held.append(commit)
        held: T = await trio.lowlevel.wait_task_rescheduled(abandon)
        return held

    async def read(self, function: Callable[[Tx], T]) -> T:
        await trio.lowlevel.checkpoint()
        if self.fail_with is not None:
            raise self.fail_with
        return function(self._tx)

    def statistics(self) -> StorageStatistics:
        return StorageStatistics(
            healthy=self._healthy,
            backlog=len(self._held or ()),
            commits=self._commits,
            operations=self._commits,
        )

    def hold(self) -> None:
        """Keep writes waiting from now on, as behind a slow disk."""
        self._held = []

    def resume(self) -> None:
        """Commit what waits, in order, and hold no longer."""
        held, self._held = self._held or [], None
        for commit in held:
            commit()

    def _commit(self, function: Callable[[Tx], T], on_commit: Callable[[T], None] | None) -> T:
        try:
            result = self._run(function)
        except UniqueViolation:
            result = self._run(function)
        self._commits += 1
        if on_commit is not None:
            try:
                on_commit(result)
            except Exception:  # as the others: a bug of the caller, told but not passed on
                _log.exception("a callback raised after its commit")
        return result

    def _run(self, function: Callable[[Tx], T]) -> T:
        self._healthy = self.fail_with is None
        if self.fail_with is not None:
            raise self.fail_with
        self._tx.begin()
        try:
            return function(self._tx)
        except BaseException:
            self._tx.undo()
            raise


def _of_org(table: dict[str, O], org_id: str, key: str) -> O | None:
    value = table.get(key)
    return value if value is not None and value.org_id == org_id else None


def _created_within(value: Batch | Delivery, where: BatchFilter | DeliveryFilter) -> bool:
    after, before = where.created_after, where.created_before
    return (after is None or value.created_at > after) and (
        before is None or value.created_at < before
    )


def _newest_first(values: Iterable[L]) -> list[L]:
    return sorted(values, key=lambda value: (value.created_at, value.id), reverse=True)


def _page(values: Iterable[L], page: Page) -> list[L]:
    found = _newest_first(values)
    if page.before is not None:
        found = [value for value in found if (value.created_at, value.id) < page.before]
    return found[: page.limit]
