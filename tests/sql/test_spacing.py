"""The pause between commits: how long it is, what shares the commit after it, what ends it."""

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from sqlalchemy import Engine
from trio.testing import wait_all_tasks_blocked

from primeflowd.sql.spacing import COMPANY, Spacing
from primeflowd.sql.statements import Statements
from primeflowd.sql.writer import Writer
from tests.sql.database import make_database

LONG = 60.0
"""Seconds: longer than closing waits."""


class Watch:
    """A clock that only sleeping moves, and what was slept."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = make_database(tmp_path / "storage.db")
    yield engine
    engine.dispose()


@asynccontextmanager
async def writing(engine: Engine, spacing: Spacing) -> AsyncIterator[Writer]:
    writer = Writer(engine, Statements(engine.dialect), spacing=spacing)
    try:
        yield writer
    finally:
        await writer.aclose()


def of_watch() -> tuple[Spacing, Callable[[], float]]:
    watch = Watch()
    return Spacing(0.01, watch.clock, watch.sleep), watch.clock


def of_this_world() -> tuple[Spacing, Callable[[], float]]:
    return Spacing(0.01), time.monotonic


@pytest.mark.parametrize("make", [of_watch, of_this_world])
def test_beginnings_are_apart(make: Callable[[], tuple[Spacing, Callable[[], float]]]) -> None:
    """The watch is as the world is."""
    spacing, clock = make()
    begun = []
    for _ in range(3):
        spacing.wait()
        spacing.took(COMPANY)
        begun.append(clock())
    assert all(later - earlier >= 0.01 for earlier, later in pairwise(begun))


def test_only_the_remainder_is_waited_for() -> None:
    watch = Watch()
    spacing = Spacing(10, watch.clock, watch.sleep)
    spacing.wait()
    spacing.took(COMPANY)
    watch.now += 4
    spacing.wait()
    spacing.took(COMPANY)
    watch.now += 10
    spacing.wait()
    assert watch.slept == [6]


def test_a_group_without_company_is_followed_at_once() -> None:
    watch = Watch()
    spacing = Spacing(10, watch.clock, watch.sleep)
    spacing.wait()
    spacing.took(COMPANY - 1)
    spacing.wait()
    assert watch.slept == []
    spacing.took(COMPANY)
    spacing.wait()
    spacing.took(1)
    spacing.wait()
    assert watch.slept == [10]


def test_ended_it_does_not_wait() -> None:
    watch = Watch()
    spacing = Spacing(LONG, watch.clock, watch.sleep)
    spacing.wait()
    spacing.took(COMPANY)
    spacing.end()
    spacing.end()
    spacing.wait()
    spacing.wait()
    assert watch.slept == []


async def together(writer: Writer, count: int) -> None:
    """Have so many operations committed, of which none waits for another."""
    async with trio.open_nursery() as nursery:
        for index in range(count):
            nursery.start_soon(writer.write, lambda tx, i=index: tx.put_note(str(i), ""))


async def test_first_of_an_idle_writer_does_not_wait(engine: Engine) -> None:
    watch = Watch()
    async with writing(engine, Spacing(LONG, watch.clock, watch.sleep)) as writer:
        await together(writer, COMPANY)
        assert watch.slept == []
        watch.now += LONG
        await together(writer, COMPANY)
        assert watch.slept == []


async def test_one_after_the_other_does_not_wait(engine: Engine) -> None:
    """However fast they come, there is nothing that would share a commit."""
    watch = Watch()
    async with writing(engine, Spacing(LONG, watch.clock, watch.sleep)) as writer:
        for _ in range(5):
            await writer.write(lambda tx: None)
        assert writer.statistics().commits == 5
    assert watch.slept == []


async def test_groups_that_follow_each_other_are_apart(engine: Engine) -> None:
    watch = Watch()
    async with writing(engine, Spacing(10, watch.clock, watch.sleep)) as writer:
        for _ in range(3):
            await together(writer, COMPANY)
        assert writer.statistics().commits == 3
    assert watch.slept == [10, 10]


async def test_what_comes_during_the_pause_shares_a_commit(engine: Engine) -> None:
    """Also what comes after the thread was woken. Closing cuts the pause short."""
    writer = Writer(engine, Statements(engine.dialect), spacing=Spacing(LONG))
    await together(writer, COMPANY)
    async with trio.open_nursery() as nursery:
        for index in range(20):
            nursery.start_soon(writer.write, lambda tx, i=index: tx.put_note(str(i), ""))
            await wait_all_tasks_blocked()
        assert writer.statistics().commits == 1
        await writer.aclose()
        assert writer.statistics().backlog == 0
    after = writer.statistics()
    assert (after.commits, after.operations, after.backlog) == (2, COMPANY + 20, 0)
    with engine.connect() as connection:
        [[count]] = connection.exec_driver_sql("SELECT count(*) FROM notes").fetchall()
    assert count == 20
