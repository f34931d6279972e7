"""After which commits the writer waits for more."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primeflowd.sql.gathering import EACH, MANY, PAUSE, Gathering


class Seconds:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("operations", "rows", "pauses"),
    [
        (2, 400, False),  # a bulk request, and the attempts of the one before
        (3, 600, True),  # two, and the attempts of another
        (1, MANY, True),
        (1, MANY - 1, False),
        (65, 256, False),  # 64 clients with a batch each, and the attempts of 64
        (513, 2048, False),  # 512
        (1000, 4000, False),
        (20, EACH * 20, True),
        (20, EACH * 20 - 1, False),
        (0, 0, False),
    ],
)
def test_it_pauses_after_many_rows_of_few_operations(
    operations: int, rows: int, pauses: bool
) -> None:
    gathering = Gathering(Seconds())
    gathering.committed(operations, rows)
    assert gathering.seconds == (pytest.approx(PAUSE) if pauses else 0.0)


def test_a_new_one_does_not_wait() -> None:
    assert Gathering(Seconds()).seconds == 0.0


def test_a_small_commit_ends_the_pause() -> None:
    gathering = Gathering(Seconds())
    gathering.committed(1, MANY)
    gathering.committed(1, 2)
    assert gathering.seconds == 0.0


@given(later=st.floats(0, 10))
def test_what_comes_later_waits_for_what_is_left(later: float) -> None:
    clock = Seconds()
    gathering = Gathering(clock)
    gathering.committed(3, 600)
    clock.now += later
    assert gathering.seconds == pytest.approx(max(0.0, PAUSE - later), abs=1e-9)
