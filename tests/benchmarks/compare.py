"""The comparison: all contenders in one run, in turns, on one machine."""

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.benchmarks import machine, receiver
from tests.benchmarks.contenders.contender import Bench, Definition, NotInstalled
from tests.benchmarks.contenders.table import contenders
from tests.benchmarks.ledger import NOTHING
from tests.benchmarks.rounds import Entrant, Plan, Sample, Track, check, in_turns


@dataclass(frozen=True)
class Comparison:
    """All that was found.

    Attributes:
        definitions: every row of the table, run or not.
        not_run: why, by name.
        rounds: samples by round.
    """

    definitions: tuple[Definition, ...]
    not_run: Mapping[str, str]
    versions: Mapping[str, str]
    facts: Mapping[str, str]
    plan: Plan
    rounds: list[list[Sample]]
    took: float


def tell(text: str) -> None:
    """Progress, apart from the result."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def bench(disk: Path, cache: Path) -> Iterator[Bench]:
    """A receiver, and a directory on the disk that is to be measured.

    The ledger lies in memory where it can: it is not what is measured.
    """
    cores = machine.apart()
    os.sched_setaffinity(0, cores.load)
    memory = Path("/dev/shm")
    with (
        tempfile.TemporaryDirectory(prefix="benchmark-", dir=disk) as directory,
        tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as ledger,
        receiver.running(Path(ledger), cache, cores) as running,
    ):
        yield Bench(Path(directory), cache, running)


def compare(plan: Plan, disk: Path, cache: Path, only: str) -> Comparison:
    """Raises Failed, when a contender loses or repeats a callback."""
    began = time.monotonic()
    rows = contenders(machine.apart(), machine.together())
    definitions = tuple(each for each in rows if only.lower() in each.name.lower())
    facts = machine.facts(disk)
    not_run: dict[str, str] = {}
    versions: dict[str, str] = {}
    with bench(disk, cache) as given:
        facts["receiver"] = given.receiver.kind
        starts = []
        for definition in definitions:
            try:
                versions |= definition.versions(given)
            except NotInstalled as missing:
                not_run[definition.name] = str(missing)
            else:
                starts.append(partial(_entrant, definition, given))
        rounds, accepted = in_turns(Track(given.receiver), starts, plan, tell)
        # A repetition may come late.
        time.sleep(1)
        check("some contender", NOTHING, accepted, given.receiver.arrivals.counts())
    took = time.monotonic() - began
    return Comparison(definitions, not_run, versions, facts, plan, rounds, took)


@contextlib.contextmanager
def _entrant(definition: Definition, given: Bench) -> Iterator[Entrant]:
    with definition.start(given) as contender:
        yield Entrant(definition.name, definition.cores, contender)
