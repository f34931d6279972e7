"""timer_wheel.py, against a plain dictionary of due instants."""

import copy
import random
import tracemalloc

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from primeflowd.instants import MILLISECOND, SECOND, Micros
from primeflowd.timer_wheel import TimerWheel

TICK = 50 * MILLISECOND
NOW = 1_700_000_000 * SECOND

keys = st.integers(0, 12)
# Near each other, so that keys share buckets, and on the edges of ticks as often as inside.
offsets = st.one_of(
    st.integers(-3, 12).map(lambda ticks: ticks * TICK),
    st.integers(-3, 12).map(lambda ticks: ticks * TICK - 1),
    st.integers(-2 * TICK, 12 * TICK),
)


class WheelAgainstDictionary(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.wheel = TimerWheel[int](TICK)
        self.due: dict[int, Micros] = {}
        self.now = NOW

    @rule(key=keys, offset=offsets)
    def add(self, key: int, offset: Micros) -> None:
        self.wheel.add(key, self.now + offset)
        self.due[key] = self.now + offset

    @rule(key=keys)
    def cancel(self, key: int) -> None:
        assert self.wheel.cancel(key) == (key in self.due)
        self.due.pop(key, None)

    @rule(step=offsets)
    def advance(self, step: Micros) -> None:
        """Steps back as well: the system's clock may be set."""
        self.now += step
        fired = self.wheel.advance(self.now)
        assert len(fired) == len(set(fired)), "each key once"
        ticks = []
        for key in fired:
            due = self.due.pop(key)  # a KeyError here: cancelled, or fired before
            assert due <= self.now, "never early"
            ticks.append(-(-due // TICK))
        assert ticks == sorted(ticks), "in the order of the buckets"
        assert all(due > self.now - TICK for due in self.due.values()), "at most one tick late"

    @rule()
    def advance_to_next_due(self) -> None:
        if (next_due := self.wheel.next_due()) is not None:
            self.advance(next_due - self.now)

    @invariant()
    def knows_what_waits(self) -> None:
        assert len(self.wheel) == len(self.due)
        assert all((key in self.wheel) == (key in self.due) for key in range(13))

    @invariant()
    def next_due_is_the_first_instant_that_fires_anything(self) -> None:
        next_due = self.wheel.next_due()
        if next_due is None:
            assert not self.due
            return
        assert copy.deepcopy(self.wheel).advance(next_due - 1) == []
        assert copy.deepcopy(self.wheel).advance(next_due) != []


TestWheelAgainstDictionary = WheelAgainstDictionary.TestCase


def test_a_key_fires_at_the_end_of_its_tick() -> None:
    """3.6: never early."""
    wheel = TimerWheel[str](TICK)
    wheel.add("on the edge", NOW)
    wheel.add("just after", NOW + 1)
    assert wheel.next_due() == NOW
    assert wheel.advance(NOW - 1) == []
    assert wheel.advance(NOW) == ["on the edge"]
    assert wheel.next_due() == NOW + TICK
    assert wheel.advance(NOW + TICK - 1) == []
    assert wheel.advance(NOW + TICK) == ["just after"]
    assert wheel.next_due() is None


def test_adding_again_moves() -> None:
    wheel = TimerWheel[str](TICK)
    wheel.add("key", NOW + 10 * TICK)
    wheel.add("key", NOW)
    assert len(wheel) == 1
    assert wheel.advance(NOW) == ["key"]
    assert wheel.advance(NOW + 20 * TICK) == []


def test_a_bucket_that_was_emptied_and_filled_anew_fires_once() -> None:
    """The tick is then twice in the heap."""
    wheel = TimerWheel[str](TICK)
    wheel.add("first", NOW)
    wheel.cancel("first")
    wheel.add("second", NOW)
    assert wheel.advance(NOW) == ["second"]
    assert wheel.advance(NOW) == []
    wheel.add("third", NOW)
    assert wheel.advance(NOW) == ["third"]


def test_what_is_long_overdue_comes_with_the_next_call_in_order() -> None:
    wheel = TimerWheel[int](TICK)
    for age in (1, 3, 2):
        wheel.add(age, NOW - age * SECOND)
    assert wheel.next_due() == NOW - 3 * SECOND
    assert wheel.advance(NOW) == [3, 2, 1]


def test_next_due_skips_what_was_cancelled() -> None:
    wheel = TimerWheel[str](TICK)
    wheel.add("soon", NOW)
    wheel.add("later", NOW + SECOND)
    wheel.cancel("soon")
    assert wheel.next_due() == NOW + SECOND
    wheel.cancel("later")
    assert wheel.next_due() is None


def test_order_survives_the_cancelling_of_nearly_all() -> None:
    """What is left of the heap of ticks is a heap; the state machine above has too few keys."""
    chance = random.Random(1)
    wheel = TimerWheel[int](TICK)
    waiting = chance.sample(range(500), 500)
    for tick in waiting:
        wheel.add(tick, tick * TICK)
    while len(waiting) > 5:
        assert wheel.cancel(waiting.pop(chance.randrange(len(waiting))))
        assert wheel.next_due() == min(waiting) * TICK
    assert wheel.advance(500 * TICK) == sorted(waiting)


@pytest.mark.parametrize("move", [False, True])
def test_memory_follows_the_keys_that_wait(move: bool) -> None:
    """Neither cancelled keys nor the ticks that they stood in pile up."""
    wheel = TimerWheel[str](TICK)
    for far in range(50):
        wheel.add(f"stays {far}", NOW + far * SECOND)

    def cycle(times: int) -> None:
        for tick in range(times):
            wheel.add("key", NOW + tick * TICK)
            if not move:
                wheel.cancel("key")

    cycle(1_000)  # lets containers grow to the size that they keep
    tracemalloc.start()
    try:
        cycle(20_000)
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 20_000


def test_a_tick_has_a_width() -> None:
    with pytest.raises(ValueError, match="at least one microsecond"):
        TimerWheel[str](0)


def test_clear_takes_out_everything() -> None:
    wheel: TimerWheel[str] = TimerWheel(tick=10)
    for number in range(100):
        wheel.add(f"key {number}", number)
    wheel.cancel("key 5")
    assert len(wheel.clear()) == 99
    assert (len(wheel), wheel.next_due(), wheel.advance(1_000)) == (0, None, [])
    wheel.add("later", 50)
    assert wheel.advance(60) == ["later"]
