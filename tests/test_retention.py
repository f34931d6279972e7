"""Retention: what is over and old goes, in small steps; what lives, or is young, stays."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from primeflowd.builtin.memory import MemoryStorage, open_memory
from primeflowd.clock import TrioClock
from primeflowd.config import RetentionSettings
from primeflowd.durations import Duration
from primeflowd.errors import StorageUnavailable
from primeflowd.hookspecs import BatchFilter, Page, Tx
from primeflowd.instants import DAY, HOUR, MINUTE, SECOND, Micros
from primeflowd.model import Batch
from primeflowd.pace import BUSY, LATE, LEAST, QUIET
from primeflowd.retention import CROWD, LATE_AFTER, PATIENCE, Retention
from primeflowd.testing.conformance.base import store
from primeflowd.testing.conformance.retention import at, ended, put_attempts
from primeflowd.testing.factories import ORG, make_answer, make_attempt

BROKEN = StorageUnavailable("disk full")


class House:
    """A storage, and who purges it."""

    def __init__(self, storage: MemoryStorage, settings: dict[str, str]) -> None:
        self.storage = storage
        self.clock = TrioClock()
        self.eldest = True
        self.seconds = 0.0
        """What each step takes of the storage's time."""
        self._elapsed = 0.0
        given = RetentionSettings(**{key: Duration(text) for key, text in settings.items()})
        self.retention = Retention(storage, given, self.clock, lambda: self.eldest, self._timer)

    def _timer(self) -> float:
        self._elapsed += self.seconds
        return self._elapsed

    def ago(self, span: Micros) -> Micros:
        return self.clock.now() - span

    async def batches(self) -> set[str]:
        found = await self.storage.read(lambda tx: tx.batches(ORG, BatchFilter(), Page(5_000)))
        return {batch.id for batch in found}

    async def answer_exists(self, key: str) -> bool:
        return await self.storage.read(
            lambda tx: tx.answer(ORG, "POST", "/v1/batches", key) is not None
        )


@asynccontextmanager
async def running(**settings: str) -> AsyncIterator[House]:
    async with open_memory() as storage, trio.open_nursery() as nursery:
        house = House(storage, settings)
        nursery.start_soon(house.retention.run)
        yield house
        nursery.cancel_scope.cancel()


# Batches


async def test_batches_live_for_thirty_days(autojump_clock: MockClock) -> None:
    """From the last that happened to them, with their deliveries and attempts."""
    async with running() as house:
        old, soon = at(house.ago(31 * DAY)), at(house.ago(30 * DAY - 15 * MINUTE))
        touched, open_ = at(house.ago(31 * DAY)), at(house.ago(90 * DAY), status="running")
        await store(house.storage, old, soon, touched, open_)
        delivery = ended(old)
        await put_attempts(house.storage, delivery, make_attempt(delivery_id=delivery.id))
        await store(house.storage, ended(touched), ended(touched, updated_at=house.ago(DAY)))
        with capture_logs() as logs:
            await trio.sleep(601)
        assert await house.batches() == {soon.id, touched.id, open_.id}
        assert +house.retention.removed == {"batches": 1, "deliveries": 1, "attempts": 1}
        assert [(entry["event"], entry["batches"]) for entry in logs] == [("old_rows_removed", 1)]
        await trio.sleep(600)
        assert await house.batches() == {touched.id, open_.id}


async def test_off_is_zero(autojump_clock: MockClock) -> None:
    async with running(batches="0s", response_bodies="0s") as house:
        old = at(house.ago(3_000 * DAY))
        delivery = ended(old)
        attempt = make_attempt(delivery_id=delivery.id, created_at=old.created_at)
        await store(house.storage, old)
        await put_attempts(house.storage, delivery, attempt)
        await trio.sleep(2 * 86_400)
        assert await house.batches() == {old.id}
        found = await house.storage.read(lambda tx: tx.attempts([delivery.id]))
        assert found == {delivery.id: [attempt]}


async def test_many_go_in_small_transactions(autojump_clock: MockClock) -> None:
    """None is longer than a few hundred rows."""
    async with running() as house:
        many = [at(house.ago(31 * DAY), org_id=f"org-{k % 3}") for k in range(2_500)]
        await store(house.storage, *many)
        before = house.storage.statistics().commits
        await trio.sleep(601)
        assert house.retention.removed["batches"] == len(many)
        assert house.storage.statistics().commits - before >= 2_500 * 3 // BUSY.most


async def test_an_idle_daemon_writes_nothing(autojump_clock: MockClock) -> None:
    """Section 8; but for the answers, which are asked for by removing them."""
    async with running() as house:
        await store(house.storage, at(house.clock.now()), at(house.ago(40 * DAY), status="running"))
        before = house.storage.statistics().commits
        await trio.sleep(3_601)
        assert house.storage.statistics().commits - before <= 6


# Response bodies


async def bodies(house: House, delivery_id: str) -> list[Any]:
    found = await house.storage.read(lambda tx: tx.attempts([delivery_id]))
    return [attempt.response_body for attempt in found[delivery_id]]


