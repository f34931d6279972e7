"""Promises of Storage to callers that wait: what they are told, when, and what cancelling does."""

from functools import partial
from operator import methodcaller

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from primeflowd.hookspecs import Tx
from primeflowd.model import Batch
from primeflowd.testing.conformance.base import Conformance, put, store
from primeflowd.testing.factories import make_batch


class CallerPromises(Conformance):
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
                await storage.write(methodcaller("put_note", "last", str(index)))
            assert await storage.read(lambda tx: tx.note("last")) == "4"

    async def test_read_is_no_older_than_the_call(self) -> None:
        async with self.open() as storage:
            for index in range(20):
                value = str(index)
                await storage.write(methodcaller("put_note", "n", value))
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
            assert after.failures == before.failures == 0
