"""The arithmetic of `--stages`."""

import math

import pytest

from tests.benchmarks.contenders.contender import Failed
from tests.benchmarks.passages import STAGES, SUMS, Latency, Passage, joined, latencies

MS = 1_000_000


def test_each_stage_begins_where_the_one_before_ended() -> None:
    [found] = joined({7: 1 * MS}, {7: (2 * MS, 4 * MS)}, {7: 8 * MS}, {7: 16 * MS})
    took = {name: each.p50 for name, each in latencies([found]).items()}
    assert [took[name] for name in STAGES] == [1, 2, 4, 8]
    assert [took[name] for name in SUMS] == [15, 14]


def test_percentiles_are_of_each_stage_by_itself() -> None:
    slow_to_start = [Passage(0, k * MS, 100 * MS, 200 * MS, 300 * MS) for k in range(1, 101)]
    found = latencies(slow_to_start)
    assert found["handed in to taken in"] == Latency(50, 99)
    assert found["taken in to durable"] == Latency(49, 98)
    assert found["handed in to arrived"] == Latency(300, 300)


def test_only_what_was_handed_in_counts() -> None:
    at = {1: 1, 2: 2}
    inside = {1: (1, 1), 2: (2, 2)}
    assert [each.handed_in for each in joined({2: 2}, inside, at, at)] == [2]
    assert joined({}, inside, at, at) == []
    assert math.isnan(latencies([])["handed in to arrived"].p50)


@pytest.mark.parametrize("missing", range(4))
def test_an_instant_that_is_missing_fails_the_run(missing: int) -> None:
    noted = [1, 1, 1, 1]
    noted[missing] = 0
    taken_in, durable, started, arrived = noted
    with pytest.raises(Failed, match="callback 3 left no trace"):
        joined({3: 1}, {3: (taken_in, durable)}, {3: started}, {3: arrived})


def test_a_callback_without_any_record_fails_the_run() -> None:
    with pytest.raises(Failed, match="callback 3 left no trace"):
        joined({3: 1}, {}, {}, {3: 5})