async def test_response_bodies_live_for_a_week(autojump_clock: MockClock) -> None:
    """5.5: the attempt stays on record without it."""
    async with running() as house:
        ages = [8 * DAY, 7 * DAY - 15 * MINUTE]
        deliveries = []
        for age in ages:
            batch = at(house.ago(age))
            await store(house.storage, batch)
            deliveries.append(ended(batch))
            attempt = make_attempt(delivery_id=deliveries[-1].id, created_at=batch.created_at)
            await put_attempts(house.storage, deliveries[-1], attempt)
        await trio.sleep(601)
        assert [await bodies(house, each.id) for each in deliveries] == [[None], ["ok"]]
        await trio.sleep(600)
        assert [await bodies(house, each.id) for each in deliveries] == [[None], [None]]
        assert +house.retention.removed == {"response_bodies": 2}


async def test_bodies_of_late_attempts_go_within_a_day(autojump_clock: MockClock) -> None:
    """Their delivery was looked at long ago, and is looked at again."""
    async with running() as house:
        batch = at(house.ago(10 * DAY))
        delivery = ended(batch)
        first = make_attempt(delivery_id=delivery.id, created_at=batch.created_at)
        late = make_attempt(
            delivery_id=delivery.id, attempt_number=2, created_at=house.ago(7 * DAY - HOUR)
        )
        await store(house.storage, batch)
        await put_attempts(house.storage, delivery, first, late)
        await trio.sleep(601)
        assert await bodies(house, delivery.id) == [None, "ok"]
        await trio.sleep(86_400 + 600)
        assert await bodies(house, delivery.id) == [None, None]


# Answers


async def test_answers_live_for_a_day(autojump_clock: MockClock) -> None:
    """2.6: kept for 24 h, gone soon after."""
    async with running() as house:
        now = house.clock.now()
        ages = {"old": DAY + SECOND, "almost": DAY - 700 * SECOND, "new": 0}

        def put(tx: Tx) -> None:
            for key, age in ages.items():
                tx.put_answer(make_answer(key=key, created_at=now - age))

        await house.storage.write(put)
        await trio.sleep(601)
        assert [key for key in ages if await house.answer_exists(key)] == ["almost", "new"]
        await trio.sleep(600)
        assert [key for key in ages if await house.answer_exists(key)] == ["new"]


async def test_many_answers_go_at_once_in_small_transactions(autojump_clock: MockClock) -> None:
    """2.6: no purge holds up a callback; none leaves a backlog."""
    async with running() as house:
        created_at = house.ago(2 * DAY)
        keys = [str(number) for number in range(3 * BUSY.most + 1)]

        def put(tx: Tx) -> None:
            for key in keys:
                tx.put_answer(make_answer(key=key, created_at=created_at))

        await house.storage.write(put)
        before = house.storage.statistics().commits
        await trio.sleep(601)
        assert not any([await house.answer_exists(key) for key in keys])
        assert house.storage.statistics().commits == before + 5
        assert house.retention.removed["answers"] == len(keys)


async def test_a_purge_that_fails_is_made_up_for(autojump_clock: MockClock) -> None:
    """2.6"""
    async with running() as house:
        answer = make_answer(created_at=house.ago(2 * DAY))
        await house.storage.write(lambda tx: tx.put_answer(answer))
        house.storage.fail_with = BROKEN
        with capture_logs() as logs:
            await trio.sleep(601)
        assert [entry["event"] for entry in logs] == ["purge_delayed"]
        house.storage.fail_with = None
        assert await house.answer_exists(answer.key)
        assert house.retention.purged_at is None
        await trio.sleep(600)
        assert not await house.answer_exists(answer.key)
        assert house.retention.purged_at == house.ago(SECOND)


# Who, and when


async def test_only_the_eldest_purges(autojump_clock: MockClock) -> None:
    async with running() as house:
        await store(house.storage, at(house.ago(31 * DAY)))
        house.eldest = False
        await trio.sleep(1_201)
        assert len(await house.batches()) == 1
        house.eldest = True
        await trio.sleep(600)
        assert not await house.batches()
        assert house.retention.purged_at is not None
        house.eldest = False
        await trio.sleep(600)
        assert house.retention.purged_at is None


