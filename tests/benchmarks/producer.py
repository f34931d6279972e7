"""Who hands callbacks in: the part that all producers share. Standard library only.

A producer is a process of its own. It reads its settings, then jobs, as JSON objects on lines of
its standard input, and answers each with a line. A job hands numbered callbacks in until an
instant, either

* closed: as fast as the contender accepts them, while at most `bound` are outstanding (accepted
  or being accepted, and not arrived). Without that bound a queue that accepts faster than it
  delivers would be measured filling up; or
* open: at a steady rate, whatever happens to them, so that waiting counts as latency.

What it notes of each callback is when it was handed in and when that was answered; see ledger.py.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.ledger import write_stamps

IDLE = 0.0005
"""Seconds between two looks at how many are outstanding."""


@dataclass(frozen=True)
class Settings:
    """What stays the same over a run.

    Attributes:
        arrivals, stamps: the files of ledger.py.
        size: callbacks in one request, call or command.
        connections: requests under way at once, where the producer can have several.
        receiver_port, hosts: callbacks go to 127.0.0.1, 127.0.0.2, ... in turns.
        target: how to reach the contender; known to both of its modules alone.
    """

    arrivals: str
    stamps: str
    size: int
    connections: int
    receiver_port: int
    hosts: int
    target: dict[str, Any]

    def url(self, number: int) -> str:
        """Where this callback goes."""
        host = number % self.hosts + 1
        return f"http://127.0.0.{host}:{self.receiver_port}/c/{number:010d}"


@dataclass(frozen=True)
class Job:
    """Numbers from `first` on, until `until` (nanoseconds); closed where there is no `rate`."""

    first: int
    until: int
    bound: int
    rate: float | None


@dataclass(frozen=True)
class Reply:
    """How many numbers a job used, and how many of these were not accepted."""

    taken: int
    refused: int


class Pace:
    """Decides when the next callbacks go, and keeps the books of one job."""

    def __init__(self, settings: Settings, job: Job, clock: Callable[[], int]) -> None:
        self._size = settings.size
        self._job = job
        self._arrivals = os.open(settings.arrivals, os.O_RDONLY)
        self._delivered_before = self._delivered()
        self._began = clock()
        self._sent: list[int] = []
        self._accepted: list[int] = []
        self._refused = 0

    @property
    def is_open(self) -> bool:
        return self._job.rate is not None

    def is_over(self, now: int) -> bool:
        return now >= self._job.until

    def is_due(self, now: int) -> bool:
        """May another request go now?"""
        if self._job.rate is not None:
            return now >= self._due_at()
        held_up = len(self._sent) - self._refused - (self._delivered() - self._delivered_before)
        return held_up + self._size <= self._job.bound

    def wait(self, now: int) -> float:
        """Seconds until is_due() is worth asking again."""
        if self._job.rate is None:
            return IDLE
        return max(0.0, (min(self._due_at(), self._job.until) - now) / 1e9)

    def take(self, now: int) -> range:
        """The numbers of the next request; they are handed in at `now`."""
        first = self._job.first + len(self._sent)
        self._sent += [now] * self._size
        self._accepted += [0] * self._size
        return range(first, first + self._size)

    def accept(self, number: int, now: int) -> None:
        self._accepted[number - self._job.first] = now

    def refuse(self, number: int) -> None:
        """It was answered, with no: nothing may arrive for it."""
        self._sent[number - self._job.first] = 0
        self._refused += 1

    def close(self, stamps: Path) -> Reply:
        """Write the books."""
        os.close(self._arrivals)
        write_stamps(stamps, self._job.first, self._sent, self._accepted)
        return Reply(len(self._sent), self._refused)

    def _due_at(self) -> int:
        assert self._job.rate is not None
        return self._began + int(len(self._sent) / self._job.rate * 1e9)

    def _delivered(self) -> int:
        return int.from_bytes(os.pread(self._arrivals, 8, 0), sys.byteorder)


class Body:
    """The payload that an app would have made: as long, and of the same keys, as primeflowd's.

    Attributes:
        template: has ten `#` where the number stands.
    """

    def __init__(self) -> None:
        callback = {**payload(), "metadata": {"customer": "#" * 10}}
        self.template = json.dumps(callback, separators=(",", ":"))
        self._before, self._after = self.template.split("#" * 10)

    def text(self, number: int) -> str:
        return f"{self._before}{number:010d}{self._after}"


def payload() -> dict[str, Any]:
    """A callback without its metadata; what primeflowd makes of `batch()` looks like this."""
    return {
        "event": "batch.succeeded",
        "batch_id": "01920000-0000-7000-8000-00000000abcd",
        "status": "succeeded",
        "output": output(),
        "duration_ms": 0,
        "created_at": "2026-05-06T10:00:01.500000+00:00",
        "completed_at": "2026-05-06T10:00:01.500000+00:00",
    }


def output() -> dict[str, Any]:
    """What makes callbacks about 600 bytes long."""
    return {"rows": 1234, "note": "x" * 318}


def serve(prepare: Callable[[Settings], Callable[[Pace], None]]) -> None:
    """Read settings and jobs until the input ends.

    `prepare` connects and returns what does a job: it asks the pace until that is over, and
    returns when all requests are answered.
    """
    settings = Settings(**json.loads(sys.stdin.readline()))
    work = prepare(settings)
    for line in sys.stdin:
        pace = Pace(settings, Job(**json.loads(line)), time.monotonic_ns)
        work(pace)
        print(json.dumps(asdict(pace.close(Path(settings.stamps)))), flush=True)
