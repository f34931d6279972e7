"""When the loop turns next: as early as anybody wants it, and no earlier."""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from primeflowd.alarm import Alarm
from primeflowd.clock import TrioClock
from primeflowd.instants import HOUR, SECOND


@asynccontextmanager
async def waiting(alarm: Alarm, until: float) -> AsyncIterator[list[float]]:
    """A loop at the end of its turn; when that ends."""
    turned: list[float] = []

    async def loop() -> None:
        await alarm.wait(until)
        turned.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(loop)
        await wait_all_tasks_blocked()
        yield turned


async def test_it_rings_at_its_time(autojump_clock: MockClock) -> None:
    async with waiting(Alarm(TrioClock()), 3) as turned:
        pass
    assert turned == [3]


async def test_who_wants_a_turn_earlier_gets_it(autojump_clock: MockClock) -> None:
    alarm = Alarm(TrioClock())
    async with waiting(alarm, 3) as turned:
        await trio.sleep(1)
        alarm.by(2)  # the loop looks at once, and finds when to turn by itself
    assert turned == [1]


async def test_nobody_is_woken_for_what_comes_later(autojump_clock: MockClock) -> None:
    """Else each callback that ends would turn the loop."""
    alarm = Alarm(TrioClock())
    async with waiting(alarm, 3) as turned:
        alarm.by(3)
        alarm.by(math.inf)
    assert turned == [3]


async def test_what_is_wanted_during_a_turn_is_not_missed(autojump_clock: MockClock) -> None:
    alarm = Alarm(TrioClock())
    await alarm.wait(3)
    alarm.rearm()
    alarm.by(50)  # the loop had looked already
    async with waiting(alarm, 60) as turned:
        pass
    assert turned == [3]
    alarm.rearm()
    async with waiting(alarm, 60) as turned:
        pass
    assert turned == [60]


async def test_an_instant_is_converted(autojump_clock: MockClock) -> None:
    """The clock's being set back later moves nothing."""
    clock = TrioClock()
    alarm = Alarm(clock)
    await trio.sleep(1)
    instant = clock.now() + 2 * SECOND
    assert alarm.time_of(instant) == pytest.approx(3)
    async with waiting(alarm, alarm.time_of(instant)) as turned:
        clock._start -= HOUR
        alarm.by_instant(clock.now() + 3 * SECOND)
    assert turned == [pytest.approx(3)]
    alarm.rearm()
    async with waiting(alarm, 60) as turned:
        alarm.by_instant(clock.now() + 3 * SECOND)
    assert turned == [pytest.approx(3)]


async def test_a_loop_that_is_late_lets_others_run(autojump_clock: MockClock) -> None:
    async with waiting(Alarm(TrioClock()), -math.inf) as turned:
        pass
    assert turned == [pytest.approx(0.001)]