async def test_a_node_that_is_eldest_no_more_stops(autojump_clock: MockClock) -> None:
    """After the step that it has begun."""
    async with running() as house:
        many = [at(house.ago(31 * DAY)) for _ in range(2 * BUSY.most)]
        await store(house.storage, *many)
        await trio.sleep(600)
        while not house.retention.removed["batches"]:
            await trio.lowlevel.checkpoint()
        house.eldest = False
        await trio.sleep(1_800)
        assert len(await house.batches()) >= len(many) - 2 * (BUSY.most // 3)


async def test_it_waits_while_writes_wait(autojump_clock: MockClock) -> None:
    """Not for ever: a storage that is overloaded all day must not fill its disk."""
    async with running() as house, trio.open_nursery() as others:
        old = at(house.ago(31 * DAY))
        await store(house.storage, old)
        await trio.sleep(599)
        house.storage.hold()
        for k in range(CROWD + 1):
            others.start_soon(store, house.storage, _fresh(house, k))
        await trio.sleep(1 + PATIENCE - 0.1)
        assert house.storage.statistics().backlog == CROWD + 1
        await trio.sleep(0.2)
        assert house.storage.statistics().backlog == CROWD + 2
        house.storage.resume()


async def test_it_pauses_for_as_long_as_the_storage_is_slow(autojump_clock: MockClock) -> None:
    """A step that took ten seconds is followed by ninety without one."""
    async with running() as house:
        await store(house.storage, at(house.ago(31 * DAY)))
        await trio.sleep(599)
        house.storage.hold()
        await trio.sleep(1 + 10)
        before = house.storage.statistics().commits
        house.storage.resume()
        await trio.sleep(10 * BUSY.rest - 1)
        assert house.storage.statistics().commits == before + 1
        await trio.sleep(2)
        assert not await house.batches()


async def test_it_hurries_while_nobody_else_writes(autojump_clock: MockClock) -> None:
    """Once that has been so for a second, it takes up to half of the time."""
    async with running() as house:
        await store(house.storage, at(house.ago(30 * DAY) + 700 * SECOND))
        await trio.sleep(1_199)
        house.storage.hold()
        await trio.sleep(1 + 10)
        before = house.storage.statistics().commits
        house.storage.resume()
        await trio.sleep(10 * QUIET.rest - 1)
        # Of the answers.
        assert house.storage.statistics().commits == before + 1
        await trio.sleep(2)
        assert not await house.batches()


async def test_a_purge_that_lasts_all_day_takes_more(autojump_clock: MockClock) -> None:
    """While others write, too: what comes in must not fill the disk."""
    async with running() as house:
        await store(house.storage, *(at(house.ago(31 * DAY)) for _ in range(40)))
        await trio.sleep(599)
        house.storage.hold()
        await trio.sleep(1 + LATE_AFTER)
        house.storage.resume()
        # Of the answers; the pause has the length that it had when they were removed.
        await trio.sleep(LATE_AFTER * BUSY.rest - 1)
        await store(house.storage, at(house.clock.now()))
        house.storage.hold()
        await trio.sleep(1 + 10)
        before = house.storage.statistics().commits
        house.storage.resume()
        await trio.sleep(10 * LATE.rest - 1)
        assert house.storage.statistics().commits == before + 1
        await trio.sleep(2)
        assert house.storage.statistics().commits == before + 2


async def _steps_for(house: House, answers: int, purge_at: float) -> int:
    """How many it takes to remove so many answers at that time."""
    created_at = house.clock.now() + round(purge_at - trio.current_time() - 1) * SECOND - DAY

    def put(tx: Tx) -> None:
        for number in range(answers):
            tx.put_answer(make_answer(key=str(number), created_at=created_at))

    await house.storage.write(put)
    before = house.storage.statistics().commits
    await trio.sleep_until(purge_at + 1)
    assert house.retention.removed["answers"] == answers
    return house.storage.statistics().commits - before


async def test_steps_that_take_long_become_short(autojump_clock: MockClock) -> None:
    """2.6: while others write, whoever is committed with one waits for a millisecond or two."""
    async with running() as house:
        house.seconds = 2 * BUSY.aim
        steps = await _steps_for(house, 60 + 20 * LEAST, trio.current_time() + 600)
        # The first is of sixty; one finds that nothing is left.
        assert steps == 1 + 20 + 1


async def test_steps_may_be_longer_while_nobody_waits(autojump_clock: MockClock) -> None:
    async with running() as house:
        house.seconds = 0.4 * QUIET.aim
        steps = await _steps_for(house, 60 + 20 * LEAST, trio.current_time() + 1_200)
        # One of them when there was nothing yet; then 60, 120, 200, 290.
        assert steps == 1 + 4


async def test_steps_that_take_nothing_are_bounded(autojump_clock: MockClock) -> None:
    async with running() as house:
        answers = 60 + 120 + 240 + 3 * BUSY.most
        steps = await _steps_for(house, answers, trio.current_time() + 600)
        assert steps == 6 + 1


def _fresh(house: House, number: int) -> Batch:
    return at(house.clock.now() + number)


# Other settings


async def test_another_pace_counts_from_the_last_purge(autojump_clock: MockClock) -> None:
    async with running(every="10h", batches="1h") as house:
        await store(house.storage, at(house.ago(2 * HOUR)))
        await trio.sleep(3600)
        settings = RetentionSettings(every=Duration("2h"), batches=Duration("1h"))
        house.retention.reconfigure(settings)
        await trio.sleep(3500)
        assert len(await house.batches()) == 1
        await trio.sleep(200)
        assert await house.batches() == set()
        assert house.retention.purged_at == house.clock.now() - 100 * SECOND
