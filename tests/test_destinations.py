"""Destinations: who is sent to next, and how many attempts each may have at once."""

import itertools
import time
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from primeflowd.config import DeliverySettings
from primeflowd.destination import Held
from primeflowd.destination_rules import Rules
from primeflowd.destinations import Destinations
from primeflowd.durations import Duration
from primeflowd.instants import SECOND
from primeflowd.testing.factories import NOW, make_delivery

A, B, C = "https://a:443", "https://b:443", "https://c:443"


def make(**changes: Any) -> Destinations:
    """By default as soon as it fails for long enough in rounds, without the wait in time."""
    return Destinations(DeliverySettings(**{"suspend_period": Duration("0s"), **changes}))


def held(destination: str = A) -> Held:
    return Held(make_delivery(destination=destination), None)


def fill(destinations: Destinations, destination: str, count: int) -> list[Held]:
    filled = [held(destination) for _ in range(count)]
    for one in filled:
        destinations.put(one)
    return filled


async def take_all(destinations: Destinations) -> list[Held]:
    """Take until there is nothing to take."""
    taken: list[Held] = []
    with trio.move_on_after(0) as scope:
        while (one := await destinations.take()) is not None:
            taken.append(one)
    assert scope.cancelled_caught
    return taken


async def suspend(destinations: Destinations, name: str = A) -> None:
    """Fail attempts, one after the other, until the destination is suspended."""
    while destinations.statistics()[name].suspended_until is None:
        one = await destinations.take()
        assert one is not None
        destinations.done(one, True, NOW)


async def test_destinations_take_turns() -> None:
    destinations = make()
    names = [A, B, C, "https://d:443"]
    expected = {name: fill(destinations, name, 30) for name in names}
    assert len(destinations) == 120
    order = []
    for _ in range(120):
        one = await destinations.take()
        assert one is not None
        order.append(one)
        destinations.done(one, False, NOW)
    assert [one.delivery.destination for one in order] == names * 30
    for name in names:  # and each destination's in the order they were put
        assert [one for one in order if one.delivery.destination == name] == expected[name]
    assert len(destinations) == 0


async def test_a_destination_takes_its_turn_behind_those_that_wait() -> None:
    destinations = make(window_initial=1)
    fill(destinations, A, 3)
    first = await destinations.take()
    fill(destinations, B, 2)
    assert first is not None
    destinations.done(first, False, NOW)
    assert [one.delivery.destination for one in await take_all(destinations)] == [B, A, A]


async def test_no_destination_goes_beyond_its_window() -> None:
    destinations = make(window_initial=3)
    fill(destinations, A, 50)
    fill(destinations, B, 50)
    taken = await take_all(destinations)
    assert [one.delivery.destination for one in taken] == [A, B] * 3
    statistics = destinations.statistics()[A]
    assert (statistics.queued, statistics.in_flight, statistics.window) == (47, 3, 3)
    destinations.done(taken[0], None, NOW)
    assert len(await take_all(destinations)) == 1


async def test_the_oldest_due_is_the_first_of_its_queue() -> None:
    destinations = make(window_initial=1)
    for due_at in (NOW, NOW + 5):
        destinations.put(Held(make_delivery(destination=A, due_at=due_at), None))
    assert destinations.statistics()[A].oldest_due == NOW
    await destinations.take()
    assert destinations.statistics()[A].oldest_due == NOW + 5
    assert destinations.clear()
    assert destinations.statistics()[A].oldest_due is None


async def test_slow_start_opens_the_window_by_one_for_each_window_of_successes() -> None:
    destinations = make(window_initial=2, window_max=8)
    fill(destinations, A, 200)
    windows = []
    for _ in range(9):
        taken = await take_all(destinations)
        windows.append(len(taken))
        for one in taken:
            destinations.done(one, False, NOW)
    assert windows == [2, 3, 4, 5, 6, 7, 8, 8, 8]


@pytest.mark.parametrize(
    ("concurrency", "most"), [(1, 1), (4, 1), (7, 1), (8, 2), (40, 10), (4000, 64)]
)
async def test_a_window_is_no_more_than_a_quarter_of_the_pool(concurrency: int, most: int) -> None:
    destinations = make(concurrency=concurrency, window_initial=10, window_max=64)
    fill(destinations, A, 3000)
    for _ in range(60):
        taken = await take_all(destinations)
        for one in taken:
            destinations.done(one, False, NOW)
    assert len(taken) == most


