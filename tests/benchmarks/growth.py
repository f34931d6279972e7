"""`--growth`: does it slow down as the tables fill?

One daemon for each size of history, all running, measured in turns: accepting and delivering at
full load (bulk) and at one common rate (single POST), and reading lists. Everything is compared,
round by round, with the daemon that began empty. What a round adds is taken out again after it.
"""

import contextlib
import http.client
import json
import math
import random
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.benchmarks import machine
from tests.benchmarks.compare import bench, tell
from tests.benchmarks.contenders.books import Books
from tests.benchmarks.contenders.contender import REPOSITORY, Bench, http_producer
from tests.benchmarks.contenders.node import Node
from tests.benchmarks.contenders.primeflowd import CONNECTIONS, Running, start_nodes
from tests.benchmarks.figures import percentile, ratios, spread
from tests.benchmarks.history import BYTES_EACH, Mark, grow
from tests.benchmarks.report import table, write
from tests.benchmarks.rounds import Entrant, Plan, Track

HISTORY: Final = (0, 100_000, 1_000_000, 10_000_000)
WAITING: Final = 1_000_000

_READS: Final = 100
_ROOM_FOR_ROUNDS: Final = 2_000_000_000
"""Bytes of disk that the measurements themselves may take."""

_MEASURES: Final = {
    "rate": "bulk of 100, full load: callbacks/s",
    "cpu": "bulk of 100, full load: CPU µs a callback",
    "accept": "single POST, steady: answer, p50 ms",
    "accept_p99": "single POST, steady: answer, p99 ms",
    "arrive": "single POST, steady: arrival, p50 ms",
    "arrive_p99": "single POST, steady: arrival, p99 ms",
    "single_cpu": "single POST, steady: CPU µs a callback",
    "list": "`GET /v1/deliveries`, newest 50, ms",
    "middle": "`GET /v1/deliveries`, 50 from the middle, ms",
    "history": "`GET /v1/batches/{id}/callback`, ms",
    "rss": "RSS MB",
}


@dataclass
class Level:
    """One size of history, and the daemon that has it."""

    delivered: int
    waiting: int
    node: Node
    single: Entrant
    bulk: Entrant
    mark: Mark
    started: float
    samples: dict[str, list[float]] = field(default_factory=lambda: {k: [] for k in _MEASURES})

    @property
    def name(self) -> str:
        return level_name(self.delivered, self.waiting)


def level_name(delivered: int, waiting: int) -> str:
    if waiting:
        return f"{waiting:,} waiting"
    return f"{delivered:,} delivered" if delivered else "empty"


def run(
    plan: Plan, history: Sequence[int], waiting: int,
    disk: Path, cache: Path, output: Path, command: str,
) -> None:  # fmt: skip
    """Measure, write growth.md and growth.json, print.

    Raises:
        Failed: a callback was lost or repeated.
    """
    began = time.monotonic()
    wanted = [
        (0, 0),
        *((each, 0) for each in history if each),
        *([(0, waiting)] if waiting else []),
    ]
    fitting, not_run = _that_fit(wanted, disk)
    facts = machine.facts(disk)
    with bench(disk, cache) as given, contextlib.ExitStack() as stack:
        track = Track(given.receiver)
        levels = [stack.enter_context(_level(given, track, *each)) for each in fitting]
        rate = _warm(track, levels, plan)
        for turn in range(plan.rounds):
            for level in levels:
                _measure(track, level, plan, rate)
                tell(f"round {turn + 1}/{plan.rounds}  {level.name}")
        text = _markdown(levels, not_run, rate, plan, facts, command, time.monotonic() - began)
    figures = {level.name: level.samples for level in levels}
    about = {"command": command, "facts": facts, "not_run": not_run, "samples": figures}
    write(output, {"growth.md": text, "growth.json": json.dumps(about, indent=1) + "\n"})
    print(text)


def _that_fit(
    wanted: Sequence[tuple[int, int]], disk: Path
) -> tuple[list[tuple[int, int]], dict[str, str]]:
    """The levels that the disk has room for, and why the others are left out."""
    free = shutil.disk_usage(disk).free - _ROOM_FOR_ROUNDS
    needed = sum(delivered + waiting for delivered, waiting in wanted) * BYTES_EACH
    tell(f"{needed / 1e9:.0f} GB of databases to make in {disk}; {free / 1e9:.0f} GB are free")
    fitting, not_run = [], {}
    for delivered, waiting in sorted(wanted, key=sum):
        size = (delivered + waiting) * BYTES_EACH
        if size > free:
            reason = f"needs {size / 1e9:.0f} GB of disk, {free / 1e9:.0f} GB are left"
            not_run[level_name(delivered, waiting)] = reason
            tell(f"{level_name(delivered, waiting)} is left out: it {reason}")
        else:
            free -= size
            fitting.append((delivered, waiting))
    return [each for each in wanted if each in fitting], not_run


@contextlib.contextmanager
def _level(given: Bench, track: Track, delivered: int, waiting: int) -> Iterator[Level]:
    cores = machine.apart()
    node = Node(given.directory / f"{delivered}-{waiting}", "node", REPOSITORY, cores)
    database = node.directory / "primeflowd.db"
    # The row that history is made of: of a real callback of this very daemon.
    with contextlib.ExitStack() as first:
        start_nodes([node], first, share_key=False)
        with (
            contextlib.closing(Books(f"sqlite:///{database}")) as books,
            _entrant(given, node, 1, books) as entrant,
        ):
            track.measure(entrant, Plan(1, 0.3, 0.0), 10.0)
    if delivered or waiting:
        tell(f"making {level_name(delivered, waiting)}")
        grow(database, delivered, waiting, tell)
    started = node.start()
    mark = Mark(database)
    with contextlib.ExitStack() as stack:
        stack.push(node.stop_or_kill)
        books = Books(f"sqlite:///{database}")
        stack.callback(books.close)
        single = stack.enter_context(_entrant(given, node, 1, books))
        bulk = stack.enter_context(_entrant(given, node, 100, books))
        yield Level(delivered, waiting, node, single, bulk, mark, started)


