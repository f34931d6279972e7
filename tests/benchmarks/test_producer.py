"""The pace of a job, its clock given."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.benchmarks.ledger import Arrivals, read_stamps, write_stamps
from tests.benchmarks.producer import Body, Job, Pace, Settings

SECOND = 1_000_000_000


class Track:
    """A settings object over real files, and a way to let callbacks arrive."""

    def __init__(self, directory: Path, size: int) -> None:
        self.arrivals = Arrivals(directory / "arrivals", 100)
        self.stamps = directory / "stamps"
        self.settings = Settings(
            arrivals=str(self.arrivals.path),
            stamps=str(self.stamps),
            size=size,
            connections=1,
            receiver_port=80,
            hosts=50,
            target={},
        )

    def arrive(self, in_all: int) -> None:
        self.arrivals.control(0, in_all)

    def pace(self, job: Job, at: int = 0) -> Pace:
        return Pace(self.settings, job, lambda: at)


@pytest.fixture
def track(tmp_path: Path) -> Track:
    return Track(tmp_path, 1)


def test_a_closed_job_keeps_outstanding_within_the_bound(track: Track) -> None:
    track.arrive(30)  # in earlier jobs
    pace = track.pace(Job(first=40, until=SECOND, bound=3, rate=None))
    taken = 0
    while pace.is_due(0):
        pace.take(0)
        taken += 1
    assert taken == 3
    track.arrive(32)
    assert pace.is_due(0)
    pace.take(0)
    pace.take(0)
    assert not pace.is_due(0)
    pace.refuse(44)  # will never arrive, so it is not outstanding
    assert pace.is_due(0)


def test_a_request_of_several_goes_only_if_all_are_within_the_bound(track: Track) -> None:
    track.settings = replace(track.settings, size=2)
    pace = track.pace(Job(first=0, until=SECOND, bound=3, rate=None))
    assert pace.take(0) == range(2)
    assert not pace.is_due(0)
    track.arrive(1)
    assert pace.is_due(0)
    assert pace.take(0) == range(2, 4)


def test_an_open_job_is_evenly_paced_whatever_arrives(track: Track) -> None:
    pace = track.pace(Job(first=0, until=SECOND, bound=1, rate=10.0))
    due = []
    for now in range(0, SECOND, SECOND // 100):
        while pace.is_due(now):
            pace.take(now)
            due.append(now)
    assert due == list(range(0, SECOND, SECOND // 10))
    assert pace.is_over(SECOND)
    assert not pace.is_over(SECOND - 1)


def test_an_open_job_that_was_held_up_makes_up_for_it(track: Track) -> None:
    pace = track.pace(Job(first=0, until=SECOND, bound=1, rate=10.0))
    taken = 0
    while pace.is_due(SECOND // 2):
        pace.take(SECOND // 2)
        taken += 1
    assert taken == 6
    assert pace.wait(SECOND // 2) == pytest.approx(0.1)


def test_what_was_refused_has_no_stamps(track: Track) -> None:
    pace = track.pace(Job(first=5, until=SECOND, bound=9, rate=None))
    for now in (100, 200, 300):
        pace.take(now)
    pace.accept(5, 150)
    pace.refuse(6)
    pace.accept(7, 350)
    reply = pace.close(track.stamps)
    assert (reply.taken, reply.refused) == (3, 1)
    assert read_stamps(track.stamps, 5, 3) == [(100, 150), (0, 0), (300, 350)]


def test_stamps_of_several_jobs_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = tmp_path / "stamps"
    write_stamps(path, 4, [40, 50], [41, 51])
    write_stamps(path, 0, [10], [11])
    assert read_stamps(path, 0, 6) == [(10, 11), (0, 0), (0, 0), (0, 0), (40, 41), (50, 51)]


def test_bodies_are_json_of_600_bytes_and_differ_in_their_number() -> None:
    body = Body()
    assert len(body.text(1)) == len(body.template) == 600
    assert json.loads(body.text(42))["metadata"] == {"customer": "0000000042"}
    assert body.text(42).replace("0000000042", "#" * 10) == body.template
