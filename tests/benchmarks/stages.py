"""`--stages`: where the time of a callback goes.

Two nodes that are handed single POSTs, both as the row "primeflowd, single POST" has it, but that
one of them notes with a plugin when each callback was where; see stamping.py. They are measured in
turns, at full load, at half of what each reached in the same round, and at a rate that stays the
same: so what the noting costs is in the report. When an attempt started is read from the record of
it, afterwards.
"""

import contextlib
import dataclasses
import json
import os
import platform
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import sqlalchemy
from sqlalchemy import func, select

from primeflowd import __version__
from primeflowd.sql.tables import attempts, deliveries
from tests.benchmarks import machine
from tests.benchmarks.compare import bench, tell
from tests.benchmarks.contenders.books import Books
from tests.benchmarks.contenders.contender import REPOSITORY, Bench, Failed, http_producer
from tests.benchmarks.contenders.node import Node
from tests.benchmarks.contenders.primeflowd import CONNECTIONS, Running, start_nodes
from tests.benchmarks.ledger import NOTHING, STAMP, read_stamps
from tests.benchmarks.passages import Latency, joined, latencies
from tests.benchmarks.receiver import CAPACITY, Receiver
from tests.benchmarks.report import write
from tests.benchmarks.rounds import Entrant, Plan, Sample, Track, check
from tests.benchmarks.stages_report import FULL, HALF, PLAIN, STAMPED, STEADY, Round, markdown
from tests.benchmarks.stamping import NAME, PREFIX
from tests.distributions import Distributions

STEADY_RATE: Final = 1_000.0

_DRIFT: Final = 1_000_000
"""Nanoseconds by which the time of day may move against the monotonic clock meanwhile."""


class Watched:
    """The node that notes: measures it, and reads what was noted afterwards."""

    def __init__(self, entrant: Entrant, receiver: Receiver, stamps: Path, url: str) -> None:
        self.entrant = entrant
        self._receiver = receiver
        self._stamps = stamps
        self._engine = sqlalchemy.create_engine(url)

    def measure(
        self, track: Track, plan: Plan, rate: float, load: str
    ) -> tuple[Sample, dict[str, Latency]]:
        """The usual figures, and the latencies of the stages.

        Raises:
            Failed: a callback was lost or repeated, an instant of one is missing, or the time of
                day was set.
        """
        first, newest, offset = track.next_number, self._newest(), _offset()
        sample = _measure(track, self.entrant, plan, rate, load)
        count, now = track.next_number - first, _offset()
        if abs(now - offset) > _DRIFT:
            raise Failed("the time of day was set meanwhile: when attempts started is not known")
        handed_in = {
            first + k: sent
            for k, (sent, _) in enumerate(read_stamps(self._receiver.stamps, first, count))
            if sent
        }
        inside = dict(enumerate(read_stamps(self._stamps, first, count), first))
        slots = enumerate(self._receiver.arrivals.slots(first, count), first)
        arrived = {number: slot.arrived_at for number, slot in slots}
        passages = joined(handed_in, inside, self._started(newest, now), arrived)
        begin = min(handed_in.values(), default=0) + plan.warm_up * 1e9
        return sample, latencies([each for each in passages if each.handed_in >= begin])

    def close(self) -> None:
        self._engine.dispose()

    def _newest(self) -> str:
        with self._engine.connect() as connection:
            return connection.scalar(select(func.max(deliveries.c.id))) or ""

    def _started(self, newest: str, offset: int) -> dict[int, int]:
        """By number, when the attempts started of deliveries made since; each has one."""
        query = (
            select(deliveries.c.callback_url, attempts.c.created_at)
            .join(attempts, attempts.c.delivery_id == deliveries.c.id)
            .where(deliveries.c.id > newest)
        )
        with self._engine.connect() as connection:
            return {
                int(url.rpartition("/")[2]): micros * 1_000 - offset
                for url, micros in connection.execute(query)
            }