async def test_failures_close_the_window_down_to_one() -> None:
    destinations = make(window_initial=4, suspend_after=1000)
    fill(destinations, A, 200)
    windows = [4]
    for _ in range(60):
        one = await destinations.take()
        assert one is not None
        assert destinations.done(one, True, NOW) is None
        windows.append(destinations.statistics()[A].window)
    assert windows == sorted(windows, reverse=True)
    assert set(windows) == {4, 3, 2, 1}
    assert len(await take_all(destinations)) == 1


async def test_an_attempt_that_says_nothing_changes_nothing() -> None:
    destinations = make(window_initial=2, suspend_after=1)
    fill(destinations, A, 100)
    for _ in range(50):
        one = await destinations.take()
        assert one is not None
        assert destinations.done(one, None, NOW) is None
    assert destinations.statistics()[A].window == 2


@pytest.mark.parametrize("suspend_after", [1, 3, 10])
async def test_failed_cohorts_suspend(suspend_after: int) -> None:
    destinations = make(window_initial=1, suspend_after=suspend_after)
    fill(destinations, A, 50)
    for number in range(1, suspend_after + 1):
        one = await destinations.take()
        assert one is not None
        change = destinations.done(one, True, NOW)
        assert change == ("suspended" if number == suspend_after else None)
    assert await take_all(destinations) == []
    statistics = destinations.statistics()[A]
    assert (statistics.window, statistics.suspended_until) == (0, NOW + SECOND)
    assert destinations.next_reopening() == NOW + SECOND
    assert A in destinations.ill()


async def test_a_wider_window_needs_more_failures() -> None:
    """One that failed as often as its window is wide is not written off for it."""
    needed = []
    for window in (1, 4, 16):
        destinations = make(window_initial=window, suspend_after=2, suspend_max=Duration("60s"))
        fill(destinations, A, 100)
        await suspend(destinations)
        needed.append(100 - destinations.statistics()[A].queued)
    assert needed == sorted(set(needed))
    assert needed[-1] > 16


async def test_a_success_in_between_starts_the_count_anew() -> None:
    destinations = make(window_initial=1, window_max=1, suspend_after=3)
    fill(destinations, A, 60)
    for failed in [True, True, False] * 20:
        one = await destinations.take()
        assert one is not None
        assert destinations.done(one, failed, NOW) is None
    assert destinations.next_reopening() is None


async def test_probes_double_the_suspension_until_one_succeeds() -> None:
    destinations = make(
        window_initial=3,
        suspend_after=1,
        suspend_min=Duration("1s"),
        suspend_max=Duration("5s"),
    )
    fill(destinations, A, 100)
    await suspend(destinations)
    now = NOW
    for seconds in (1, 2, 4, 5, 5):
        until = now + seconds * SECOND
        assert destinations.next_reopening() == until
        assert destinations.reopen(until - 1) == []
        assert await take_all(destinations) == []
        now = until
        assert destinations.reopen(now) == [A]
        assert destinations.next_reopening() is None
        (probe,) = await take_all(destinations)
        assert destinations.done(probe, True, now) == "suspended"
    now += 5 * SECOND
    destinations.reopen(now)
    (probe,) = await take_all(destinations)
    assert A in destinations.ill()
    assert destinations.done(probe, False, now) == "recovered"
    assert A not in destinations.ill()
    assert len(await take_all(destinations)) == 3  # window_initial


