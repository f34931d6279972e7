"""`--purge`: does the removal of what is old slow delivery?

One daemon with a history, at one rate, half of what it can take: with retention off, then while
it empties response bodies, while it removes, and with retention off again. The rows that a purge
removes are those of callbacks that ended more than 30 days ago: a batch, a delivery and an attempt
each.
"""

import contextlib
import json
import math
import os
import re
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.benchmarks import machine
from tests.benchmarks.compare import bench, tell
from tests.benchmarks.contenders.books import Books
from tests.benchmarks.contenders.contender import REPOSITORY, Bench, Failed, http_producer
from tests.benchmarks.contenders.node import Node
from tests.benchmarks.contenders.primeflowd import CONNECTIONS, Running, start_nodes
from tests.benchmarks.figures import spread
from tests.benchmarks.history import grow
from tests.benchmarks.report import table, write
from tests.benchmarks.rounds import Entrant, Plan, Sample, Track

ROWS: Final = 1_000_000

_OFF: Final = '[retention]\nbatches = "0s"\nresponse_bodies = "0s"\n'
# A purge empties bodies first: in the time of a measurement it would come to nothing else.
_EMPTYING: Final = '[retention]\nbatches = "0s"\nevery = "1s"\n'
_REMOVING: Final = '[retention]\nresponse_bodies = "0s"\nevery = "1s"\n'
_OLD_SHARE: Final = 0.9
"""Of a history of 300 days."""


@dataclass
class Phase:
    """What was measured, and how many rows were removed in each measurement, or emptied of a
    response body."""

    name: str
    samples: list[Sample]
    removed: list[int]


def run(plan: Plan, rows: int, disk: Path, cache: Path, output: Path, command: str) -> None:
    """Measure, write purge.md and purge.json, print.

    Raises:
        Failed: a callback was lost or repeated, or the purge ended before the measurement did.
    """
    began, facts = time.monotonic(), machine.facts(disk)
    with bench(disk, cache) as given:
        track, cores = Track(given.receiver), machine.apart()
        node = Node(given.directory / "purge", "node", REPOSITORY, cores, _OFF)
        database = node.directory / "primeflowd.db"
        _fill(given, track, node, math.ceil(rows / 3 / _OLD_SHARE))
        before = database.stat().st_size
        with _running(given, node, _OFF) as entrant:
            track.warm_up(entrant, plan.warm_up + plan.seconds)
            rate = track.measure(entrant, plan, None).rate / 2
            phases = [_measure(track, node, entrant, plan, rate, "retention off, before")]
        with _running(given, node, _EMPTYING) as entrant:
            phases.append(_measure(track, node, entrant, plan, rate, "while it empties bodies"))
        with _running(given, node, _REMOVING) as entrant:
            phases.append(_measure(track, node, entrant, plan, rate, "while it removes"))
            took, removed = _finish(node)
        # What was given back is missing from the file once its log is moved into it.
        given_back = before - database.stat().st_size
        with _running(given, node, _OFF) as entrant:
            phases.append(_measure(track, node, entrant, plan, rate, "retention off, after"))
    if not all(phases[1].removed + phases[2].removed):
        raise Failed("the purge was over before the measurement was: give it more rows")
    notes = [
        f"{removed:,} rows removed in {took:.0f} s, of which it was measured for "
        f"{len(phases[2].samples) * (plan.seconds + plan.warm_up):.0f} s",
        f"the file had {before / 1e6:,.0f} MB and gave back {given_back / 1e6:,.0f}",
    ]
    shown = [*notes, *(f"{key}: {value}" for key, value in facts.items())]
    text = _markdown(phases, rate, plan, shown, command)
    seconds = time.monotonic() - began
    figures = {p.name: [s.__dict__ for s in p.samples] for p in phases}
    about = {"command": command, "facts": facts, "notes": notes, "seconds": seconds}
    about_text = json.dumps({**about, "samples": figures}, indent=1) + "\n"
    write(output, {"purge.md": text, "purge.json": about_text})
    print(text)


