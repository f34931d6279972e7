"""Promises of Storage to those who submit without a task that waits: what they are told, when."""

import threading
from collections.abc import Callable
from functools import partial
from itertools import groupby
from typing import Any, Final

import outcome
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from primeflowd.errors import StorageUnavailable
from primeflowd.hookspecs import Storage, Tx
from primeflowd.model import Batch
from primeflowd.testing.conformance.base import Conformance, put
from primeflowd.testing.factories import make_batch

WITHIN: Final = 30.0
"""Seconds in which whoever submits is told, on any machine."""


class Listener:
    """Whoever has no task that waits: what it was told, in order."""

    def __init__(self) -> None:
        self.results: list[outcome.Maybe[Any]] = []
        self._news = trio.Event()

    def __call__(self, result: outcome.Maybe[Any]) -> None:
        self.results.append(result)
        self._news.set()
        self._news = trio.Event()

    async def heard(self, count: int = 1) -> list[outcome.Maybe[Any]]:
        """Wait until it was told so often."""
        with trio.fail_after(WITHIN):
            while len(self.results) < count:
                await self._news.wait()
        return self.results


def ignore(_: object) -> None:
    """For those who need not be told."""


class SubmissionPromises(Conformance):
    async def test_submitted_and_told_once_it_is_stored(self) -> None:
        async with self.open() as storage:
            batch, committed, listener = make_batch(), list[str](), Listener()

            def function(tx: Tx) -> str:
                tx.insert_batch(batch)
                return batch.id

            storage.submit(function, committed.append, listener)
            assert await listener.heard() == [outcome.Value(batch.id)]
            assert committed == [batch.id]
            assert await storage.read(lambda tx: tx.taken_batch_ids([batch.id])) == {batch.id}

    async def test_submitted_that_raises_is_told_so(self) -> None:
        """What it raised, as it is; nothing is stored, and `on_commit` not called."""
        async with self.open() as storage:
            batch, committed, listener = make_batch(), list[object](), Listener()
            refusal = ValueError("refused")

            def function(tx: Tx) -> None:
                tx.insert_batch(batch)
                raise refusal

            storage.submit(function, committed.append, listener)
            (result,) = await listener.heard()
            assert isinstance(result, outcome.Error)
            assert result.error is refusal
            assert committed == []
            assert await storage.read(lambda tx: tx.taken_batch_ids([batch.id])) == set()

    async def test_submitted_is_told_once_and_later(self) -> None:
        """Later than submit returns, or who submits would be told before it is ready for it; one
        after the other, and several at once."""
        async with self.open() as storage:
            listener, told = Listener(), 0
            for count in (1, 1, 2, 10, 1, 3):
                for _ in range(count):
                    storage.submit(lambda tx: None, ignore, listener)
                    assert len(listener.results) == told
                told += count
                await listener.heard(told)
            await storage.write(lambda tx: None)
            await wait_all_tasks_blocked()
            assert len(listener.results) == told

    async def test_submitted_is_told_in_the_thread_of_trio(self) -> None:
        async with self.open() as storage:
            seen: list[tuple[str, int]] = []
            listener, token = Listener(), trio.lowlevel.current_trio_token()

            def on_commit(_: object) -> None:
                seen.append(("commit", threading.get_ident()))

            def on_end(result: outcome.Maybe[None]) -> None:
                seen.append(("end", threading.get_ident()))
                token.run_sync_soon(listener, result)

            storage.submit(lambda tx: None, on_commit, on_end)
            await listener.heard()
            here = threading.get_ident()
            assert seen == [("commit", here), ("end", here)]

    async def test_submitted_is_told_after_every_on_commit_of_its_commit(self) -> None:
        async with self.open() as storage:
            events: list[str] = []
            listener = Listener()

            def on_end(result: outcome.Maybe[None]) -> None:
                events.append("end")
                listener(result)

            before = storage.statistics().commits
            for _ in range(10):
                storage.submit(
                    lambda tx: put(tx, make_batch()), lambda _: events.append("commit"), on_end
                )
            await listener.heard(10)
            commits = storage.statistics().commits - before
            assert sorted(events) == ["commit"] * 10 + ["end"] * 10
            assert [kind for kind, _ in groupby(events)] == ["commit", "end"] * commits

    async def test_submitted_happens_in_order(self) -> None:
        async with self.open() as storage:
            committed: list[int] = []
            listener = Listener()

            def note(number: int) -> Callable[[Tx], int]:
                def function(tx: Tx) -> int:
                    tx.put_note("all", f"{tx.note('all') or ''} {number}".strip())
                    return number

                return function

            for number in range(10):
                storage.submit(note(number), committed.append, listener)
            assert await listener.heard(10) == [outcome.Value(number) for number in range(10)]
            assert committed == [*range(10)]
            expected = " ".join(str(number) for number in range(10))
            assert await storage.read(lambda tx: tx.note("all")) == expected

    async def test_submitted_among_writes(self) -> None:
        """Each is told of its own, and those who fail, or are cancelled, hurt nobody."""
        async with self.open() as storage:
            batches = [make_batch() for _ in range(12)]
            listeners = {batch.id: Listener() for batch in batches[::2]}

            def insert(batch: Batch, tx: Tx) -> str:
                tx.insert_batch(batch)
                return batch.id

            async def write(batch: Batch) -> None:
                assert await storage.write(partial(insert, batch)) == batch.id

            async def refused() -> None:
                with pytest.raises(LookupError):
                    await storage.write(refuse)

            def refuse(tx: Tx) -> None:
                raise LookupError

            failed = Listener()
            async with trio.open_nursery() as nursery:
                with trio.CancelScope() as scope:
                    async with trio.open_nursery() as cancelled:
                        cancelled.start_soon(storage.write, lambda tx: None)
                        for submitted, written in zip(batches[::2], batches[1::2], strict=True):
                            nursery.start_soon(write, written)
                            storage.submit(
                                partial(insert, submitted), ignore, listeners[submitted.id]
                            )
                            storage.submit(refuse, ignore, failed)
                            nursery.start_soon(refused)
                        await trio.lowlevel.checkpoint()
                        scope.cancel()
                for batch_id, listener in listeners.items():
                    assert await listener.heard() == [outcome.Value(batch_id)]
                assert {type(result.error) for result in errors(await failed.heard(6))} == {
                    LookupError
                }
            ids = [batch.id for batch in batches]
            assert await storage.read(lambda tx: tx.taken_batch_ids(ids)) == set(ids)

    async def test_submitted_with_an_on_commit_that_raises(self) -> None:
        """It is stored all the same, and told so; so are the others."""
        async with self.open() as storage:
            batch, told, listener = make_batch(), list[str](), Listener()

            def broken(_: None) -> None:
                raise RuntimeError("a bug")

            storage.submit(lambda tx: tx.insert_batch(batch), broken, listener)
            storage.submit(lambda tx: "fine", told.append, listener)
            results = await listener.heard(2)
            assert results == [outcome.Value(None), outcome.Value("fine")]
            assert told == ["fine"]
            assert await storage.read(lambda tx: tx.taken_batch_ids([batch.id])) == {batch.id}

    async def test_who_is_told_may_submit_more(self) -> None:
        async with self.open() as storage:
            listener = Listener()

            def again(result: outcome.Maybe[int]) -> None:
                listener(result)
                count = len(listener.results)
                if count < 5:
                    storage.submit(lambda tx: count + 1, ignore, again)
                    assert len(listener.results) == count

            storage.submit(lambda tx: 1, ignore, again)
            assert await listener.heard(5) == [outcome.Value(count) for count in range(1, 6)]

    async def test_submitted_and_closed(self) -> None:
        """It is told, and of what is there."""
        batch, committed, listener = make_batch(), list[None](), Listener()
        async with self.open() as storage:
            storage.submit(lambda tx: tx.insert_batch(batch), committed.append, listener)
        (result,) = await listener.heard()
        if isinstance(result, outcome.Error):
            assert isinstance(result.error, StorageUnavailable)
        stored = isinstance(result, outcome.Value)
        assert bool(committed) == stored
        if self.durable:
            async with self.open() as storage:
                assert await is_there(storage, batch) == stored

    async def test_submitted_to_a_closed_storage(self) -> None:
        """Raised or told, but not both; and nothing is stored."""
        batch, committed, listener = make_batch(), list[None](), Listener()
        async with self.open() as storage:
            pass
        try:
            storage.submit(lambda tx: tx.insert_batch(batch), committed.append, listener)
        except StorageUnavailable:
            await wait_all_tasks_blocked()
            assert listener.results == []
        else:
            (error,) = errors(await listener.heard())
            assert isinstance(error.error, StorageUnavailable)
        assert committed == []
        if self.durable:
            async with self.open() as storage:
                assert not await is_there(storage, batch)


def errors(results: list[outcome.Maybe[Any]]) -> list[outcome.Error]:
    """Of results that all are."""
    found = [result for result in results if isinstance(result, outcome.Error)]
    assert len(found) == len(results)
    return found


async def is_there(storage: Storage, batch: Batch) -> bool:
    return batch.id in await storage.read(lambda tx: tx.taken_batch_ids([batch.id]))
