"""Promises of a storage that several nodes have open at once: what one does, the others see, and
of two that want the same, one gets it."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from operator import methodcaller

import trio
from msgspec.structs import replace

from primeflowd.errors import StateRefused
from primeflowd.hookspecs import Storage, Tx
from primeflowd.instants import HOUR
from primeflowd.model import Batch, Delivery, new_id
from primeflowd.testing.conformance.base import (
    NODE,
    OTHER_NODE,
    Conformance,
    delivery_of,
    store,
)
from primeflowd.testing.factories import (
    NOW,
    ORG,
    make_answer,
    make_attempt,
    make_batch,
    make_delivery,
    make_secret,
)

ROUNDS = 10
"""How often two compete for one thing, so that each order of events has its chance."""


class SharingPromises(Conformance):
    def open_again(self) -> AbstractAsyncContextManager[Storage]:
        """Another node's way to the storage that open() has opened and that is still open."""
        raise NotImplementedError

    @asynccontextmanager
    async def open_both(self) -> AsyncIterator[tuple[Storage, Storage]]:
        async with self.open() as first, self.open_again() as second:
            yield first, second

    async def test_what_one_writes_the_other_reads(self) -> None:
        async with self.open_both() as storages:
            for writer, reader in (storages, storages[::-1]):
                batch = make_batch()
                await store(writer, batch)
                assert await reader.read(methodcaller("batch", ORG, batch.id)) == batch
                assert await reader.write(methodcaller("batch", ORG, batch.id)) == batch

    async def test_claims_are_disjoint_and_complete(self) -> None:
        """5.6: every delivery is claimed by exactly one of two nodes that claim at once."""
        async with self.open_both() as storages:
            deliveries = [
                make_delivery(
                    destination=f"https://r{index % 9}.example:443", due_at=NOW + index % 50
                )
                for index in range(600)
            ]
            await store(storages[0], *deliveries)
            got: dict[str, list[str]] = {NODE: [], OTHER_NODE: []}

            async def claim(storage: Storage, node_id: str) -> None:
                empty = 0
                # Rows that another is claiming at this moment may be passed over once.
                while empty < 3:
                    found = await storage.write(lambda tx: tx.claim(node_id, NOW + 50, 7, 600, {}))
                    assert {delivery.claimed_by for delivery in found} <= {node_id}
                    got[node_id] += [delivery.id for delivery in found]
                    empty = 0 if found else empty + 1

            async with trio.open_nursery() as nursery:
                for storage, node_id in zip(storages, got, strict=True):
                    for _ in range(3):
                        nursery.start_soon(claim, storage, node_id)
            assert sorted(got[NODE] + got[OTHER_NODE]) == sorted(d.id for d in deliveries)
            for node_id, ids in got.items():
                assert await storages[0].read(methodcaller("claimed", node_id)) == set(ids)

    async def test_what_is_redelivered_is_not_removed(self) -> None:
        """4.5, 4.9: of a purge and a redelivery that meet, the later finds what the first did."""
        async with self.open_both() as (first, second):
            for _ in range(ROUNDS):
                batches = [make_batch() for _ in range(9)]
                await store(first, *batches)
                asked = [(batch.org_id, batch.id) for batch in batches]

                def redeliver(tx: Tx, batch: Batch) -> None:
                    if tx.batch(ORG, batch.id) is not None:
                        tx.insert_delivery(make_delivery(batch_id=batch.id))

                async with trio.open_nursery() as nursery:
                    for batch in batches:
                        nursery.start_soon(first.write, partial(redeliver, batch=batch))
                    remove = methodcaller("remove_batches", asked, NOW + 1, 100)
                    nursery.start_soon(second.write, remove)
                for batch in batches:
                    there = await first.read(methodcaller("batch", ORG, batch.id))
                    sent = await first.read(methodcaller("in_flight", ORG, batch.id))
                    assert (there is None) == (sent is None)

    async def test_of_two_redeliveries_one_is_made(self) -> None:
        """4.8: the other node's request learns which delivery is in flight."""
        async with self.open_both() as storages:
            for _ in range(ROUNDS):
                batch = make_batch()
                await store(storages[0], batch)
                made: list[str] = []
                refused: list[str] = []

                def redeliver(tx: Tx, batch: Batch = batch) -> str:
                    if existing := tx.in_flight(ORG, batch.id):
                        raise StateRefused("conflict", existing.id)
                    delivery = make_delivery(batch_id=batch.id)
                    tx.insert_delivery(delivery)
                    return delivery.id

                await _both(storages, redeliver, made, refused)
                assert len(made) == 1
                assert refused == made * 3

    async def test_of_two_completions_one_ends_the_batch(self) -> None:
        """4.6: never two automatic deliveries, whichever node hears of the end first."""
        async with self.open_both() as storages:
            for _ in range(ROUNDS):
                batch = make_batch(status="running", payload=None, completed_at=None)
                await store(storages[0], batch)
                made: list[str] = []
                refused: list[str] = []

                def complete(tx: Tx, batch: Batch = batch) -> str:
                    found = tx.batch(ORG, batch.id)
                    assert found is not None
                    if found.status != "running":
                        raise StateRefused("invalid_state", (found.output or b"").decode())
                    ended_by = new_id()
                    tx.update_batch(replace(found, status="succeeded", output=ended_by.encode()))
                    # It fails at once, so that no constraint would stand in a second one's way.
                    over = make_delivery(
                        batch_id=batch.id, status="failed", due_at=None, completed_at=NOW
                    )
                    tx.insert_delivery(over)
                    return ended_by

                await _both(storages, complete, made, refused)
                assert len(made) == 1
                assert refused == made * 3

    async def test_of_two_requests_under_one_key_one_is_done(self) -> None:
        """2.6: the other one is answered with what the first was."""
        async with self.open_both() as storages:
            for index in range(ROUNDS):
                await self._answer_at_once(storages, f"new {index}")
                # One that has expired is there, and to be replaced.
                await store(storages[0], make_answer(key=f"again {index}"))
                await self._answer_at_once(storages, f"again {index}")

    async def _answer_at_once(self, storages: tuple[Storage, Storage], key: str) -> None:
        done: list[str] = []
        replayed: list[str] = []

        def answer(tx: Tx) -> str:
            stored = tx.answer(ORG, "POST", "/v1/batches", key)
            if stored is not None and stored.created_at > NOW:
                raise StateRefused("replayed", stored.body.decode())
            body = new_id()
            fresh = make_answer(key=key, body=body.encode(), created_at=NOW + 1)
            tx.put_answer(fresh, replaces=stored)
            return body

        await _both(storages, answer, done, replayed)
        assert len(done) == 1
        assert replayed == done * 3

    async def test_of_two_promotions_the_later_sees_the_first(self) -> None:
        """6.1: exactly one secret is current, and none of the two requests fails."""
        async with self.open_both() as storages:
            secrets = [make_secret(is_current=index == 0) for index in range(3)]
            await store(storages[0], *secrets)

            async def promote(storage: Storage, secret_id: str) -> None:
                def function(tx: Tx) -> None:
                    secret, current = tx.secret(ORG, secret_id), tx.current_secret(ORG)
                    assert secret is not None
                    if current is not None:
                        tx.put_secret(replace(current, is_current=False))
                    tx.put_secret(replace(secret, is_current=True))

                await storage.write(function)

            for _ in range(ROUNDS):
                async with trio.open_nursery() as nursery:
                    for storage, secret in zip(storages, secrets[1:], strict=True):
                        nursery.start_soon(promote, storage, secret.id)
                stored = await storages[0].read(lambda tx: tx.secrets(ORG))
                assert [secret.is_current for secret in stored].count(True) == 1

    async def test_of_two_that_release_what_was_lost_one_finds_it(self) -> None:
        async with self.open_both() as storages:
            for _ in range(ROUNDS):
                lost = [make_delivery(claimed_by="node-0") for _ in range(20)]
                mine = make_delivery(claimed_by=NODE)
                await store(storages[0], *lost, mine)
                await storages[0].write(lambda tx: tx.begin_lease("node-0", 1))
                await storages[0].write(lambda tx: tx.begin_lease(NODE, HOUR))
                freed: list[int] = []

                async def release(storage: Storage, freed: list[int] = freed) -> None:
                    freed.append(await storage.write(lambda tx: tx.release_lost()))

                async with trio.open_nursery() as nursery:
                    for storage in storages:
                        nursery.start_soon(release, storage)
                assert sum(freed) == 20
                assert await delivery_of(storages[1], mine.id) == mine
                await storages[0].write(lambda tx: tx.end_lease(NODE))

    async def test_node_that_lost_its_lease_records_nothing(self) -> None:
        """Write back only what you still own: another node has freed and claimed it since."""
        async with self.open_both() as (first, second):
            delivery = make_delivery()
            await store(first, delivery)
            await first.write(lambda tx: tx.begin_lease(NODE, 1))
            [claimed] = await first.write(lambda tx: tx.claim(NODE, NOW, 1, 1, {}))
            assert await second.write(lambda tx: tx.release_lost()) == 1
            [again] = await second.write(lambda tx: tx.claim(OTHER_NODE, NOW, 1, 1, {}))
            attempt = make_attempt(delivery_id=delivery.id)
            after = replace(claimed, status="succeeded", due_at=None, claimed_by=None)
            fate = await first.write(lambda tx: tx.record_attempt(NODE, attempt, after))
            assert fate == "lost"
            assert await delivery_of(first, delivery.id) == again

    async def test_cancellation_and_record_at_once(self) -> None:
        """5.4: whichever comes first, the attempt is on record and one end stands."""
        async with self.open_both() as (first, second):
            for _ in range(ROUNDS):
                delivery = make_delivery(claimed_by=NODE)
                await store(first, delivery)
                ended = await self._cancel_and_record(first, second, delivery)
                found = await first.read(methodcaller("attempts", [delivery.id]))
                assert len(found[delivery.id]) == 1
                assert ended.attempt_count == 1
                assert ended.claimed_by is None

    async def _cancel_and_record(
        self, first: Storage, second: Storage, delivery: Delivery
    ) -> Delivery:
        def cancel(tx: Tx) -> None:
            found = tx.delivery(ORG, delivery.id)
            assert found is not None
            if found.status == "pending":
                ended = replace(found, status="failed", failure_reason="cancelled", due_at=None)
                tx.update_delivery(ended)

        after = replace(delivery, status="succeeded", attempt_count=1, due_at=None, claimed_by=None)
        attempt = make_attempt(delivery_id=delivery.id)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(second.write, cancel)
            nursery.start_soon(first.write, methodcaller("record_attempt", NODE, attempt, after))
        return await delivery_of(second, delivery.id)

    async def test_order_reaches_the_other_node(self) -> None:
        async with self.open_both() as (first, second):
            delivery = make_delivery(claimed_by=NODE)
            await store(first, delivery)
            await second.write(lambda tx: tx.put_order(NODE, delivery.id))
            assert await first.read(lambda tx: tx.has_orders(NODE))
            assert await first.write(lambda tx: tx.take_orders(NODE)) == [delivery]
            assert not await second.read(lambda tx: tx.has_orders(NODE))


async def _both(
    storages: tuple[Storage, Storage],
    function: Callable[[Tx], str],
    done: list[str],
    refused: list[str],
) -> None:
    """Run `function` twice through each storage, all at once, and sort the answers."""

    async def run(storage: Storage) -> None:
        try:
            done.append(await storage.write(function))
        except StateRefused as error:
            refused.append(error.message)

    async with trio.open_nursery() as nursery:
        for storage in (*storages, *storages):
            nursery.start_soon(run, storage)