@contextlib.contextmanager
def _entrant(given: Bench, node: Node, size: int, books: Books) -> Iterator[Entrant]:
    target = {"kind": "primeflowd", "nodes": [{"port": node.port, "key": node.key}]}
    with http_producer(given.settings(size, CONNECTIONS[size], target), node.cores) as producer:
        yield Entrant(f"size {size}", node.cores, Running(producer, [node], [books]))


def _warm(track: Track, levels: Sequence[Level], plan: Plan) -> float:
    """Warm all up; the rate at which all are measured: half of what the first can take."""
    for level in levels:
        track.warm_up(level.bulk, plan.warm_up + plan.seconds)
        track.warm_up(level.single, plan.warm_up + plan.seconds)
        level.mark.restore()
    return track.measure(levels[0].single, plan, None).rate / 2


def _measure(track: Track, level: Level, plan: Plan, rate: float) -> None:
    full = track.measure(level.bulk, plan, None)
    steady = track.measure(level.single, plan, rate)
    reads = _reads(level)
    found = {
        "rate": full.rate, "cpu": full.server, "rss": full.rss,
        "accept": steady.accept_p50, "accept_p99": steady.accept_p99,
        "arrive": steady.arrive_p50, "arrive_p99": steady.arrive_p99,
        "single_cpu": steady.server, **reads,
    }  # fmt: skip
    for name, value in found.items():
        level.samples[name].append(value)
    level.mark.restore()


def _reads(level: Level) -> dict[str, float]:
    """Medians in ms of the three reads, one after another on one connection."""
    database = level.node.directory / "primeflowd.db"
    with contextlib.closing(sqlite3.connect(database)) as connection:
        # From all over the table, without reading it all: rowids have no gaps but at the end.
        (last,) = connection.execute("SELECT max(rowid) FROM batches").fetchone()
        chosen = [random.randint(1, last) for _ in range(_READS * 2)]
        marks = ",".join("?" * len(chosen))
        ids = connection.execute(f"SELECT id FROM batches WHERE rowid IN ({marks})", chosen)
        batches = [row[0] for row in ids][:_READS]
        middle = connection.execute(
            "SELECT created_at FROM deliveries WHERE rowid >= ? ORDER BY rowid LIMIT 1",
            (last // 2,),
        ).fetchone()[0]
    before = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(middle / 1e6 + 1))
    client = http.client.HTTPConnection("127.0.0.1", level.node.port, timeout=60)
    headers = {"Authorization": f"Bearer {level.node.key}"}

    def read(path: str) -> float:
        began = time.perf_counter()
        client.request("GET", path, headers=headers)
        answer = client.getresponse()
        answer.read()
        if answer.status != 200:
            raise SystemExit(f"GET {path} answered {answer.status}")
        return (time.perf_counter() - began) * 1e3

    def typical(path: Callable[[int], str]) -> float:
        return percentile([read(path(k)) for k in range(_READS)], 0.5)

    found = {
        "list": typical(lambda _: "/v1/deliveries?limit=50"),
        "middle": typical(lambda _: f"/v1/deliveries?limit=50&created_before={before}"),
        "history": typical(lambda k: f"/v1/batches/{batches[k % len(batches)]}/callback"),
    }
    client.close()
    return found


def _markdown(
    levels: Sequence[Level], not_run: dict[str, str], rate: float, plan: Plan,
    facts: dict[str, str], command: str, took: float,
) -> str:  # fmt: skip
    empty = levels[0]

    def cell(level: Level, measure: str) -> str:
        seen = spread(level.samples[measure])
        digits = max(0, 2 - math.floor(math.log10(seen.median))) if seen.median > 0 else 0
        if level is empty:
            return seen.text()
        factor = ratios(level.samples[measure], empty.samples[measure])
        return f"{seen.median:,.{digits}f} (× {factor.median:.2f})"

    rows = [[text, *(cell(level, key) for level in levels)] for key, text in _MEASURES.items()]
    rows.append(["served after, s", *(f"{level.started:.1f}" for level in levels)])
    sizes = [(level.node.directory / "primeflowd.db").stat().st_size for level in levels]
    rows.append(["database, MB", *(f"{size / 1e6:,.0f}" for size in sizes)])
    lines = [
        "# What a past costs",
        "",
        f"Generated by `{command}` in {took / 60:.0f} minutes: {plan.rounds} rounds in turns, "
        f"{plan.seconds:g} s a measurement. Medians; in parentheses the range of the empty daemon, "
        "and for the others the median of the ratios to it, round by round. A row of history is a "
        "batch with its delivery and its attempt; a waiting one is due tomorrow. Steady means "
        f"{rate:,.0f} callbacks/s for all.",
        "",
        *table(("", *(level.name for level in levels)), rows),
        "",
        *(f"- not run: {name}: {why}" for name, why in not_run.items()),
        *(f"- {key}: {value}" for key, value in facts.items()),
        "",
    ]
    return "\n".join(lines)
