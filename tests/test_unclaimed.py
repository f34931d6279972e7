"""What waits in storage: claimed soon where that helps, seldom where not, and not overtaken."""

from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import trio
from trio.testing import MockClock

from primeflowd.alarm import Alarm
from primeflowd.builtin.memory import MemoryStorage
from primeflowd.clock import SystemClock, TrioClock
from primeflowd.config import DeliverySettings
from primeflowd.destinations import Destinations
from primeflowd.hookspecs import Tx
from primeflowd.instants import SECOND
from primeflowd.room import Room
from primeflowd.unclaimed import Unclaimed
from tests.network import pairs
from tests.scheduling import running, scheduling
from tests.sending import OK, Answer, Line


def fresh(**changes: Any) -> tuple[Unclaimed, Room]:
    settings = DeliverySettings(**changes)
    clock = TrioClock()
    room = Room(settings, Destinations(settings, clock))
    return Unclaimed(room, Alarm(clock)), room


async def test_a_node_that_starts_claims_at_once(autojump_clock: MockClock) -> None:
    waiting, _ = fresh()
    assert waiting.next_claim() <= trio.current_time()


async def test_hunger_brings_the_next_claim_forward(autojump_clock: MockClock) -> None:
    await trio.sleep(7)
    waiting, _ = fresh()
    waiting.asking()
    assert waiting.next_claim() == 12
    waiting.want_more()
    assert waiting.next_claim() == pytest.approx(7.1)
    waiting.asking()
    waiting.asked(True, set())
    assert waiting.next_claim() == pytest.approx(7.1)


async def test_hunger_waits_for_room(autojump_clock: MockClock) -> None:
    """It is not forgotten by a claim that could not be made."""
    waiting, room = fresh(active_limit=1)
    assert room.take("a")
    waiting.want_more()
    waiting.asking()
    assert waiting.next_claim() == 5
    room.remove("a", 1)
    assert waiting.next_claim() == pytest.approx(0.1)


async def test_a_claim_tells_for_whom_more_waits(autojump_clock: MockClock) -> None:
    waiting, _ = fresh()
    waiting.destinations.add("before")
    waiting.asking()
    waiting.asked(True, {"a"})
    assert (waiting.everywhere, waiting.destinations) == (True, {"a"})
    waiting.asking()
    waiting.asked(False, set())
    assert (waiting.everywhere, waiting.destinations) == (False, set())
    assert waiting.next_claim() == 5


async def test_after_a_failure_storage_is_left_alone_for_a_second(
    autojump_clock: MockClock,
) -> None:
    waiting, _ = fresh()
    waiting.asking()
    await trio.sleep(2)
    waiting.out_of_reach()
    assert waiting.next_claim() == waiting.ask_from == 3


async def test_who_wants_more_wakes_the_loop(autojump_clock: MockClock) -> None:
    settings = DeliverySettings()
    clock = TrioClock()
    alarm = Alarm(clock)
    waiting = Unclaimed(Room(settings, Destinations(settings, clock)), alarm)
    waiting.asking()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(alarm.wait, waiting.next_claim())
        await trio.sleep(1)
        waiting.want_more()
    assert trio.current_time() == 1


async def test_room_that_becomes_free_is_used_soon(autojump_clock: MockClock) -> None:
    """Not only at the next regular claim: also where all of it became free at once, right after
    the last claim."""
    async with running(active_limit=10, destination_share=1.0) as line:
        line.wire.answers["a"] = OK
        await line.add(count=100, due_in=-1)
        await trio.sleep(6)
        line.wire.sent.clear()
        await line.add(count=100, due_in=-1)
        await trio.sleep(5.3)  # a regular claim finds them at the latest
        first = line.wire.times("a")[0]
        await trio.sleep(5)
        assert len(line.wire.sent) == 100
        assert line.wire.times("a")[-1] - first <= 1.5 * SECOND


