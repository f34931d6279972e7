"""Records of attempts: written together as presumed, and asked for where that was wrong."""

from collections.abc import AsyncIterator
from functools import partial
from operator import methodcaller
from pathlib import Path

import pytest
from msgspec.structs import replace
from sqlalchemy import Engine
from trio.testing import wait_all_tasks_blocked

from primeflowd.hookspecs import Fate, Tx
from primeflowd.model import Delivery
from primeflowd.sql.statements import Statements
from primeflowd.sql.writer import Writer
from primeflowd.testing.factories import NOW, make_attempt, make_delivery
from tests.sql.database import make_database
from tests.sql.test_writer import one_group, refuse

NODE = "node-1"


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    return make_database(tmp_path / "storage.db")


@pytest.fixture
async def writer(engine: Engine) -> AsyncIterator[Writer]:
    writer = Writer(engine, Statements(engine.dialect))
    yield writer
    await writer.aclose()


async def insert(writer: Writer, count: int, claimed_by: str | None = NODE) -> list[Delivery]:
    deliveries = [make_delivery(claimed_by=claimed_by) for _ in range(count)]

    def function(tx: Tx) -> None:
        for delivery in deliveries:
            tx.insert_delivery(delivery)

    await writer.write(function)
    return deliveries


def ended(delivery: Delivery) -> Delivery:
    return replace(
        delivery,
        status="succeeded",
        attempt_count=1,
        due_at=None,
        claimed_by=None,
        updated_at=NOW + 1,
        completed_at=NOW + 1,
    )


def record(tx: Tx, delivery: Delivery) -> Fate:
    attempt = make_attempt(delivery_id=delivery.id, attempt_number=delivery.attempt_count + 1)
    return tx.record_attempt(NODE, attempt, ended(delivery))


class Recorder:
    """Records as tasks of their own, and keeps what each was told."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self.fates: dict[str, Fate] = {}
        self.runs = 0

    async def __call__(self, delivery: Delivery) -> None:
        def function(tx: Tx) -> Fate:
            self.runs += 1
            return record(tx, delivery)

        self.fates[delivery.id] = await self._writer.write(function)


async def test_records_of_a_group_are_one_write(writer: Writer) -> None:
    deliveries = await insert(writer, 30)
    recorder = Recorder(writer)
    before = writer.statistics().commits
    async with one_group(writer) as nursery:
        for delivery in deliveries:
            nursery.start_soon(recorder, delivery)
    assert set(recorder.fates.values()) == {"recorded"}
    assert recorder.runs == 30, "none ran twice"
    assert writer.statistics().commits == before + 2, "the gate's and the group's"
    for delivery in deliveries:
        assert await writer.write(partial(read, delivery=delivery)) == (ended(delivery), 1)


def read(tx: Tx, delivery: Delivery) -> tuple[Delivery | None, int]:
    attempts = tx.attempts([delivery.id]).get(delivery.id, [])
    return tx.delivery(None, delivery.id), len(attempts)


async def test_lost_and_ended_ones_are_told_so_and_the_others_are_recorded(writer: Writer) -> None:
    """5.4, and: write back only what you still own."""
    mine = await insert(writer, 10)
    theirs = await insert(writer, 3, "node-2")
    cancelled = await insert(writer, 2)
    for delivery in cancelled:
        end = replace(
            ended(delivery), status="failed", attempt_count=0, claimed_by=NODE, due_at=None
        )
        await writer.write(methodcaller("update_delivery", end))
    recorder = Recorder(writer)
    before = writer.statistics().commits
    async with one_group(writer) as nursery:
        for delivery in (*mine[:5], *theirs, *cancelled, *mine[5:]):
            nursery.start_soon(recorder, delivery)
    expected = dict.fromkeys((d.id for d in mine), "recorded")
    expected |= dict.fromkeys((d.id for d in theirs), "lost")
    expected |= dict.fromkeys((d.id for d in cancelled), "ended")
    assert recorder.fates == expected
    # Twice together, never alone: a lease that is lost makes many of them wrong at once.
    assert recorder.runs == 2 * len(expected)
    assert writer.statistics().commits == before + 2
    for delivery in mine:
        assert await writer.write(partial(read, delivery=delivery)) == (ended(delivery), 1)
    for delivery in theirs:
        assert await writer.write(partial(read, delivery=delivery)) == (delivery, 0)
    for delivery in cancelled:
        after, attempts = await writer.write(partial(read, delivery=delivery))
        assert after is not None
        assert (after.status, after.claimed_by, attempts) == ("failed", None, 1)


async def test_what_comes_after_a_record_in_its_group_sees_it(writer: Writer) -> None:
    [first, second, third] = await insert(writer, 3)

    def claims(tx: Tx) -> set[str]:
        record(tx, first)
        return tx.claimed(NODE)

    def overrules(tx: Tx) -> None:
        retried = replace(second, attempt_count=1, due_at=NOW + 9)
        tx.record_attempt(NODE, make_attempt(delivery_id=second.id), retried)
        tx.update_delivery(replace(retried, failure_detail="after"))

    def twice(tx: Tx) -> None:
        again = replace(third, attempt_count=1)
        attempt = make_attempt(delivery_id=third.id)
        assert tx.record_attempt(NODE, attempt, again) == "recorded"
        assert record(tx, again) == "recorded"

    async with one_group(writer) as nursery:
        for function in (claims, overrules, twice):
            nursery.start_soon(writer.write, function)
            await wait_all_tasks_blocked()
    found = await writer.write(partial(read, delivery=second))
    assert found[1] == 1
    assert found[0] is not None
    assert found[0].failure_detail == "after"
    assert (await writer.write(partial(read, delivery=third)))[1] == 2
    assert await writer.write(lambda tx: tx.claimed(NODE)) == {second.id}


async def test_record_of_a_function_that_raises_is_withdrawn(writer: Writer) -> None:
    [kept, dropped] = await insert(writer, 2)
    recorder = Recorder(writer)

    def raises(tx: Tx) -> None:
        record(tx, dropped)
        raise LookupError

    before = writer.statistics().commits
    async with one_group(writer) as nursery:
        nursery.start_soon(recorder, kept)
        nursery.start_soon(refuse, writer, raises, LookupError)
    assert recorder.fates == {kept.id: "recorded"}
    assert writer.statistics().commits == before + 2, "nobody ran alone"
    assert await writer.write(partial(read, delivery=dropped)) == (dropped, 0)


async def test_one_attempt_recorded_twice_is_recorded_once(writer: Writer) -> None:
    """Its node asked again, not knowing that the first commit had gone through."""
    [delivery] = await insert(writer, 1)
    recorder = Recorder(writer)
    async with one_group(writer) as nursery:
        nursery.start_soon(recorder, delivery)
    async with one_group(writer) as nursery:
        nursery.start_soon(recorder, delivery)
    assert recorder.fates == {delivery.id: "lost"}
    assert await writer.write(partial(read, delivery=delivery)) == (ended(delivery), 1)
