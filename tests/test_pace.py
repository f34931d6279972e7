"""How much at once: by what it took before."""

from hypothesis import given
from hypothesis import strategies as st

from primeflowd.pace import BUSY, LATE, LEAST, QUIET, Pace, Speed


@given(st.floats(1e-6, 1e-4), st.floats(0, 4e-4), st.sampled_from([BUSY, LATE, QUIET]))
def test_a_step_takes_what_it_should(each: float, always: float, pace: Pace) -> None:
    """Of whatever rows take, and any step by itself; soon, and from then on."""
    speed = Speed()
    for turn in range(30):
        rows = speed.rows(pace.aim, pace.most)
        took = always + rows * each
        assert LEAST <= rows <= pace.most
        assert turn < 5 or rows == LEAST or took < 1.3 * pace.aim
        speed.learn(rows, took)
    assert rows in {LEAST, pace.most} or took > 0.7 * pace.aim


def test_a_step_of_few_rows_says_nothing() -> None:
    speed = Speed()
    speed.learn(LEAST - 1, 10.0)
    assert speed.rows(BUSY.aim, BUSY.most) == 2 * LEAST


def test_a_slow_step_is_made_up_for() -> None:
    """One that had to wait, say for the disk, does not make the next ones short for long."""
    speed = Speed()
    for _ in range(10):
        rows = speed.rows(BUSY.aim, BUSY.most)
        speed.learn(rows, rows * 5e-6)
    speed.learn(rows, 20 * BUSY.aim)
    assert speed.rows(BUSY.aim, BUSY.most) < 50
    for _ in range(8):
        rows = speed.rows(BUSY.aim, BUSY.most)
        speed.learn(rows, rows * 5e-6)
    assert rows > 150
