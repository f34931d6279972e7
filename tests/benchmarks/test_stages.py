"""A daemon that notes where its callbacks are, and the report of that."""

import os
from pathlib import Path

import pytest

from tests.benchmarks import machine, stages
from tests.benchmarks.compare import bench
from tests.benchmarks.passages import STAGES, SUMS, Latency
from tests.benchmarks.rounds import Plan, Track
from tests.benchmarks.stages_report import FULL, HALF, PLAIN, STAMPED, STEADY, Round, markdown
from tests.benchmarks.test_report import rows, sample


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_all_instants_of_a_callback_are_noted(tmp_path: Path) -> None:
    """One that is missing would fail the measurement, as would one lost or repeated."""
    with (
        # A bench keeps to the cores of the load for good.
        machine.pinned(os.sched_getaffinity(0)),
        bench(tmp_path, tmp_path) as given,
        stages.watching(given) as watched,
    ):
        track = Track(given.receiver)
        for _ in range(2):
            found, took = watched.measure(track, Plan(1, 0.3, 0.1), 100.0, STEADY)
    assert watched.entrant.accepted == track.next_number > found.accepted > 0
    assert (found.contender, found.load, found.refused) == (STAMPED, STEADY, 0)
    # They are in order: the clocks of all of them are one, to the microsecond of the record.
    assert all(took[name].p50 > 0 for name in (*STAGES, *SUMS))
    assert took["taken in to arrived"].p50 < took["handed in to arrived"].p50


def round_of(noise: float) -> Round:
    samples = [
        sample(name, load, cpu * noise)
        for name, cpu in ((PLAIN, 100.0), (STAMPED, 102.0))
        for load in (FULL, HALF, STEADY)
    ]
    took = {name: Latency(k * noise, 10 * k * noise) for k, name in enumerate((*STAGES, *SUMS), 1)}
    return Round(samples, {HALF: took, STEADY: dict.fromkeys(took, Latency(0.5, 0.25))})


def test_the_report_has_medians_and_ranges() -> None:
    text = markdown([round_of(k) for k in (1, 3, 2)], 1_000, "note", {"kernel": "6"})
    found = rows(text)
    assert found["taken in to durable"][1:] == [
        "4.00 (2.00-6.00)", "40.00 (20.00-60.00)", "0.50 (0.50-0.50)", "0.25 (0.25-0.25)",
    ]  # fmt: skip
    assert found["**handed in to arrived**"][1] == "10.00 (5.00-15.00)"
    assert found[STAMPED][2:4] == ["204.0 (102.0-306.0)", "1.02 (1.02-1.02)"]
    assert found[PLAIN][2:4] == ["200.0 (100.0-300.0)", "1.00 (1.00-1.00)"]
    assert "- kernel: 6" in text
