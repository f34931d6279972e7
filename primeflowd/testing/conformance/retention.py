"""Promises about what is removed when it is old, and what is kept."""

from typing import Any

from msgspec.structs import replace

from primeflowd.hookspecs import (
    BatchFilter,
    BatchPosition,
    DeliveryFilter,
    Page,
    Removed,
    Storage,
    Tx,
)
from primeflowd.instants import MILLISECOND, Micros
from primeflowd.model import Attempt, Batch, Delivery, first_id, new_id
from primeflowd.testing.conformance.base import (
    NODE,
    Conformance,
    attempts_of,
    delivery_of,
    store,
)
from primeflowd.testing.factories import (
    NOW,
    ORG,
    make_attempt,
    make_batch,
    make_delivery,
    make_item,
)


def id_made_at(instant: Micros) -> str:
    """An id as new_id() would have made it then."""
    prefix = first_id(instant)
    return prefix + new_id()[len(prefix) :]


def ended(batch: Batch, **changes: Any) -> Delivery:
    """A delivery of it that succeeded at once."""
    return make_delivery(
        **{
            "id": id_made_at(batch.created_at),
            "org_id": batch.org_id,
            "batch_id": batch.id,
            "status": "succeeded",
            "due_at": None,
            "created_at": batch.created_at,
            "updated_at": batch.updated_at,
            "completed_at": batch.updated_at,
            **changes,
        }
    )


def at(instant: Micros, **changes: Any) -> Batch:
    """A batch that ended when it was made."""
    times = dict.fromkeys(("created_at", "updated_at", "completed_at"), instant)
    return make_batch(**{**times, **changes})


async def put_attempts(storage: Storage, delivery: Delivery, *attempts: Attempt) -> None:
    """As a node records them; the delivery is then as it was."""

    def record(tx: Tx) -> None:
        pending = replace(
            delivery, status="pending", due_at=NOW, completed_at=None, claimed_by=NODE
        )
        tx.insert_delivery(pending)
        for count, attempt in enumerate(attempts, 1):
            after = replace(pending, attempt_count=count)
            if count == len(attempts):
                after = replace(delivery, attempt_count=count)
            assert tx.record_attempt(NODE, attempt, after) == "recorded"

    await storage.write(record)


async def expired(storage: Storage, before: Micros, limit: int = 100) -> list[tuple[str, str]]:
    """All that is found, look by look."""
    found: list[tuple[str, str]] = []
    after: BatchPosition | None = None
    while True:

        def look(tx: Tx, after: BatchPosition | None = after) -> Any:
            return tx.expired_batches(before, after, limit)

        some, after = await storage.read(look)
        assert len(some) <= limit
        found += some
        if after is None:
            return found


async def bodies(storage: Storage, before: Micros, limit: int = 100) -> list[str]:
    """The deliveries that are found to have old bodies, look by look."""
    found: list[str] = []
    after: str | None = ""
    while after is not None:

        def look(tx: Tx, after: str = after) -> Any:
            return tx.old_bodies(before, after, limit)

        some, after = await storage.read(look)
        found += some
    return found