def _fill(given: Bench, track: Track, node: Node, callbacks: int) -> None:
    with contextlib.ExitStack() as first:
        start_nodes([node], first, share_key=False)
        with _entrant(given, node) as entrant:
            # One real callback is what history is made of.
            while not track.measure(entrant, Plan(1, 0.3, 0.0), 10.0).accepted:
                tell("the machine is too busy for a single callback")
    tell(f"making {callbacks:,} callbacks of history")
    grow(node.directory / "primeflowd.db", callbacks, 0, tell)
    # Else the kernel writes it out while we measure.
    os.sync()


@contextlib.contextmanager
def _running(given: Bench, node: Node, settings: str) -> Iterator[Entrant]:
    node.configure(settings)
    node.start()
    with contextlib.ExitStack() as stack:
        stack.push(node.stop_or_kill)
        yield stack.enter_context(_entrant(given, node))


@contextlib.contextmanager
def _entrant(given: Bench, node: Node) -> Iterator[Entrant]:
    target = {"kind": "primeflowd", "nodes": [{"port": node.port, "key": node.key}]}
    with (
        contextlib.closing(Books(f"sqlite:///{node.directory / 'primeflowd.db'}")) as books,
        http_producer(given.settings(1, CONNECTIONS[1], target), node.cores) as producer,
    ):
        yield Entrant("purge", node.cores, Running(producer, [node], [books]))


def _measure(
    track: Track, node: Node, entrant: Entrant, plan: Plan, rate: float, name: str
) -> Phase:
    phase = Phase(name, [], [])
    track.measure(entrant, Plan(1, 1.0, 0.0), rate)
    for turn in range(plan.rounds):
        before = _removed(node)
        phase.samples.append(track.measure(entrant, plan, rate))
        phase.removed.append(_removed(node) - before)
        tell(f"round {turn + 1}/{plan.rounds}  {name}: p99 {phase.samples[-1].arrive_p99:.1f} ms")
    return phase


def _removed(node: Node) -> int:
    found = re.findall(r"^primeflowd_removed_total\{.*\} (\S+)$", _scraped(node), re.MULTILINE)
    return int(sum(map(float, found)))


def _finish(node: Node) -> tuple[float, int]:
    """Wait until the purge is over: how long it took, and how many rows are gone."""
    while "primeflowd_purged_timestamp_seconds 0.0" in _scraped(node):
        time.sleep(0.5)
    [seconds, *_] = re.findall(r"old_rows_removed.* seconds=([\d.]+)", node.log.read_text())
    return float(seconds), _removed(node)


def _scraped(node: Node) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{node.port}/metrics", timeout=60) as answer:
        text: str = answer.read().decode()
        return text


def _markdown(
    phases: Sequence[Phase], rate: float, plan: Plan, notes: Sequence[str], command: str
) -> str:
    def row(name: str, values: list[list[float]]) -> list[str]:
        return [name, *(spread(each).text() for each in values)]

    rows = [
        row(name, [[getattr(sample, key) for sample in phase.samples] for phase in phases])
        for name, key in (
            ("answer, p50 ms", "accept_p50"),
            ("answer, p99 ms", "accept_p99"),
            ("arrival, p50 ms", "arrive_p50"),
            ("arrival, p99 ms", "arrive_p99"),
            ("CPU µs a callback", "server"),
        )
    ]
    pace = [[count / (plan.warm_up + plan.seconds) for count in phase.removed] for phase in phases]
    rows.append(row("rows removed or emptied a second", pace))
    lines = [
        "# What a purge costs",
        "",
        f"Generated by `{command}`: {plan.rounds} rounds of {plan.seconds:g} s each, single POSTs "
        f"at {rate:,.0f} callbacks/s, half of what the daemon can take. Median and range; times "
        "are from handing in.",
        "",
        *table(("", *(phase.name for phase in phases)), rows),
        "",
        *(f"- {note}" for note in notes),
        "",
    ]
    return "\n".join(lines)
