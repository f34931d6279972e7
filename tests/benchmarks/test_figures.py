import math

from hypothesis import given
from hypothesis import strategies as st

from tests.benchmarks.figures import percentile, ratios, spread
from tests.benchmarks.soak import flatness

numbers = st.lists(st.floats(-1e9, 1e9), min_size=1)


def test_percentile_by_hand() -> None:
    samples = [float(n) for n in range(100, 0, -1)]
    assert [percentile(samples, p) for p in (0.0, 0.5, 0.99, 1.0)] == [1.0, 50.0, 99.0, 100.0]
    assert percentile([7.0], 0.99) == 7.0
    assert math.isnan(percentile([], 0.5))


@given(numbers, st.floats(0, 1))
def test_percentile_is_the_least_sample_that_so_many_do_not_exceed(
    samples: list[float], fraction: float
) -> None:
    found = percentile(samples, fraction)
    assert found in samples
    assert sum(s <= found for s in samples) >= fraction * len(samples)
    assert sum(s < found for s in samples) < max(1, fraction * len(samples))


def test_a_spread_shows_median_and_range() -> None:
    assert spread([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    assert spread([1234.4, 1200.0, 1300.0]).text(0) == "1,234 (1,200-1,300)"
    assert spread([0.1234]).text() == "0.123 (0.123-0.123)"
    assert spread([12.34]).text() == "12.3 (12.3-12.3)"
    assert spread([0.0]).text() == "0 (0-0)"
    assert spread([]).text() == "-"


def test_ratios_are_taken_round_by_round() -> None:
    # The second round was disturbed; both had their share of it.
    assert ratios([10.0, 100.0, 12.0], [5.0, 50.0, 6.0]) == (2.0, 2.0, 2.0)


def test_flatness_compares_the_last_third_with_the_first() -> None:
    assert flatness([10, 10, 10, 50, 50, 50, 10.5, 10.5, 10.5], 1.1) == (10, 10.5, True)
    assert flatness([10, 10, 10, 10, 10, 10, 12, 12, 12], 1.1) == (10, 12, False)
    assert flatness([10], 1.1) == (10, 10, True)