class RetentionPromises(Conformance):
    async def test_expired_batches_are_found_in_steps(self) -> None:
        """Of every org, in order, without what is younger or has not ended."""
        async with self.open() as storage:
            old = [at(NOW + k, org_id=org) for org in ("a", ORG, "z") for k in range(4)]
            kept = [
                at(NOW, status="running", completed_at=None),
                at(NOW, updated_at=NOW + 10),
                at(NOW + 10),
                at(NOW + 10, org_id="only young ones"),
            ]
            await store(storage, *old, *kept)
            for limit in (1, 2, 3, 5, 100):
                found = await expired(storage, NOW + 10, limit)
                assert sorted(found) == sorted((b.org_id, b.id) for b in old), limit
                assert [org for org, _ in found] == sorted(org for org, _ in found)
            assert await expired(storage, NOW) == []

    async def test_many_orgs_are_passed_by(self) -> None:
        async with self.open() as storage:
            many = [at(NOW + k % 2, org_id=f"{k:05}") for k in range(2_500)]
            await store(storage, *many)
            found = await expired(storage, NOW + 1, 5_000)
            assert found == [(b.org_id, b.id) for b in many if b.created_at == NOW]

    async def test_a_batch_goes_with_all_that_is_its(self) -> None:
        async with self.open() as storage:
            batch = at(NOW, items_total=2)
            items = [
                make_item(org_id=ORG, batch_id=batch.id, sequence_index=k, status="succeeded")
                for k in range(2)
            ]
            first, second = ended(batch), ended(batch, is_automatic=False)
            other = at(NOW)
            kept = ended(other)
            await store(storage, batch, *items, other)
            await put_attempts(
                storage,
                first,
                *(make_attempt(delivery_id=first.id, attempt_number=k) for k in (1, 2)),
            )
            await put_attempts(storage, second, make_attempt(delivery_id=second.id))
            await put_attempts(storage, kept, make_attempt(delivery_id=kept.id))
            removed = await storage.write(
                lambda tx: tx.remove_batches([(ORG, batch.id)], NOW + 1, 100)
            )
            assert removed == Removed(batches=1, items=2, deliveries=2, attempts=3)

            def look(tx: Tx) -> None:
                assert tx.batch(ORG, batch.id) is None
                assert tx.items(ORG, batch.id, None, None) == []
                assert tx.taken_batch_ids([batch.id]) == set()
                assert tx.delivery(ORG, first.id) is tx.delivery(ORG, second.id) is None
                assert set(tx.attempts([first.id, second.id, kept.id])) == {kept.id}
                assert tx.batches(ORG, BatchFilter(), Page(10)) == [other]
                assert tx.payloads([kept]) == {kept.id: other.payload}

            await storage.read(look)
            again = await storage.write(
                lambda tx: tx.remove_batches([(ORG, batch.id)], NOW + 1, 100)
            )
            assert again == Removed()

    async def test_what_lives_is_kept(self) -> None:
        """4.5, 4.9, 5.6: no payload goes while it may be sent; looked at again at the last."""
        async with self.open() as storage:
            waiting, claimed, younger, reopened, running, gone = batches = [
                at(NOW) for _ in "123456"
            ]
            await store(
                storage,
                *(replace(b, status="running") if b is running else b for b in batches),
                ended(waiting, status="pending", due_at=NOW - 5, completed_at=None),
                ended(claimed, status="failed", failure_reason="cancelled", claimed_by=NODE),
                ended(younger),
                ended(younger, updated_at=NOW + 1),
                ended(gone),
            )
            await storage.write(lambda tx: tx.update_batch(replace(reopened, updated_at=NOW + 1)))
            asked = [(b.org_id, b.id) for b in batches]
            removed = await storage.write(lambda tx: tx.remove_batches(asked, NOW + 1, 100))
            assert removed == Removed(batches=1, deliveries=1)
            left = await storage.read(lambda tx: tx.batches(ORG, BatchFilter(), Page(10)))
            assert {b.id for b in left} == {b.id for b in batches} - {gone.id}

    async def test_another_orgs_batch_is_not_meant(self) -> None:
        """2.4"""
        async with self.open() as storage:
            batch = at(NOW)
            await store(storage, batch, ended(batch))
            removed = await storage.write(
                lambda tx: tx.remove_batches([("another", batch.id)], NOW + 1, 100)
            )
            assert removed == Removed()
            assert await storage.read(lambda tx: tx.batch(ORG, batch.id)) == batch

    async def test_much_goes_in_steps(self) -> None:
        """Each removes some rows, and the batch comes last."""
        async with self.open() as storage:
            small = [at(NOW, org_id=org) for org in ("a", "b", "c")]
            large = at(NOW, org_id="d", items_total=30)
            await store(
                storage,
                *small,
                *(ended(b) for b in small),
                large,
                *(
                    make_item(org_id="d", batch_id=large.id, sequence_index=k, status="failed")
                    for k in range(30)
                ),
                *(ended(large) for _ in range(12)),
            )
            asked = [(b.org_id, b.id) for b in (*small, large)]
            steps: list[Removed] = []
            while not steps or not steps[-1].complete:
                steps.append(await storage.write(lambda tx: tx.remove_batches(asked, NOW + 1, 5)))
                there = await storage.read(lambda tx: tx.batch("d", large.id))
                assert (there is None) == steps[-1].complete
                assert len(steps) < 20
            assert sum(step.batches for step in steps) == 4
            assert sum(step.items for step in steps) == 30
            assert sum(step.deliveries for step in steps) == 15
            assert len(steps) > 5

    async def test_a_batch_outlasts_its_deliveries(self) -> None:
        """Cut short after any step, nothing is left behind that belongs to no batch."""
        async with self.open() as storage:
            small, large = at(NOW, org_id="a"), at(NOW, org_id="a")
            await store(storage, small, ended(small), large, *(ended(large) for _ in range(12)))
            asked = [("a", small.id), ("a", large.id)]
            complete = False
            while not complete:
                gone = await storage.write(lambda tx: tx.remove_batches(asked, NOW + 1, 5))
                complete = gone.complete
                assert gone.deliveries > 0

                def look(tx: Tx) -> None:
                    for batch in (small, large):
                        kept = tx.deliveries("a", DeliveryFilter(batch_id=batch.id), Page(99))
                        assert not kept or tx.batch("a", batch.id) == batch

                await storage.read(look)
            assert await storage.read(lambda tx: tx.batches("a", BatchFilter(), Page(9))) == []

    async def test_bodies_are_found_in_steps(self) -> None:
        """In the order in which deliveries were made, up to the young ones."""
        async with self.open() as storage:
            batches = [at(NOW + k * MILLISECOND) for k in range(6)]
            deliveries = [ended(batch) for batch in batches]
            await store(storage, *batches)
            for k, delivery in enumerate(deliveries):
                await put_attempts(
                    storage,
                    delivery,
                    *(
                        make_attempt(
                            delivery_id=delivery.id,
                            attempt_number=number,
                            created_at=delivery.created_at + number,
                            response_body="" if k == 2 else None if k == 3 else "ü",
                        )
                        for number in (1, 2, 3)
                    ),
                )
            expected = [deliveries[0].id, deliveries[1].id]
            for limit in (1, 2, 3, 4, 100):
                assert await bodies(storage, NOW + 4 * MILLISECOND, limit) == expected, limit
            assert await bodies(storage, NOW) == []
            assert await bodies(storage, NOW + 5 * MILLISECOND) == [*expected, deliveries[4].id]

    async def test_bodies_are_forgotten(self) -> None:
        """5.5: the attempt stays on record, a younger one keeps its body."""
        async with self.open() as storage:
            batch = at(NOW)
            delivery = ended(batch)
            old = make_attempt(delivery_id=delivery.id, response_body="old", created_at=NOW)
            young = replace(old, id=new_id(), attempt_number=2, created_at=NOW + 2)
            await store(storage, batch)
            await put_attempts(storage, delivery, old, young)
            before = await delivery_of(storage, delivery.id)
            assert await storage.write(lambda tx: tx.forget_bodies([delivery.id], NOW + 1)) == 1
            assert await storage.write(lambda tx: tx.forget_bodies([delivery.id], NOW + 1)) == 0
            found = await attempts_of(storage, delivery.id)
            assert found == [replace(old, response_body=None), young]
            assert await delivery_of(storage, delivery.id) == before
            assert await storage.write(lambda tx: tx.forget_bodies([], NOW + 9)) == 0

    async def test_space_is_given_back(self) -> None:
        """All that there is to give, in steps; most storages have none."""
        async with self.open() as storage:
            left = await storage.read(lambda tx: tx.give_back(0))
            while left:
                rest = await storage.write(lambda tx: tx.give_back(100_000))
                assert rest < left
                left = rest
