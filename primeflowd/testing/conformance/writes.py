"""Promises of Storage itself: atomic, isolated, durable, and told in the right order."""

from functools import partial

import pytest
import trio
from msgspec.structs import replace

from primeflowd.errors import StateRefused, UniqueViolation
from primeflowd.hookspecs import Storage, Tx
from primeflowd.model import Batch, Delivery
from primeflowd.testing.conformance.base import NODE, Conformance, delivery_of, put, store
from primeflowd.testing.factories import (
    ORG,
    make_answer,
    make_attempt,
    make_batch,
    make_delivery,
    make_policy,
    make_secret,
)


class WritePromises(Conformance):
    async def test_result_is_the_functions(self) -> None:
        async with self.open() as storage:
            assert isinstance(storage, Storage)
            assert await storage.write(lambda tx: 42) == 42
            assert await storage.read(lambda tx: "text") == "text"

    async def test_reads_see_earlier_writes_of_the_same_function(self) -> None:
        async with self.open() as storage:
            batch = make_batch()
            delivery = make_delivery(batch_id=batch.id)
            answer = make_answer()
            policy = make_policy()
            secret = make_secret()

            def function(tx: Tx) -> None:
                # The answers from before must not be kept for afterwards.
                assert tx.policy(ORG, "") is None
                assert tx.current_secret(ORG) is None
                assert tx.answer(ORG, answer.method, answer.path, answer.key) is None
                put(tx, batch, delivery, answer, policy, secret)
                assert tx.batch(ORG, batch.id) == batch
                assert tx.batch("another", batch.id) is None
                assert tx.taken_batch_ids([batch.id]) == {batch.id}
                assert tx.delivery(ORG, delivery.id) == delivery
                assert tx.in_flight(ORG, batch.id) == delivery
                assert tx.answer(ORG, answer.method, answer.path, answer.key) == answer
                assert tx.policy(ORG, "") == policy
                assert tx.current_secret(ORG) == secret
                assert tx.payloads([delivery]) == {delivery.id: batch.payload}

            await storage.write(function)

    async def test_what_functions_keep_for_each_other_is_of_one_transaction(self) -> None:
        """And of no use once a policy or a secret is another: a delivery is made with both."""
        async with self.open() as storage:
            secret = make_secret()

            def function(tx: Tx) -> None:
                assert tx.memo == {}
                for change in (
                    partial(tx.put_policy, make_policy()),
                    partial(tx.delete_policy, ORG, ""),
                    partial(tx.put_secret, secret),
                ):
                    tx.memo["kept"] = 1
                    change()
                    assert tx.memo == {}
                tx.memo["kept"] = 1

            await storage.write(function)
            await storage.write(function)

    async def test_all_or_nothing(self) -> None:
        """4.6: of a function that raises, nothing is stored, whatever it did before."""
        async with self.open() as storage:
            kept = make_policy(delays=("1m",))
            await store(storage, kept)
            batch = make_batch()
            delivery = make_delivery(batch_id=batch.id)

            def function(tx: Tx) -> None:
                put(tx, batch, delivery, make_policy(delays=("2m",)), make_answer())
                assert tx.batch(ORG, batch.id) is not None
                raise ZeroDivisionError("of the function")

            with pytest.raises(ZeroDivisionError, match="of the function"):
                await storage.write(function)

            def look(tx: Tx) -> None:
                assert tx.batch(ORG, batch.id) is None
                assert tx.delivery(ORG, delivery.id) is None
                assert tx.policy(ORG, "") == kept
                assert tx.answer(ORG, "POST", "/v1/batches", "key-1") is None

            await storage.read(look)

    async def test_one_that_raises_does_not_touch_the_others(self) -> None:
        async with self.open() as storage:
            batches = [make_batch() for _ in range(30)]
            raised: list[str] = []

            async def write(index: int, batch: Batch) -> None:
                def function(tx: Tx) -> None:
                    put(tx, batch, make_delivery(batch_id=batch.id))
                    if index % 3 == 1:
                        raise KeyError(batch.id)
                    if index % 3 == 2:
                        # Once it has been written, it takes more to take it back.
                        assert tx.in_flight(ORG, batch.id) is not None
                        if index % 2:
                            tx.put_note("mine", batch.id)
                        raise LookupError(batch.id)

                try:
                    await storage.write(function)
                except LookupError:
                    raised.append(batch.id)

            async with trio.open_nursery() as nursery:
                for index, batch in enumerate(batches):
                    nursery.start_soon(write, index, batch)

            def look(tx: Tx) -> set[str]:
                assert tx.note("mine") is None
                return tx.taken_batch_ids([batch.id for batch in batches])

            stored = await storage.read(look)
            assert len(raised) == 20
            assert stored == {batch.id for batch in batches} - set(raised)

    async def test_unstorable_value_hurts_only_its_own_function(self) -> None:
        async with self.open() as storage:
            batches = [make_batch() for _ in range(10)]
            poisoned = make_delivery(id="no such type", due_at=2**70)
            failed = False

            async def poison() -> None:
                nonlocal failed
                try:
                    await store(storage, poisoned)
                except Exception:  # noqa: BLE001 -- which one is the storage's business
                    failed = True

            async with trio.open_nursery() as nursery:
                nursery.start_soon(poison)
                for batch in batches:
                    nursery.start_soon(store, storage, batch)
            ids = [batch.id for batch in batches]
            assert await storage.read(lambda tx: tx.taken_batch_ids(ids)) == set(ids)
            stored = await storage.read(lambda tx: tx.delivery(None, poisoned.id))
            assert failed == (stored is None)

    async def test_unique_violation_runs_the_function_again(self) -> None:
        """4.8: the second run's own check sees what was in the way, and can name it."""
        async with self.open() as storage:
            first = make_delivery()
            runs = 0

            def function(tx: Tx) -> None:
                nonlocal runs
                runs += 1
                if runs > 1 and (existing := tx.in_flight(ORG, first.batch_id)):
                    raise StateRefused("conflict", f"{existing.id} is in flight")
                tx.insert_delivery(make_delivery(batch_id=first.batch_id))

            await store(storage, first)
            with pytest.raises(StateRefused, match=first.id):
                await storage.write(function)
            assert runs >= 2

    async def test_unique_violation_that_stays_is_raised(self) -> None:
        async with self.open() as storage:
            batch = make_batch()
            await store(storage, batch)
            with pytest.raises(UniqueViolation):
                await storage.write(lambda tx: tx.insert_batch(batch))

            def swallows(tx: Tx) -> None:
                try:
                    put(tx, make_delivery(batch_id=batch.id), make_delivery(batch_id=batch.id))
                    tx.in_flight(ORG, batch.id)
                except UniqueViolation:
                    tx.put_note("swallowed", "yes")

            # A storage may let a function live on after a violation, or not; never half of it.
            try:
                await storage.write(swallows)
            except UniqueViolation:
                assert await storage.read(lambda tx: tx.note("swallowed")) is None

    async def test_one_of_twenty_in_flight(self) -> None:
        """4.8: of 20 concurrent redeliveries one is made; nineteen learn which one."""
        async with self.open() as storage:
            batch = make_batch()
            await store(storage, batch)
            made: list[Delivery] = []
            refused: list[str] = []

            async def redeliver(look_first: bool) -> None:
                delivery = make_delivery(batch_id=batch.id)
                runs = 0

                def function(tx: Tx) -> None:
                    nonlocal runs
                    runs += 1
                    if (look_first or runs > 1) and (existing := tx.in_flight(ORG, batch.id)):
                        raise StateRefused("conflict", existing.id)
                    tx.insert_delivery(delivery)

                try:
                    await storage.write(function)
                    made.append(delivery)
                except StateRefused as error:
                    refused.append(error.message)

            async with trio.open_nursery() as nursery:
                for index in range(20):
                    nursery.start_soon(redeliver, index % 2 == 0)
            assert len(made) == 1
            assert refused == [made[0].id] * 19

    async def test_everything_is_there_after_reopening(self) -> None:
        """5.6: what was answered survives; a storage that keeps nothing starts anew."""
        batch = make_batch()
        delivery = make_delivery(batch_id=batch.id, claimed_by=NODE)
        attempt = make_attempt(delivery_id=delivery.id)
        # Given back: the claims of a node that is gone may be anybody's by then.
        after = replace(delivery, attempt_count=1, claimed_by=None)
        async with self.open() as storage:
            await store(storage, batch, delivery, make_policy(), make_secret(), make_answer())
            await storage.write(lambda tx: tx.record_attempt(NODE, attempt, after))
        async with self.open() as storage:
            if not self.durable:
                assert await storage.read(lambda tx: tx.batch(ORG, batch.id)) is None
                return
            assert await delivery_of(storage, delivery.id) == after
            found = await storage.read(lambda tx: tx.attempts([delivery.id]))
            assert found == {delivery.id: [attempt]}
            assert await storage.read(lambda tx: tx.batch(ORG, batch.id)) == batch
            assert await storage.read(lambda tx: tx.policy(ORG, "")) is not None
            assert await storage.read(lambda tx: tx.current_secret(ORG)) is not None
            assert len(await storage.read(lambda tx: tx.secrets(None))) == 1
