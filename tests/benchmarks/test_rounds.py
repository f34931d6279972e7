"""A run that loses or repeats a callback must fail."""

import pytest

from tests.benchmarks.contenders.contender import Failed
from tests.benchmarks.ledger import NOTHING, Counts
from tests.benchmarks.rounds import check

GOOD = Counts(10, 0, 10, 0, 0, 6000, 0, 0)


def test_what_was_accepted_has_arrived() -> None:
    check("x", NOTHING, 10, GOOD)
    check("x", GOOD, 5, GOOD._replace(delivered=15, requests=15))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (GOOD._replace(delivered=9), "10 accepted, but 9 arrived"),
        (GOOD._replace(delivered=11), "10 accepted, but 11 arrived"),
        (GOOD._replace(repeated=1), "REPEATED 1"),
        (GOOD._replace(unknown=1), "no signed callbacks"),
        (GOOD._replace(unsigned=1), "no signed callbacks"),
    ],
)
def test_anything_else_fails_the_run(wrong: Counts, says: str) -> None:
    with pytest.raises(Failed, match=says) as raised:
        check("x", NOTHING, 10, wrong)
    assert isinstance(raised.value.code, str)  # printed, and the exit code is 1