async def test_after_a_recovery_suspensions_are_short_again() -> None:
    destinations = make(window_initial=1, suspend_after=1)
    fill(destinations, A, 20)
    lengths = []
    for failed in (True, True, True, False, True, True):
        one = await destinations.take()
        assert one is not None
        destinations.done(one, failed, NOW)
        if (until := destinations.next_reopening()) is not None:
            lengths.append((until - NOW) // SECOND)
            destinations.reopen(until)
    assert lengths == [1, 2, 4, 1, 2]


async def test_a_probe_that_says_nothing_is_followed_by_another() -> None:
    destinations = make(suspend_after=1)
    fill(destinations, A, 100)
    await suspend(destinations)
    destinations.reopen(NOW + SECOND)
    for _ in range(3):
        (probe,) = await take_all(destinations)
        assert destinations.done(probe, None, NOW + SECOND) is None
    (probe,) = await take_all(destinations)
    assert destinations.done(probe, False, NOW) == "recovered"


@pytest.mark.parametrize("late", [True, False])
async def test_what_was_under_way_at_the_suspension_decides_nothing(late: bool) -> None:
    destinations = make(window_initial=4, suspend_after=1)
    fill(destinations, A, 100)
    taken = await take_all(destinations)
    while destinations.done(taken.pop(), True, NOW) is None:
        taken += await take_all(destinations)
    assert len(taken) >= 2
    # While it is suspended,
    assert destinations.done(taken.pop(), late, NOW) is None
    assert destinations.next_reopening() == NOW + SECOND
    assert destinations.statistics()[A].suspended_until == NOW + SECOND
    # and after: it is not the probe, which waits for it.
    destinations.reopen(NOW + SECOND)
    while taken:
        assert await take_all(destinations) == []
        assert destinations.done(taken.pop(), late, NOW + SECOND) is None
    (probe,) = await take_all(destinations)
    assert destinations.done(probe, True, NOW + SECOND) == "suspended"
    assert destinations.next_reopening() == NOW + 3 * SECOND


async def test_a_clock_that_is_set_back_does_not_prolong_a_suspension() -> None:
    destinations = make(suspend_after=1)
    fill(destinations, A, 100)
    await suspend(destinations)
    assert destinations.reopen(NOW - 3600 * SECOND) == [A]


async def test_suspensions_end_in_their_order() -> None:
    destinations = make(window_initial=1, suspend_after=1)
    names = [f"https://{n}:443" for n in range(20)]
    for number, name in enumerate(names):
        destinations.put(held(name))
        one = await destinations.take()
        assert one is not None
        destinations.done(one, True, NOW - number * SECOND // 100)
    over = []
    now = NOW
    while (following := destinations.next_reopening()) is not None:
        assert following <= now + 2 * SECOND
        now = following
        over += destinations.reopen(now)
    assert over == names[::-1]


async def test_shedding_leaves_the_first() -> None:
    destinations = make()
    filled = fill(destinations, A, 10)
    fill(destinations, B, 10)
    assert set(destinations.shed(A, 4)) == set(filled[4:])
    assert destinations.shed(A, 4) == []
    assert len(destinations) == 14
    assert [one for one in await take_all(destinations) if one in filled] == filled[:4]


async def test_idle_destinations_are_forgotten() -> None:
    destinations = make(window_initial=1, suspend_after=1)
    destinations.put(held("https://in-flight:443"))
    in_flight = await destinations.take()
    destinations.put(held("https://suspended:443"))
    await suspend(destinations, "https://suspended:443")
    fill(destinations, "https://waiting:443", 1)
    waiting = await destinations.take()
    fill(destinations, "https://waiting:443", 2)
    for number in range(20_000):
        destinations.put(held(f"https://{number}:443"))
        one = await destinations.take()
        assert one is not None
        destinations.done(one, False, NOW)
    statistics = destinations.statistics()
    assert len(statistics) <= 4100
    assert statistics["https://in-flight:443"].in_flight == 1
    assert statistics["https://waiting:443"].queued == 2
    assert statistics["https://suspended:443"].suspended_until == NOW + SECOND
    assert in_flight is not None
    assert waiting is not None
    destinations.done(in_flight, True, NOW)
    destinations.done(waiting, True, NOW)
    assert sorted(destinations.reopen(NOW + SECOND)) == [
        "https://in-flight:443",
        "https://suspended:443",
        "https://waiting:443",
    ]


async def test_a_forgotten_destination_is_no_longer_ill() -> None:
    destinations = make(window_initial=1, suspend_after=1)
    destinations.put(held(A))
    await suspend(destinations)
    destinations.reopen(NOW + SECOND)
    for number in range(5000):
        destinations.put(held(f"https://{number}:443"))
        one = await destinations.take()
        assert one is not None
        destinations.done(one, False, NOW)
    assert A not in destinations.statistics()
    assert not destinations.ill()


def test_many_busy_destinations_do_not_cost_the_square() -> None:
    """20,000 destinations with one delivery each: none is idle, and looking for them stops."""
    destinations = make()
    ones = [held(f"https://{number}:443") for number in range(20_000)]
    began = time.process_time()
    for one in ones:
        destinations.put(one)
    assert time.process_time() - began < 2  # it takes a twentieth of a second, not eight
    assert len(destinations.statistics()) == 20_000


async def test_remove() -> None:
    destinations = make()
    first, second, third = fill(destinations, A, 3)
    assert await destinations.take() is first
    assert not destinations.remove(first)  # a sender has it
    assert destinations.remove(second)
    assert not destinations.remove(second)
    assert not destinations.remove(held(B))
    assert len(destinations) == 1
    assert await take_all(destinations) == [third]


async def test_a_destination_whose_queue_was_emptied_loses_only_its_turn() -> None:
    destinations = make()
    (one,) = fill(destinations, A, 1)
    destinations.remove(one)
    fill(destinations, B, 1)
    again = fill(destinations, A, 1)
    assert [one.delivery.destination for one in await take_all(destinations)] in ([A, B], [B, A])
    assert destinations.statistics()[A].in_flight == 1
    destinations.done(again[0], False, NOW)
    assert await take_all(destinations) == []


async def test_close_ends_every_take() -> None:
    destinations = make()
    ended = []

    async def taker() -> None:
        ended.append(await destinations.take())

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(taker)
        await wait_all_tasks_blocked()
        destinations.close()
    assert ended == [None] * 5
    destinations.put(held())
    assert await destinations.take() is None
    assert len(destinations) == 1


async def test_a_cancelled_take_loses_nothing() -> None:
    """Also where the delivery comes in the same moment as the cancellation, before or after it."""
    for put_first in (True, False):
        destinations = make()
        taken: list[Held | None] = []
        scope = trio.CancelScope()

        async def taker(
            scope: trio.CancelScope, into: list[Held | None], destinations: Destinations
        ) -> None:
            with scope:
                into.append(await destinations.take())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(taker, scope, taken, destinations)
            await wait_all_tasks_blocked()
            if put_first:
                destinations.put(held())
            scope.cancel()
            if not put_first:
                destinations.put(held())
        assert len(taken) + len(await take_all(destinations)) == 1


async def test_a_hundred_waiting_takers_are_woken_for_a_hundred_deliveries() -> None:
    destinations = make(concurrency=400, window_initial=100, window_max=100)
    taken: list[Held | None] = []

    async def taker() -> None:
        taken.append(await destinations.take())

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(taker)
        await wait_all_tasks_blocked()
        fill(destinations, A, 100)
        await wait_all_tasks_blocked()
    assert len(taken) == 100


class Turns:
    """Counts how often whoever waits for a turn was woken."""

    def __init__(self, destinations: Destinations) -> None:
        self.destinations = destinations
        self.had = 0

    async def run(self) -> None:
        while not self.destinations.closed:
            if self.destinations.take_now() is None:
                await self.destinations.turn()
                self.had += 1


@pytest.mark.parametrize("how", ["put", "done", "reopened", "governed"])
async def test_nobody_is_woken_while_several_are_gathered(how: str) -> None:
    """For whatever it is that there is something to take now; and `announce` makes up for it."""
    destinations = make(window_initial=1, window_max=1, suspend_after=1)
    fill(destinations, A, 1)
    one = destinations.take_now()
    assert one is not None
    if how != "put":
        fill(destinations, A, 1)
    if how == "reopened":
        destinations.done(one, True, NOW)
    elif how == "governed":
        destinations.govern({A: Rules(disabled="x", shut=True)})
        destinations.done(one, None, NOW)
    turns = Turns(destinations)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.run)
        await wait_all_tasks_blocked()
        destinations.gather()
        if how == "put":
            fill(destinations, B, 1)
        elif how == "done":
            destinations.done(one, None, NOW)
        elif how == "reopened":
            assert destinations.reopen(NOW + SECOND) == [A]
        else:
            destinations.govern({})
        await wait_all_tasks_blocked()
        assert (turns.had, len(destinations)) == (0, 1)
        destinations.announce()
        assert not destinations.gathering
        await wait_all_tasks_blocked()
        assert (turns.had, len(destinations)) == (1, 0)
        destinations.close()


async def test_announce_wakes_only_for_what_is_left() -> None:
    destinations = make(window_initial=2, window_max=2)
    turns = Turns(destinations)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.run)
        await wait_all_tasks_blocked()
        destinations.gather()
        fill(destinations, A, 3)
        fill(destinations, B, 1)
        taken = [destinations.take_now() for _ in range(4)]
        # The third of A would be one too many for its window.
        assert [one is None for one in taken] == [False] * 3 + [True]
        destinations.announce()
        await wait_all_tasks_blocked()
        assert (turns.had, len(destinations)) == (0, 1)
        # Nothing was put in at all.
        destinations.gather()
        destinations.announce()
        await wait_all_tasks_blocked()
        assert turns.had == 0
        # And from now on all is as it was before.
        assert taken[0] is not None
        destinations.done(taken[0], False, NOW)
        await wait_all_tasks_blocked()
        assert (turns.had, len(destinations)) == (1, 0)
        destinations.close()


