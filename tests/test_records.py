"""Putting attempts on record: together, in order, whatever storage does, and bounded."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest
import trio
from msgspec.structs import replace
from trio.testing import MockClock, wait_all_tasks_blocked

from primeflowd.builtin.memory import MemoryStorage
from primeflowd.clock import SystemClock
from primeflowd.destination import Held
from primeflowd.errors import StorageUnavailable
from primeflowd.hookspecs import Fate, Tx
from primeflowd.model import Delivery
from primeflowd.records import Otherwise, Record, Records
from primeflowd.testing.factories import NOW, make_attempt, make_delivery

T = TypeVar("T")

NODE = "node-1"


class Desk:
    """Attempts to be recorded, and what became of each, in the order of being told."""

    def __init__(self, storage: MemoryStorage, limit: int = 10) -> None:
        self.storage = storage
        self.records = Records(storage, limit, self._settle)
        self.told: list[tuple[str, Fate, Delivery]] = []

    def _settle(self, records: Sequence[Record], otherwise: Otherwise) -> None:
        for record in records:
            fate, delivery = otherwise.get(record.attempt.id, ("recorded", record.after))
            self.told.append((record.held.delivery.id, fate, delivery))

    async def attempt(self, **changes: Any) -> Record:
        """An attempt of a delivery that this node has claimed, which succeeded."""
        before = make_delivery(claimed_by=NODE)
        await self.storage.write(lambda tx: tx.insert_delivery(replace(before, **changes)))
        after = replace(
            before,
            status="succeeded",
            attempt_count=1,
            due_at=None,
            claimed_by=None,
            completed_at=NOW,
        )
        return Record(Held(before, None), make_attempt(delivery_id=before.id), after)

    async def stored(self, record: Record) -> int:
        """How many attempts of its delivery are on record."""
        delivery_id = record.after.id
        found = await self.storage.read(lambda tx: tx.attempts([delivery_id]))
        return len(found.get(delivery_id, ()))


@asynccontextmanager
async def running(limit: int = 10, storage: MemoryStorage | None = None) -> AsyncIterator[Desk]:
    desk = Desk(storage or MemoryStorage(SystemClock()), limit)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(desk.records.run)
        try:
            yield desk
        finally:
            desk.records.stop()


async def test_what_comes_during_a_commit_shares_the_next(autojump_clock: MockClock) -> None:
    async with running() as desk:
        given = [await desk.attempt() for _ in range(6)]
        commits = desk.storage.statistics().commits
        desk.storage.hold()
        for record in given:
            desk.records.give(record)
            await trio.sleep(0.02)
        assert len(desk.records) == 6
        assert desk.told == []
        desk.storage.resume()
        await desk.records.all_stored()
        assert desk.storage.statistics().commits - commits == 2
        assert [told[0] for told in desk.told] == [record.after.id for record in given]
        assert {told[1] for told in desk.told} == {"recorded"}
        for record in given:
            assert await desk.stored(record) == 1


async def test_each_is_told_what_became_of_it(autojump_clock: MockClock) -> None:
    async with running() as desk:
        recorded = await desk.attempt()
        ended = await desk.attempt(status="failed", failure_reason="cancelled", due_at=None)
        lost = await desk.attempt(claimed_by="node-2")
        for record in (recorded, ended, lost):
            desk.records.give(record)
        await desk.records.all_stored()
        assert [fate for _, fate, _ in desk.told] == ["recorded", "ended", "lost"]
        # A person's order stands, and is what is told.
        assert [delivery.status for _, _, delivery in desk.told][:2] == ["succeeded", "failed"]
        assert [await desk.stored(record) for record in (recorded, ended, lost)] == [1, 1, 0]


async def test_whoever_asks_for_room_waits_while_too_many_are_on_their_way(
    autojump_clock: MockClock,
) -> None:
    """5.6: slow storage slows sending; memory is bounded."""
    async with running(limit=3) as desk, trio.open_nursery() as givers:
        records = [await desk.attempt() for _ in range(5)]
        passed: list[int] = []

        async def give(number: int, record: Record) -> None:
            await desk.records.room()
            assert not desk.records.full
            desk.records.give(record)
            passed.append(number)

        desk.storage.hold()
        for number, record in enumerate(records):
            givers.start_soon(give, number, record)
            await trio.sleep(1)
        assert passed == [0, 1, 2]
        assert desk.records.full
        desk.storage.resume()
        await trio.sleep(1)
        assert sorted(passed) == [0, 1, 2, 3, 4]
        assert len(desk.told) == 5


async def test_keeps_trying_while_storage_is_out_of_reach(autojump_clock: MockClock) -> None:
    async with running() as desk:
        first, second = await desk.attempt(), await desk.attempt()
        desk.storage.fail_with = StorageUnavailable("the disk is full")
        desk.records.give(first)
        await trio.sleep(3600)
        desk.records.give(second)
        assert (len(desk.records), desk.told) == (2, [])
        desk.storage.fail_with = None
        await desk.records.all_stored()
        assert [told[0] for told in desk.told] == [first.after.id, second.after.id]


class _InDoubt(MemoryStorage):
    """Commits, and then says that it could not: as when the connection breaks in between."""

    doubtful = 0

    async def write(
        self, function: Callable[[Tx], T], on_commit: Callable[[T], None] | None = None
    ) -> T:
        if self.doubtful:
            self.doubtful -= 1
            await super().write(function)
            raise StorageUnavailable("the connection was lost")
        return await super().write(function, on_commit)


async def test_what_was_stored_after_all_is_not_stored_twice(autojump_clock: MockClock) -> None:
    storage = _InDoubt(SystemClock())
    async with running(storage=storage) as desk:
        first, second = await desk.attempt(), await desk.attempt()
        storage.doubtful = 1
        desk.records.give(first)
        await trio.sleep(0.1)
        desk.records.give(second)
        await desk.records.all_stored()
        assert [(told[0], told[1]) for told in desk.told] == [
            (first.after.id, "recorded"),
            (second.after.id, "recorded"),
        ]
        assert (await desk.stored(first), await desk.stored(second)) == (1, 1)


async def test_waiting_for_room_can_be_cancelled(autojump_clock: MockClock) -> None:
    """Nothing was given by it, and what was given before is recorded all the same."""
    async with running(limit=1) as desk:
        given = await desk.attempt()
        desk.storage.hold()
        desk.records.give(given)
        with trio.move_on_after(1) as scope:
            await desk.records.room()
        assert scope.cancelled_caught
        desk.storage.resume()
        await desk.records.all_stored()
        assert [told[0] for told in desk.told] == [given.after.id]


async def test_a_drain_that_cancels_around_it_does_not_cut_it_short(
    autojump_clock: MockClock,
) -> None:
    """It ends when it is told to, and its last write is seen through."""
    desk = Desk(MemoryStorage(SystemClock()))
    record = await desk.attempt()
    with trio.CancelScope() as outer:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.records.run)
            desk.storage.hold()
            desk.records.give(record)
            await wait_all_tasks_blocked()
            outer.cancel()
            with trio.CancelScope(shield=True):
                await wait_all_tasks_blocked()
                assert len(desk.records) == 1
                desk.storage.resume()
                await desk.records.all_stored()
            desk.records.stop()
    assert [told[1] for told in desk.told] == ["recorded"]


async def test_a_bug_in_recording_is_not_swallowed(autojump_clock: MockClock) -> None:
    """Two attempts under one number are never right: better no daemon than a wrong record."""

    async def record_twice() -> None:
        async with running() as desk:
            record = await desk.attempt()
            desk.records.give(record)
            await desk.records.all_stored()
            again = replace(record.after, claimed_by=NODE, status="pending", due_at=NOW)
            await desk.storage.write(lambda tx: tx.update_delivery(again))
            twice = replace(record.attempt, id="another")
            desk.records.give(Record(record.held, twice, record.after))
            await trio.sleep_forever()

    with pytest.raises(ExceptionGroup) as raised:
        await record_twice()
    assert "on record already" in repr(raised.value.exceptions)


async def test_a_higher_limit_makes_room_at_once(autojump_clock: MockClock) -> None:
    async with running(limit=1) as desk:
        desk.records.give(await desk.attempt())
        assert desk.records.full
        with trio.fail_after(0.001):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(desk.records.room)
                await wait_all_tasks_blocked()
                desk.records.reconfigure(2)
