"""Storage in memory: the conformance suite, and what tests use to break it."""

from contextlib import AbstractAsyncContextManager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from primeflowd.builtin.memory import open_memory, open_storage
from primeflowd.config import from_mapping
from primeflowd.errors import StorageUnavailable
from primeflowd.hookspecs import Storage, Tx
from primeflowd.testing.factories import make_batch
from primeflowd.testing.storage_conformance import StorageConformance


class TestMemoryStorage(StorageConformance):
    durable = False

    def open(self) -> AbstractAsyncContextManager[Storage]:
        return open_memory()


async def test_broken_as_by_a_disk() -> None:
    async with open_memory() as storage:
        storage.fail_with = StorageUnavailable("disk full")
        with pytest.raises(StorageUnavailable, match="disk full"):
            await storage.write(lambda tx: tx.put_note("a", "1"))
        with pytest.raises(StorageUnavailable, match="disk full"):
            await storage.read(lambda tx: tx.note("a"))
        assert not storage.statistics().healthy
        assert storage.statistics().failures == 1
        assert storage.statistics().last_failure == "disk full"
        storage.fail_with = None
        assert await storage.read(lambda tx: tx.note("a")) is None
        await storage.write(lambda tx: tx.put_note("a", "1"))
        assert storage.statistics().healthy
        times = storage.statistics().commit_times
        assert times is not None
        assert sum(times.counts) == storage.statistics().commits == 1


async def test_held_commits_happen_in_order_when_resumed() -> None:
    async with open_memory() as storage:
        events: list[str] = []

        async def write(name: str) -> None:
            def function(tx: Tx) -> str:
                events.append(f"run {name}")
                return name

            await storage.write(function, lambda told: events.append(f"commit {told}"))
            events.append(f"woke {name}")

        storage.hold()
        async with trio.open_nursery() as nursery:
            for name in ("a", "b"):
                nursery.start_soon(write, name)
                await wait_all_tasks_blocked()
            assert events == []
            assert storage.statistics().backlog == 2
            storage.resume()
        assert events[:4] == ["run a", "commit a", "run b", "commit b"]
        assert storage.statistics().backlog == 0


async def test_held_commit_of_a_cancelled_caller_happens_all_the_same() -> None:
    async with open_memory() as storage:
        batch = make_batch()
        told: list[None] = []
        storage.hold()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(storage.write, lambda tx: tx.insert_batch(batch), told.append)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert told == []
        storage.resume()
        assert told == [None]
        assert await storage.read(lambda tx: tx.taken_batch_ids([batch.id])) == {batch.id}


async def test_held_commit_that_fails_is_raised_in_its_caller() -> None:
    async with open_memory() as storage:
        storage.hold()

        async def write() -> None:
            with pytest.raises(StorageUnavailable, match="gone"):
                await storage.write(lambda tx: None)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            await wait_all_tasks_blocked()
            storage.fail_with = StorageUnavailable("gone")
            storage.resume()


async def test_what_is_submitted_is_held_and_fails_as_writes_do() -> None:
    """In order with them, and as storage is when it is resumed."""
    async with open_memory() as storage:
        events: list[str] = []

        def submit(name: str) -> None:
            storage.submit(
                lambda tx: tx.put_note(name, "1"),
                lambda _: events.append(f"commit {name}"),
                lambda result: events.append(f"end {name} {type(result).__name__}"),
            )

        storage.hold()
        async with trio.open_nursery() as nursery:
            submit("a")
            nursery.start_soon(
                storage.write, lambda tx: tx.put_note("b", "1"), lambda _: events.append("commit b")
            )
            await wait_all_tasks_blocked()
            submit("c")
            await wait_all_tasks_blocked()
            assert events == []
            assert storage.statistics().backlog == 3
            storage.resume()
        expected = ["commit a", "end a Value", "commit b", "commit c", "end c Value"]
        assert events == expected
        storage.hold()
        submit("d")
        storage.fail_with = StorageUnavailable("gone")
        storage.resume()
        assert events == [*expected, "end d Error"]
        submit("e")
        await wait_all_tasks_blocked()
        assert events == [*expected, "end d Error", "end e Error"]
        storage.fail_with = None
        for name, stored in {"a": "1", "b": "1", "c": "1", "d": None, "e": None}.items():
            assert await storage.read(lambda tx, n=name: tx.note(n)) == stored  # type: ignore[misc]


async def test_works_under_a_clock_that_jumps(autojump_clock: trio.testing.MockClock) -> None:
    async with open_memory() as storage:
        await trio.sleep(3600)
        await storage.write(lambda tx: tx.put_note("a", "1"))
        assert trio.current_time() == 3600


async def test_closed_storage_takes_nothing() -> None:
    async with open_memory() as storage:
        pass
    with pytest.raises(StorageUnavailable, match="closed"):
        await storage.write(lambda tx: None)


def test_hook_opens_its_own_url_only() -> None:
    assert open_storage(from_mapping({"storage": {"url": "memory://"}}), "node-1") is not None
    assert open_storage(from_mapping({"storage": {"url": "sqlite:///x"}}), "node-1") is None


def test_no_promise_of_the_suite_hides_another() -> None:
    """Two parts with a test of one name would leave one of them out."""
    names = [
        name
        for part in StorageConformance.__mro__
        for name in vars(part)
        if name.startswith("test_")
    ]
    assert sorted(names) == sorted(set(names))
    assert len(names) > 50