async def test_closed_while_several_are_gathered() -> None:
    """Whoever waits is told at once, and is given nothing, not even by `announce`."""
    destinations = make()
    ended: list[Held | None] = []

    async def taker() -> None:
        ended.append(await destinations.take())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(taker)
        await wait_all_tasks_blocked()
        destinations.gather()
        fill(destinations, A, 1)
        destinations.close()
        await wait_all_tasks_blocked()
        assert ended == [None]
        destinations.announce()
    assert destinations.take_now() is None
    assert len(destinations) == 1


# One step of the model: what is done, and a number that chooses what it is done to.
STEP = st.tuples(
    st.sampled_from(["put", "put", "ok", "ok", "fail", "none", "remove", "cancel", "time", "more"]),
    st.integers(0, 11),
)


@settings(max_examples=300)
@given(
    limits=st.fixed_dictionaries(
        {
            "concurrency": st.sampled_from([1, 4, 16, 64]),
            "window_initial": st.integers(1, 5),
            "window_max": st.integers(1, 8),
            "suspend_after": st.integers(1, 3),
        }
    ),
    steps=st.lists(STEP, max_size=80),
    together=st.integers(1, 5),
)
def test_model(limits: dict[str, int], steps: list[tuple[str, int]], together: int) -> None:
    """Whatever happens, a few things at a time: no window is exceeded, nothing is lost or handed
    out twice, and nothing eligible waits while a taker does."""
    trio.run(_Model(limits).run, steps, together)


