"""Promises of Storage itself: atomic, isolated, durable, and told in the right order."""

from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

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
                assert tx.in_flight(batch.id) == delivery
                assert tx.answer(ORG, answer.method, answer.path, answer.key) == answer
                assert tx.policy(ORG, "") == policy
                assert tx.current_secret(ORG) == secret
                assert tx.payloads([batch.id]) == {batch.id: batch.payload}

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
                        tx.in_flight(batch.id)
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
                if runs > 1 and (existing := tx.in_flight(first.batch_id)):
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
                    tx.in_flight(batch.id)
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
                    if (look_first or runs > 1) and (existing := tx.in_flight(batch.id)):
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

    async def test_on_commit_comes_before_any_caller_wakes(self) -> None:
        async with self.open() as storage:
            events: list[str] = []

            async def write(name: str) -> None:
                batch = make_batch()
                await storage.write(
                    partial(put_and_name, batch, name), lambda told: events.append(f"commit {told}")
                )
                assert f"commit {name}" in events
                events.append(f"woke {name}")

            def put_and_name(batch: Batch, name: str, tx: Tx) -> str:
                put(tx, batch)
                return name

            async with trio.open_nursery() as nursery:
                for index in range(10):
                    nursery.start_soon(write, str(index))
            assert sorted(events) == sorted(
                [f"{what} {index}" for what in ("commit", "woke") for index in range(10)]
            )

    async def test_on_commit_not_called_for_what_failed(self) -> None:
        async with self.open() as storage:
            told: list[object] = []

            def function(tx: Tx) -> None:
                raise ValueError("refused")

            with pytest.raises(ValueError, match="refused"):
                await storage.write(function, told.append)
            assert told == []

    async def test_on_commit_that_raises_hurts_nobody(self) -> None:
        async with self.open() as storage:
            told: list[str] = []

            def broken(result: None) -> None:
                raise RuntimeError("a bug")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(storage.write, lambda tx: put(tx, make_batch()), broken)
                nursery.start_soon(storage.write, lambda tx: "fine", told.append)
            assert told == ["fine"]

    async def test_cancelled_caller_leaves_all_or_nothing(self) -> None:
        """A client that hangs up must not lose what was accepted: if it is stored, on_commit was
        called for it, caller or no caller."""
        async with self.open() as storage:
            batches = [make_batch() for _ in range(20)]
            told: list[str] = []

            async def write(batch: Batch) -> None:
                def function(tx: Tx) -> str:
                    tx.insert_batch(batch)
                    return batch.id

                await storage.write(function, told.append)

            for rounds, batch in enumerate(batches):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(write, batch)
                    for _ in range(rounds % 5):
                        await trio.lowlevel.checkpoint()
                    nursery.cancel_scope.cancel()
            # Whatever is under way is over once a later write is.
            await storage.write(lambda tx: None)
            await wait_all_tasks_blocked()
            ids = [batch.id for batch in batches]
            assert await storage.read(lambda tx: tx.taken_batch_ids(ids)) == set(told)
            assert len(told) == len(set(told))

    async def test_writes_of_one_task_happen_in_order(self) -> None:
        async with self.open() as storage:
            for index in range(5):
                await storage.write(lambda tx, i=index: tx.put_note("last", str(i)))  # type: ignore[misc]
            assert await storage.read(lambda tx: tx.note("last")) == "4"

    async def test_read_is_no_older_than_the_call(self) -> None:
        async with self.open() as storage:
            for index in range(20):
                value = str(index)
                await storage.write(lambda tx, v=value: tx.put_note("n", v))  # type: ignore[misc]
                assert await storage.read(lambda tx: tx.note("n")) == value

    async def test_statistics(self) -> None:
        async with self.open() as storage:
            before = storage.statistics()
            assert before.healthy
            assert before.backlog == 0
            await store(storage, make_batch())
            after = storage.statistics()
            assert after.commits == before.commits + 1
            assert after.operations == before.operations + 1

    async def test_everything_is_there_after_reopening(self) -> None:
        """5.6: what was answered survives."""
        if not self.durable:
            pytest.skip("this storage keeps nothing")
        batch = make_batch()
        delivery = make_delivery(batch_id=batch.id, claimed_by=NODE)
        attempt = make_attempt(delivery_id=delivery.id)
        async with self.open() as storage:
            await store(storage, batch, delivery, make_policy(), make_secret(), make_answer())
            await storage.write(lambda tx: tx.record_attempt(NODE, attempt, delivery))
        async with self.open() as storage:
            assert await delivery_of(storage, delivery.id) == delivery
            found = await storage.read(lambda tx: tx.attempts([delivery.id]))
            assert found == {delivery.id: [attempt]}
            assert await storage.read(lambda tx: tx.batch(ORG, batch.id)) == batch
            assert await storage.read(lambda tx: tx.policy(ORG, "")) is not None
            assert await storage.read(lambda tx: tx.current_secret(ORG)) is not None
            assert len(await storage.read(lambda tx: tx.secrets(None))) == 1
