"""clock.py: the time of day, real and under Trio's mock clock."""

import time

import pytest
import trio
from trio.testing import MockClock

from primeflowd.clock import Clock, SystemClock, TrioClock
from primeflowd.instants import DAY, SECOND, Micros


def test_the_system_clock_tells_the_systems_time() -> None:
    before = time.time_ns() // 1000
    now = SystemClock().now()
    assert before <= now <= time.time_ns() // 1000


async def test_the_trio_clock_stands_still_until_trios_moves(mock_clock: MockClock) -> None:
    clock: Clock = TrioClock(start=5)
    assert clock.now() == 5
    await trio.lowlevel.checkpoint()
    assert clock.now() == 5
    mock_clock.jump(1.5)
    assert clock.now() == 5 + 1_500_000


@pytest.mark.parametrize("span", [1, 999, SECOND // 3, SECOND, 90 * SECOND + 1, 30 * DAY + 7])
async def test_sleeping_until_due_wakes_at_due(autojump_clock: MockClock, span: Micros) -> None:
    """3.6: floats on the way from microseconds to Trio's seconds make nothing early or late."""
    await trio.sleep(1 / 3)  # an instant that no float of seconds names
    clock = TrioClock()
    start = clock.now()
    await trio.sleep(span / SECOND)
    assert clock.now() == start + span


async def test_trio_clocks_started_apart_run_alike(autojump_clock: MockClock) -> None:
    first = TrioClock(start=0)
    await trio.sleep(10)
    second = TrioClock(start=0)
    await trio.sleep(1)
    assert (first.now(), second.now()) == (11 * SECOND, SECOND)