class _Model:
    def __init__(self, limits: dict[str, int]) -> None:
        self.destinations = make(**limits)
        self.now = NOW
        self.queued: list[Held] = []
        self.sending: list[tuple[Held, trio.Event]] = []
        self.parked: dict[int, trio.CancelScope] = {}
        self.numbers = itertools.count()

    async def run(self, steps: list[tuple[str, int]], together: int) -> None:
        async with trio.open_nursery() as nursery:
            self.nursery = nursery
            for _ in range(3):
                nursery.start_soon(self.taker)
            await wait_all_tasks_blocked()
            for start in range(0, len(steps), together):
                for step, number in steps[start : start + together]:
                    self.do(step, number)
                await wait_all_tasks_blocked()
                self.check()
            self.destinations.close()
            await wait_all_tasks_blocked()
            assert not self.parked
            nursery.cancel_scope.cancel()

    async def taker(self) -> None:
        number = next(self.numbers)
        while True:
            with trio.CancelScope() as scope:
                self.parked[number] = scope
                one = await self.destinations.take()
                del self.parked[number]
                if one is None:
                    return
                self.queued.remove(one)
                of_its = self.destinations.statistics()[one.delivery.destination]
                assert of_its.in_flight <= of_its.window
                ended = trio.Event()
                self.sending.append((one, ended))
            if scope.cancelled_caught:
                del self.parked[number]
                return
            await ended.wait()

    def do(self, step: str, number: int) -> None:
        if step == "put":
            one = held((A, B, C)[number % 3])
            self.queued.append(one)
            self.destinations.put(one)
        elif step in ("ok", "fail", "none") and self.sending:
            one, ended = self.sending.pop(number % len(self.sending))
            failed = {"ok": False, "fail": True, "none": None}[step]
            self.destinations.done(one, failed, self.now)
            ended.set()
        elif step == "remove" and self.queued:
            one = self.queued[number % len(self.queued)]
            assert self.destinations.remove(one)
            self.queued.remove(one)
        elif step == "cancel" and self.parked:
            list(self.parked.values())[number % len(self.parked)].cancel()
        elif step == "time":
            self.now += number * SECOND
            self.destinations.reopen(self.now)
        elif step == "more":
            self.nursery.start_soon(self.taker)

    def check(self) -> None:
        assert len(self.destinations) == len(self.queued)
        for name, of_its in self.destinations.statistics().items():
            in_flight = [one for one, _ in self.sending if one.delivery.destination == name]
            assert of_its.in_flight == len(in_flight)
            if self.parked:
                assert not (of_its.queued and of_its.in_flight < of_its.window), "left lying"


