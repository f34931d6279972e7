"""Promises about batches and items."""

from operator import methodcaller

import pytest
from msgspec.structs import replace

from primeflowd.errors import UniqueViolation
from primeflowd.hookspecs import BatchFilter, Page, Tx
from primeflowd.model import TERMINAL_BATCH, Batch, Delivery, Item, new_id
from primeflowd.payload import freeze
from primeflowd.testing.conformance.base import Conformance, store
from primeflowd.testing.factories import NOW, ORG, make_batch, make_delivery, make_item

EVERY_BYTE = bytes(range(256)) + '{"é":1.0,"n":123456789012345678901234567890}'.encode()


def _frozen(batch: Batch) -> Batch:
    """Ended, with the payload that says so."""
    assert batch.status in TERMINAL_BATCH
    assert batch.completed_at is not None
    return replace(
        batch,
        payload=freeze(
            batch_id=batch.id,
            status=batch.status,
            output=batch.output,
            metadata=batch.metadata,
            created_at=batch.created_at,
            completed_at=batch.completed_at,
        ),
    )


class BatchPromises(Conformance):
    async def test_batch_comes_back_as_it_was(self) -> None:
        """4.5: bytes are kept byte for byte, empty and absent ones told apart."""
        async with self.open() as storage:
            batches = [
                make_batch(metadata=EVERY_BYTE, output=b"null", payload=EVERY_BYTE[::-1]),
                make_batch(metadata=b"", output=None, payload=None, status="queued"),
                make_batch(
                    plan_id="plan ü",
                    callback_url=None,
                    items_total=2**40,
                    items_succeeded=1,
                    items_failed=2,
                    items_cancelled=3,
                    cancellation_reason="no 'more'; DROP",
                    started_at=NOW + 1,
                    completed_at=None,
                    updated_at=NOW + 2,
                ),
            ]
            await store(storage, *batches)
            for batch in batches:
                assert await storage.read(methodcaller("batch", ORG, batch.id)) == batch

    async def test_batch_with_its_payload_comes_back_as_it_was(self) -> None:
        """4.5: a storage may keep once what a batch and its payload have in common."""
        values: list[dict[str, bytes | None]] = [
            {"metadata": b'{"metadata":{}}', "output": b'{"output":[1.0,"}"]}'},
            {"metadata": b'"duration_ms"', "output": b"null"},
            {"metadata": None, "output": b"0"},
            {"metadata": b"[1]", "output": None},
            {"metadata": None, "output": None},
        ]
        async with self.open() as storage:
            ended = [_frozen(make_batch(**each)) for each in values]
            # In a row that was there before it ended.
            later = [_frozen(make_batch(**each)) for each in values]
            # As freeze() would not have made it.
            odd = [
                replace(_frozen(make_batch(output=b"1")), output=b"2"),
                replace(_frozen(make_batch(metadata=b"11")), metadata=b"1"),
                replace(_frozen(make_batch(output=b"1")), status="failed"),
            ]
            running = [replace(each, status="running", payload=None, output=b"0") for each in later]
            await store(storage, *ended, *odd, *running)

            def end(tx: Tx) -> None:
                for batch in later:
                    tx.update_batch(batch)

            await storage.write(end)
            for batch in (*ended, *later, *odd):
                assert await storage.read(methodcaller("batch", ORG, batch.id)) == batch
            found = await storage.read(methodcaller("batches", ORG, BatchFilter(), Page(50)))
            everything = (*ended, *later, *odd)
            assert {batch.id: batch for batch in found} == {each.id: each for each in everything}
            deliveries = [make_delivery(batch_id=batch.id) for batch in ended]
            payloads = await storage.read(lambda tx: tx.payloads(deliveries))
            assert list(payloads.values()) == [batch.payload for batch in ended]

    async def test_batch_of_another_org_is_missing(self) -> None:
        """2.4"""
        async with self.open() as storage:
            batch = make_batch()
            await store(storage, batch)
            assert await storage.read(lambda tx: tx.batch("another", batch.id)) is None
            assert await storage.read(lambda tx: tx.batch(ORG, new_id())) is None

    async def test_taken_ids_are_of_any_org(self) -> None:
        """4, batch_exists: ids are unique over all orgs."""
        async with self.open() as storage:
            mine, theirs, free = make_batch(), make_batch(org_id="another"), new_id()
            await store(storage, mine, theirs)
            ids = [mine.id, theirs.id, free]
            assert await storage.read(lambda tx: tx.taken_batch_ids(ids)) == {mine.id, theirs.id}
            assert await storage.read(lambda tx: tx.taken_batch_ids([])) == set()

            def insert_and_ask(tx: Tx) -> set[str]:
                tx.insert_batch(make_batch(id=free))
                return tx.taken_batch_ids(ids)

            assert await storage.write(insert_and_ask) == set(ids)

    async def test_batch_id_is_taken_once(self) -> None:
        async with self.open() as storage:
            batch = make_batch()
            await store(storage, batch)
            with pytest.raises(UniqueViolation):
                await store(storage, make_batch(id=batch.id))

            def twice(tx: Tx) -> None:
                other = make_batch()
                tx.insert_batch(other)
                tx.insert_batch(other)

            with pytest.raises(UniqueViolation):
                await storage.write(twice)

    async def test_batch_id_in_two_orgs(self) -> None:
        """2.4: refused, or kept apart where the key of a row has its org in it."""
        async with self.open() as storage:
            mine = make_batch(payload=b"mine", status="running")
            theirs = make_batch(id=mine.id, org_id="another", payload=b"theirs")
            rows: dict[str, tuple[Batch, Item, Delivery]] = {
                batch.org_id: (
                    batch,
                    make_item(org_id=batch.org_id, batch_id=batch.id, input=batch.payload),
                    make_delivery(org_id=batch.org_id, batch_id=batch.id),
                )
                for batch in (mine, theirs)
            }
            await store(storage, *rows[ORG])
            try:
                await store(storage, *rows["another"])
            except UniqueViolation:
                del rows["another"]

            def look(tx: Tx) -> None:
                for org_id, (batch, item, delivery) in rows.items():
                    assert tx.batch(org_id, batch.id) == batch
                    assert tx.items(org_id, batch.id, None, None) == [item]
                    assert tx.find_items(org_id, batch.id, [0], []) == [item]
                    assert tx.in_flight(org_id, batch.id) == delivery
                asked = [delivery for _, _, delivery in rows.values()]
                assert tx.payloads(asked) == {d.id: b.payload for b, _, d in rows.values()}

            await storage.read(look)
            done = replace(mine, status="succeeded")
            await storage.write(lambda tx: tx.update_batch(done))
            rows[ORG] = (done, *rows[ORG][1:])
            await storage.read(look)

    async def test_update_batch(self) -> None:
        async with self.open() as storage:
            bystander, batch = make_batch(), make_batch(status="queued", payload=None, output=None)
            changed = replace(
                batch,
                status="cancelled",
                output=b"1.0",
                items_total=7,
                items_succeeded=1,
                items_failed=2,
                items_cancelled=4,
                cancellation_reason="enough",
                payload=b"\x00frozen",
                started_at=NOW + 1,
                completed_at=NOW + 2,
                updated_at=NOW + 3,
            )

            def insert_and_update(tx: Tx) -> Batch | None:
                tx.insert_batch(batch)
                tx.update_batch(replace(batch, status="running"))
                return tx.batch(ORG, batch.id)

            await store(storage, bystander)
            assert await storage.write(insert_and_update) == replace(batch, status="running")
            await storage.write(lambda tx: tx.update_batch(changed))
            assert await storage.read(lambda tx: tx.batch(ORG, batch.id)) == changed
            assert await storage.read(lambda tx: tx.batch(ORG, bystander.id)) == bystander

    async def test_what_cannot_change_of_a_batch_does_not(self) -> None:
        async with self.open() as storage:
            batch = make_batch()
            await store(storage, batch)
            foreign = replace(batch, org_id="another", status="failed")
            for other in (replace(batch, plan_id="p", created_at=1, metadata=b"{}"), foreign):
                await storage.write(methodcaller("update_batch", other))
                assert await storage.read(lambda tx: tx.batch(ORG, batch.id)) == batch

    async def test_batch_list_is_newest_first_and_stable(self) -> None:
        """2.9: rows that are added while a client turns pages shift none of them."""
        async with self.open() as storage:
            # Pairs share an instant, so that pages must break within one.
            batches = [make_batch(created_at=NOW + index // 2) for index in range(9)]
            await store(storage, *batches, make_batch(org_id="another"))
            expected = sorted(batches, key=lambda b: (b.created_at, b.id), reverse=True)
            seen: list[Batch] = []
            before = None
            while True:
                page = Page(limit=2, before=before)
                found = await storage.read(methodcaller("batches", ORG, BatchFilter(), page))
                if not found:
                    break
                seen += found
                before = (found[-1].created_at, found[-1].id)
                await store(storage, make_batch(created_at=NOW + 100))
            assert seen == expected

    async def test_batch_filters(self) -> None:
        async with self.open() as storage:
            first = make_batch(created_at=NOW, plan_id="a", status="failed")
            second = make_batch(created_at=NOW + 1, plan_id="b", status="failed")
            third = make_batch(created_at=NOW + 2, plan_id="a")
            await store(storage, first, second, third)

            async def ids(where: BatchFilter) -> list[str]:
                found = await storage.read(lambda tx: tx.batches(ORG, where, Page(limit=10)))
                return [batch.id for batch in found]

            assert await ids(BatchFilter()) == [third.id, second.id, first.id]
            assert await ids(BatchFilter(status="failed")) == [second.id, first.id]
            assert await ids(BatchFilter(plan_id="a")) == [third.id, first.id]
            assert await ids(BatchFilter(plan_id="")) == []
            assert await ids(BatchFilter(created_after=NOW)) == [third.id, second.id]
            assert await ids(BatchFilter(created_before=NOW + 1)) == [first.id]
            both = BatchFilter(status="failed", plan_id="a", created_before=NOW + 1)
            assert await ids(both) == [first.id]

    async def test_items(self) -> None:
        async with self.open() as storage:
            batch_id = new_id()
            items = [
                make_item(
                    batch_id=batch_id,
                    sequence_index=index,
                    client_ref=f"ref-{index}" if index % 2 else None,
                    input=EVERY_BYTE,
                )
                for index in range(6)
            ]
            await storage.write(lambda tx: tx.put_items([*items[3:], *items[:3]]))
            await store(storage, make_item(sequence_index=1))

            def look(tx: Tx) -> None:
                assert tx.items(ORG, batch_id, None, None) == items
                assert tx.items(ORG, batch_id, None, 2) == items[:2]
                assert tx.items(ORG, batch_id, 1, 2) == items[2:4]
                assert tx.items(ORG, batch_id, 5, 2) == []
                found = tx.find_items(ORG, batch_id, [0, 1, 99], ["ref-1", "ref-3", "ref-0"])
                assert sorted(found, key=lambda item: item.sequence_index) == [
                    items[0],
                    items[1],
                    items[3],
                ]
                assert tx.find_items(ORG, batch_id, [], []) == []

            await storage.read(look)

    async def test_items_of_another_org_are_missing(self) -> None:
        """2.4: whoever names a batch that is another org's finds none of its items."""
        async with self.open() as storage:
            item = make_item(client_ref="a")
            await store(storage, item)

            def look(tx: Tx) -> None:
                assert tx.items("another", item.batch_id, None, None) == []
                assert tx.find_items("another", item.batch_id, [0], ["a"]) == []
                assert tx.items(ORG, item.batch_id, None, None) == [item]

            await storage.read(look)

    async def test_put_items_replaces(self) -> None:
        async with self.open() as storage:
            item = make_item(client_ref="a", input=b"1")
            done = replace(item, status="failed", output=b"", error=b'"e"', updated_at=NOW + 1)
            await store(storage, item, done)
            assert await storage.read(lambda tx: tx.items(ORG, item.batch_id, None, None)) == [done]
            await storage.write(lambda tx: tx.put_items([]))

    async def test_client_ref_is_unique_in_its_batch(self) -> None:
        async with self.open() as storage:
            item = make_item(client_ref="a")
            await store(storage, item, make_item(client_ref="a"))
            with pytest.raises(UniqueViolation):
                await store(storage, replace(item, sequence_index=1))
            nameless = [replace(item, sequence_index=i, client_ref=None) for i in (1, 2)]
            await store(storage, *nameless)
            found = await storage.read(lambda tx: tx.items(ORG, item.batch_id, None, None))
            assert found == [item, *nameless]

    async def test_many_ids_at_once(self) -> None:
        """A bulk request asks for a thousand ids, a restart for everything it holds."""
        async with self.open() as storage:
            batch = make_batch()
            items = [make_item(batch_id=batch.id, sequence_index=i) for i in range(6_000)]
            await store(storage, batch)
            await storage.write(lambda tx: tx.put_items(items))
            ids = [new_id() for _ in range(40_000)]
            delivery = make_delivery(batch_id=batch.id)
            strangers = [replace(delivery, id=each, batch_id=each) for each in ids]

            def look(tx: Tx) -> list[Item]:
                assert tx.taken_batch_ids([*ids, batch.id]) == {batch.id}
                assert tx.payloads([*strangers, delivery]) == {delivery.id: batch.payload}
                assert tx.attempts(ids) == {}
                return tx.find_items(ORG, batch.id, range(6_000), [])

            assert len(await storage.read(look)) == 6_000