def run(plan: Plan, disk: Path, cache: Path, output: Path, command: str) -> None:
    """Measure, write stages.md and stages.json, print.

    Raises:
        Failed: see Watched.measure.
    """
    began, facts = time.monotonic(), machine.facts(disk)
    with bench(disk, cache) as given, contextlib.ExitStack() as stack:
        facts["receiver"] = given.receiver.kind
        track = Track(given.receiver)
        plain = stack.enter_context(_running(given, "plain", PLAIN))
        watched = stack.enter_context(watching(given))
        for entrant in (plain, watched.entrant):
            tell(f"warming up {entrant.name}")
            track.warm_up(entrant, plan.warm_up + plan.seconds)
        rounds = []
        for turn in range(plan.rounds):
            rounds.append(_round(track, plain, watched, plan))
            found = rounds[-1].stages[HALF]["taken in to arrived"]
            tell(f"round {turn + 1}/{plan.rounds}  half load: p50 {found.p50:.2f} ms")
        # A repetition may come late.
        time.sleep(1)
        accepted = plain.accepted + watched.entrant.accepted
        check("one of the two", NOTHING, accepted, given.receiver.arrivals.counts())
    facts |= {
        "primeflowd": __version__,
        "Python": platform.python_version(),
        "SQLite": sqlite3.sqlite_version,
    }
    note = (
        f"Generated by `{command}` in {time.monotonic() - began:.0f} s: {plan.rounds} rounds, "
        f"{plan.seconds:g} s at each load after {plan.warm_up:g} s of warm-up."
    )
    about = {
        "command": command,
        "facts": facts,
        "plan": dataclasses.asdict(plan),
        "seconds": time.monotonic() - began,
        "rounds": [_plain(each) for each in rounds],
    }
    text = markdown(rounds, STEADY_RATE, note, facts)
    write(output, {"stages.md": text, "stages.json": json.dumps(about, indent=1) + "\n"})
    print(text)


@contextlib.contextmanager
def watching(given: Bench) -> Iterator[Watched]:
    """A node that notes the instants, in a file beside the ledger."""
    stamps = given.receiver.stamps.with_name("inside")
    stamps.touch()
    # Sparse, as the ledger is.
    os.truncate(stamps, CAPACITY * STAMP)
    plugins = Distributions(given.directory / "plugins")
    source = "from tests.benchmarks.stamping import plugin"
    plugins.install(NAME, source, api=None, attribute="plugin")
    url = f"sqlite:///{given.directory / 'stamped' / 'primeflowd.db'}"
    settings = (
        f'[plugins]\nenable = ["{NAME}"]\n[plugins.{NAME}]\nfile = "{stamps}"\n'
        f'[storage]\nurl = "{PREFIX}{url}"\n'
    )
    with (
        _running(given, "stamped", STAMPED, settings, plugins.directory) as entrant,
        contextlib.closing(Watched(entrant, given.receiver, stamps, url)) as watched,
    ):
        yield watched


@contextlib.contextmanager
def _running(
    given: Bench, directory: str, name: str, settings: str = "", path: Path | None = None
) -> Iterator[Entrant]:
    """A node and its producer; `path` is put before the import path."""
    before = os.environ.get("PYTHONPATH", "")
    environment = {"PYTHONPATH": f"{path}{os.pathsep}{before}".rstrip(os.pathsep)} if path else {}
    state, cores = given.directory / directory, machine.apart()
    node = Node(state, "node", REPOSITORY, cores, settings, environment=environment)
    with contextlib.ExitStack() as stack:
        start_nodes([node], stack, share_key=False)
        url = f"sqlite:///{state / 'primeflowd.db'}"
        books = stack.enter_context(contextlib.closing(Books(url)))
        target = {"kind": "primeflowd", "nodes": [{"port": node.port, "key": node.key}]}
        handing_in = http_producer(given.settings(1, CONNECTIONS[1], target), cores)
        producer = stack.enter_context(handing_in)
        yield Entrant(name, cores, Running(producer, [node], [books]))


def _round(track: Track, plain: Entrant, watched: Watched, plan: Plan) -> Round:
    full = [_measure(track, each, plan, None, FULL) for each in (plain, watched.entrant)]
    samples, stages = list(full), {}
    loads = {HALF: [each.rate / 2 for each in full], STEADY: [STEADY_RATE, STEADY_RATE]}
    for load, (for_plain, for_watched) in loads.items():
        samples.append(_measure(track, plain, plan, for_plain, load))
        sample, stages[load] = watched.measure(track, plan, for_watched, load)
        samples.append(sample)
    return Round(samples, stages)


def _measure(track: Track, entrant: Entrant, plan: Plan, rate: float | None, load: str) -> Sample:
    return dataclasses.replace(track.measure(entrant, plan, rate), load=load)


def _offset() -> int:
    """Nanoseconds from the monotonic clock to the time of day.

    The most of a few: who is interrupted between the two looks finds less.
    """
    return max(time.time_ns() - time.monotonic_ns() for _ in range(9))


def _plain(found: Round) -> dict[str, object]:
    stages = {
        load: {name: each._asdict() for name, each in stages.items()}
        for load, stages in found.stages.items()
    }
    return {"samples": [dataclasses.asdict(each) for each in found.samples], "stages": stages}