# What an answer proves


async def test_errors_close_the_window_but_never_suspend() -> None:
    """5.2: each attempt is owed at its time to a delivery whose receiver does answer."""
    destinations = make(window_initial=4, suspend_after=1)
    fill(destinations, A, 50)
    for number in range(50):
        one = await destinations.take()
        assert one is not None
        later = NOW + number * SECOND
        assert destinations.done(one, True, later, answered=True) is None
    statistics = destinations.statistics()[A]
    assert (statistics.window, statistics.suspended_until) == (1, None)


async def test_an_error_ends_a_row_of_failures() -> None:
    destinations = make(window_initial=1, suspend_after=2)
    fill(destinations, A, 4)
    for answered in (False, True, False):
        one = await destinations.take()
        assert one is not None
        assert destinations.done(one, True, NOW, answered=answered) is None
    one = await destinations.take()
    assert one is not None
    assert destinations.done(one, True, NOW) == "suspended"


async def test_a_probe_that_meets_an_error_reopens() -> None:
    destinations = make(window_initial=3, suspend_after=1)
    fill(destinations, A, 20)
    await suspend(destinations)
    destinations.reopen(NOW + SECOND)
    probe = await destinations.take()
    assert probe is not None
    assert destinations.done(probe, True, NOW + SECOND, answered=True) == "recovered"
    assert destinations.statistics()[A].window == 3