async def test_what_waits_in_storage_is_not_overtaken(autojump_clock: MockClock) -> None:
    """More comes in than can be sent, and takes no place from what came before."""
    limits: dict[str, Any] = {"active_limit": 20, "destination_share": 1.0}
    async with running(window_initial=1, window_max=1, **limits) as line:
        line.wire.answers["a"] = Answer(after=0.023)  # some 40 in a second
        await trio.sleep(1)
        old = await line.submit("a", count=200)
        for _ in range(100):
            await trio.sleep(0.0531)
            await line.submit("a", count=5)
        sent = [
            dict(pairs(request.lines))["Primeflow-Delivery-Id"] for _, request in line.wire.sent
        ]
        assert len(sent) > 210
        assert set(sent[:200]) == set(old)


async def test_a_destination_that_lags_does_not_send_others_the_long_way(
    autojump_clock: MockClock,
) -> None:
    """What comes in for others is held at once, though one destination's backlog waits."""
    async with running(active_limit=40, destination_share=0.25) as line:
        line.wire.answers["slow"] = Answer(after=10)
        await trio.sleep(1)
        await line.submit("slow", count=100)
        for number in range(50):
            await trio.sleep(0.037)
            (one,) = await line.submit(f"h{number}")
            assert line.holdings.holds(one)


async def test_claims_rest_while_nothing_can_be_gained(autojump_clock: MockClock) -> None:
    """A destination that has all of its share and does not move is no reason to ask storage."""
    async with scheduling(active_limit=40, destination_share=0.25) as line:
        await line.add("a", count=100, due_in=-1)
        await trio.sleep(5)
        await line.submit("a", count=10)
        before = line.storage.statistics().commits
        await trio.sleep(50)
        assert line.storage.statistics().commits - before <= 11


async def test_a_long_queue_is_claimed_in_quick_succession(autojump_clock: MockClock) -> None:
    """One transaction claims so many and no more; the next follows soon."""
    async with scheduling(destination_share=1.0) as line:
        await line.add(count=5000, due_in=-1)
        await trio.sleep(5.5)
        assert len(line.holdings) == 5000


async def test_no_claims_for_what_comes_and_goes(autojump_clock: MockClock) -> None:
    """While nothing waits in storage, it is asked at its regular times only."""
    async with running() as line:
        await trio.sleep(1)
        before = line.storage.statistics().commits
        for _ in range(90):
            await line.submit()
            await trio.sleep(0.1)
        assert len(line.wire.sent) == 90
        assert line.storage.statistics().commits - before <= 2 * 90 + 2


async def test_a_destination_that_recovers_gets_its_backlog_soon(
    autojump_clock: MockClock,
) -> None:
    async with running(active_limit=100, window_initial=2, suspend_after=1) as line:
        line.wire.answers["a"] = Answer(failure="connection_error")
        await line.add("a", count=20, due_in=-60, delays=("1h",), max_retries=1)
        await trio.sleep(20)
        backlog = [one for one in await line.deliveries() if not one.attempt_count]
        assert len(backlog) > 5
        line.wire.answers["a"] = OK
        line.wire.sent.clear()
        await trio.sleep(60)
        first, *_, last = line.wire.times("a")
        assert len(line.wire.sent) == len(backlog)
        assert last - first < SECOND


T = TypeVar("T")


class WakesLate(MemoryStorage):
    """Callers hear of their commit a little after it, when others have been committed since."""

    async def write(
        self, function: Callable[[Tx], T], on_commit: Callable[[T], None] | None = None
    ) -> T:
        result = await super().write(function, on_commit)
        await trio.sleep(0.005)
        return result


async def test_a_backlog_of_one_destination_is_worked_off_without_a_pause(
    autojump_clock: MockClock,
) -> None:
    """Places come free while a claim is under way, too; the rest must not wait for the next
    regular claim because of that."""
    settings = DeliverySettings(active_limit=100, destination_share=0.2)
    line = Line(WakesLate(SystemClock()), settings)
    await line.submit(count=400)
    line.wire.answers["a"] = Answer(after=0.001)
    async with trio.open_nursery() as nursery:
        line.start(nursery)
        await trio.sleep(4.5)
        assert len(line.wire.sent) == 400
        nursery.cancel_scope.cancel()