async def test_failures_in_a_short_time_do_not_suspend() -> None:
    """However many: to a port that refuses they cost nothing, and may be over in a moment."""
    destinations = make(window_initial=2, suspend_after=1, suspend_period=Duration("30s"))
    fill(destinations, A, 100)
    for number in range(100):
        one = await destinations.take()
        assert one is not None
        assert destinations.done(one, True, NOW + number * SECOND // 4) is None
    fill(destinations, A, 1)
    one = await destinations.take()
    assert one is not None
    assert destinations.done(one, True, NOW + 30 * SECOND) == "suspended"


async def test_clear_takes_out_what_is_queued_and_nothing_else() -> None:
    destinations = make(window_initial=1)
    queued = fill(destinations, A, 3) + fill(destinations, B, 2)
    one = await destinations.take()
    assert one is queued[0]
    assert destinations.clear() == [*queued[1:3], *queued[3:]]
    assert len(destinations) == 0
    destinations.done(one, False, NOW)
    assert await take_all(destinations) == []
    assert await take_all(destinations) == []
    fill(destinations, A, 1)
    assert len(await take_all(destinations)) == 1


async def test_other_settings_narrow_what_is_too_wide() -> None:
    """Each for the attempts to come; a destination that is known keeps what it has learnt."""
    destinations = make(window_initial=20, window_max=40)
    fill(destinations, A, 50)
    assert len(await take_all(destinations)) == 20
    destinations.reconfigure(DeliverySettings(window_initial=2, window_max=8))
    assert destinations.statistics()[A].window == 8
    fill(destinations, B, 50)
    assert len(await take_all(destinations)) == 2
    destinations.reconfigure(DeliverySettings(window_initial=30, window_max=40, concurrency=12))
    assert destinations.statistics()[A].window == 3
    fill(destinations, C, 50)
    assert len(await take_all(destinations)) == 4 - 1 + 1 - 1


# Rules


class HandClock:
    def __init__(self) -> None:
        self.instant = NOW

    def now(self) -> int:
        return self.instant


def governed(clock: HandClock, rules: Rules, **changes: Any) -> tuple[Destinations, list[int]]:
    """Destinations with rules for A, and when they wanted to be looked at."""
    destinations = Destinations(DeliverySettings(**changes), clock)
    wanted: list[int] = []
    destinations.on_dry = wanted.append
    destinations.govern({A: rules})
    return destinations, wanted


async def test_tokens_come_with_time() -> None:
    clock = HandClock()
    destinations, wanted = governed(clock, Rules(rate=2, burst=3), window_initial=64)
    fill(destinations, A, 20)
    fill(destinations, B, 2)
    assert len(await take_all(destinations)) == 3 + 2
    assert wanted == [NOW + SECOND // 2] == [destinations.next_reopening()]
    clock.instant += SECOND // 2 - 1
    assert destinations.reopen(clock.instant) == []
    assert await take_all(destinations) == []
    clock.instant += 1
    destinations.reopen(clock.instant)
    assert len(await take_all(destinations)) == 1
    clock.instant += 10 * SECOND  # never more than the burst
    destinations.reopen(clock.instant)
    assert len(await take_all(destinations)) == 3


async def test_a_clock_set_back_keeps_nobody_waiting() -> None:
    """A day back: the bucket is refilled at the next look, not a day later."""
    clock = HandClock()
    destinations, _ = governed(clock, Rules(rate=1), window_initial=64)
    fill(destinations, A, 3)
    assert len(await take_all(destinations)) == 1
    clock.instant -= 86_400 * SECOND
    destinations.reopen(clock.instant)
    assert len(await take_all(destinations)) == 1
    clock.instant += 2 * SECOND
    destinations.reopen(clock.instant)
    assert len(await take_all(destinations)) == 1


async def test_suspended_and_out_of_tokens() -> None:
    """A probe is one attempt like any other; it waits for its token, too."""
    clock = HandClock()
    rules = Rules(rate=0.1, burst=5)
    destinations, _ = governed(
        clock, rules, suspend_period=Duration("0s"), suspend_min=Duration("1s")
    )
    fill(destinations, A, 50)
    while destinations.statistics()[A].suspended_until is None:
        clock.instant += 10 * SECOND
        destinations.reopen(clock.instant)
        for one in await take_all(destinations):
            destinations.done(one, True, clock.instant)
    clock.instant += SECOND
    assert destinations.reopen(clock.instant) == [A]
    assert await take_all(destinations) == []
    clock.instant += 9 * SECOND
    destinations.reopen(clock.instant)
    assert len(await take_all(destinations)) == 1


async def test_a_shut_destination_gets_no_turn_and_is_among_the_ill() -> None:
    destinations, _ = governed(HandClock(), Rules(disabled="x", shut=True))
    fill(destinations, A, 3)
    fill(destinations, B, 3)
    assert {one.delivery.destination for one in await take_all(destinations)} == {B}
    assert (set(destinations.ill()), destinations.is_shut(A)) == ({A}, True)
    assert destinations.statistics()[A].window == 0
    assert destinations.next_reopening() is None
    destinations.govern({})
    assert (set(destinations.ill()), destinations.is_shut(A)) == (set(), False)
    assert len(await take_all(destinations)) == 3


async def test_shut_while_it_is_suspended_it_stays_ill_until_both_are_over() -> None:
    destinations = make(suspend_min=Duration("1s"))
    fill(destinations, A, 100)
    await suspend(destinations)
    destinations.govern({A: Rules(disabled="x", shut=True)})
    assert destinations.reopen(NOW + SECOND) == [A]
    assert await take_all(destinations) == []
    destinations.govern({})
    assert set(destinations.ill()) == {A}
    (probe,) = await take_all(destinations)
    assert destinations.done(probe, False, NOW + SECOND) == "recovered"
    assert set(destinations.ill()) == set()
