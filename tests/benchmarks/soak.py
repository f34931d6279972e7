"""`--soak MINUTES`: does it stay as it is, hour after hour, with receivers that misbehave?

One daemon with the shipped defaults but for shorter timeouts and retry delays, making 70 % of the
attempts a second that it can make when all is well. Of 100 destinations ten answer 500 twice to
every callback, and one never answers. In the end that one recovers, and every callback that was
accepted must have been delivered, once.
"""

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.benchmarks import machine
from tests.benchmarks.compare import bench, tell
from tests.benchmarks.contenders.books import Books
from tests.benchmarks.contenders.contender import REPOSITORY, Bench, Failed, http_producer
from tests.benchmarks.contenders.node import Node
from tests.benchmarks.contenders.primeflowd import Running, start_nodes
from tests.benchmarks.figures import percentile
from tests.benchmarks.history import BYTES_EACH
from tests.benchmarks.ledger import FAILING, HANGING, Counts, read_stamps
from tests.benchmarks.producer import Job
from tests.benchmarks.report import table, write
from tests.benchmarks.rounds import BOUND, Entrant, Plan, Track

DESTINATIONS: Final = 100
ILL: Final = 10
HUNG: Final = 1
SHARE: Final = 0.7

ATTEMPTS_EACH: Final = 1 + 2 * ILL / DESTINATIONS
"""Attempts a callback takes on average; to a failing destination the third succeeds."""

_SETTINGS: Final = """
[delivery]
timeout = "2s"
[delivery.default_policy]
delays = ["1s", "2s", "5s", "10s"]
max_retries = 100
"""
_EVERY: Final = 10.0
"""Seconds from one sample to the next."""

_PATIENCE: Final = 600.0
"""Seconds that the rest may take in the end: the longest suspension, and all that waits for it."""

_ALLOWED: Final = {"rss": 1.1, "files": 1.1, "p50": 1.5, "p99": 1.5}
"""How much larger the last third's median may be than the first third's to count as flat."""


@dataclass(frozen=True)
class Moment:
    """One sample: `minute` since the start, RSS in MB, latencies of healthy destinations in ms."""

    minute: float
    rate: float
    rss: float
    files: float
    p50: float
    p99: float
    waiting: int


def run(minutes: float, disk: Path, cache: Path, output: Path, command: str) -> None:
    """Run, write soak.md and soak.json, print.

    Raises:
        Failed: a callback was lost or repeated.
    """
    facts = machine.facts(disk)
    with bench(disk, cache) as given, contextlib.ExitStack() as stack:
        node = Node(given.directory / "soak", "node", REPOSITORY, machine.apart(), _SETTINGS)
        start_nodes([node], stack, share_key=False)
        books = Books(f"sqlite:///{node.directory / 'primeflowd.db'}")
        stack.callback(books.close)
        target = {"kind": "primeflowd", "nodes": [{"port": node.port, "key": node.key}]}
        settings = given.settings(1, 64, target, DESTINATIONS)
        producer = stack.enter_context(http_producer(settings, node.cores))
        entrant = Entrant("primeflowd", node.cores, Running(producer, [node], [books]))
        track = Track(given.receiver)
        track.warm_up(entrant, 2.0)
        rate = track.measure(entrant, Plan(1, 8.0, 1.0), None).rate * SHARE / ATTEMPTS_EACH
        _check_room(disk, rate, minutes)
        tell(f"{rate:.0f} callbacks/s for {minutes:g} minutes")
        soak = _Soak(given, entrant, track.next_number)
        moments = soak.run(rate, minutes)
        end = soak.finish(books)
    text = _markdown(moments, rate, minutes, end, facts, command)
    about = {
        "command": command, "facts": facts, "rate": rate, "end": end,
        "moments": [dataclasses.asdict(each) for each in moments],
    }  # fmt: skip
    write(output, {"soak.md": text, "soak.json": json.dumps(about, indent=1) + "\n"})
    print(text)


class _Soak:
    """The long part: jobs of some seconds, one after another, and a look around after each."""

    def __init__(self, given: Bench, entrant: Entrant, first: int) -> None:
        self._receiver = given.receiver
        self._entrant = entrant
        self._next = first
        self._accepted = 0
        self._before = given.receiver.arrivals.counts()
        # Still awaited: of these the newest are looked at only with the next sample.
        self._last = range(first, first)

    def run(self, rate: float, minutes: float) -> list[Moment]:
        arrivals, producer = self._receiver.arrivals, self._entrant.contender.producer
        arrivals.control(FAILING, ILL)
        arrivals.control(HANGING, HUNG)
        began, moments = time.monotonic(), []
        while (elapsed := time.monotonic() - began) < minutes * 60:
            before = arrivals.counts()
            at = time.monotonic_ns()
            producer.begin(Job(self._next, at + int(_EVERY * 1e9), BOUND, rate))
            reply = producer.finish()
            latencies = self._latencies(self._last)
            self._last = range(self._next, self._next + reply.taken)
            self._next += reply.taken
            self._accepted += reply.taken - reply.refused
            after, took = arrivals.counts(), (time.monotonic_ns() - at) / 1e9
            roots = self._entrant.contender.roots()
            moment = Moment(
                minute=round(elapsed / 60, 2),
                rate=(after.delivered - before.delivered) / took,
                rss=machine.rss_mb(roots),
                files=machine.open_files(roots),
                p50=percentile(latencies, 0.5),
                p99=percentile(latencies, 0.99),
                waiting=self._accepted - (after.delivered - self._before.delivered),
            )
            if latencies:
                moments.append(moment)
                tell(f"{moment}")
        return moments

    def finish(self, books: Books) -> dict[str, int]:
        """Let the hung receiver recover, wait for the rest, and check the books.

        Raises:
            Failed: they are wrong.
        """
        arrivals = self._receiver.arrivals
        arrivals.control(HANGING, 0)
        tell("waiting for what the receiver that hung has missed")
        deadline = time.monotonic() + _PATIENCE
        while (counts := self._counts()).delivered < self._accepted:
            if time.monotonic() > deadline:
                raise Failed(f"LOST: {self._accepted} accepted, {counts.delivered} arrived")
            time.sleep(0.1)
        while (rows := books.rows()).succeeded < self._accepted and time.monotonic() < deadline:
            time.sleep(0.1)
        counts = self._counts()
        if counts.repeated:
            raise Failed(f"REPEATED {counts.repeated} callbacks")
        if counts.unknown or counts.unsigned:
            raise Failed("requests arrived that are no signed callbacks")
        if not rows.deliveries == rows.succeeded == counts.delivered == self._accepted:
            raise Failed(f"{self._accepted} accepted, {counts.delivered} arrived, but {rows}")
        # An attempt that met no answer may have reached the receiver or not.
        answered = books.answered_attempts()
        if answered != counts.delivered + counts.refused:
            raise Failed(f"{counts.delivered + counts.refused} answers given, {answered} on record")
        return {
            "accepted": self._accepted,
            "arrived": counts.delivered,
            "answered with 500": counts.refused,
            "left hanging": counts.hung,
            "attempts on record": rows.attempts,
        }

    def _counts(self) -> Counts:
        now = self._receiver.arrivals.counts()
        return Counts(*(n - b for n, b in zip(now, self._before, strict=True)))

    def _latencies(self, numbers: range) -> list[float]:
        """Of the healthy destinations' callbacks; one that has not arrived yet counts as 10 s."""
        stamps = read_stamps(self._receiver.stamps, numbers.start, len(numbers))
        slots = self._receiver.arrivals.slots(numbers.start, len(numbers))
        return [
            (slot.arrived_at - sent) / 1e6 if slot.arrived_at else 10_000.0
            for number, (sent, _), slot in zip(numbers, stamps, slots, strict=True)
            if sent and number % DESTINATIONS >= ILL + HUNG
        ]


def flatness(values: Sequence[float], allowed: float) -> tuple[float, float, bool]:
    """Medians of the first and the last third, and whether the last is at most so much larger."""
    third = max(1, len(values) // 3)
    first, last = percentile(values[:third], 0.5), percentile(values[-third:], 0.5)
    return first, last, last <= first * allowed


def _check_room(disk: Path, rate: float, minutes: float) -> None:
    needed, free = rate * minutes * 60 * BYTES_EACH, shutil.disk_usage(disk).free
    tell(f"about {needed / 1e9:.0f} GB of database to be written; {free / 1e9:.0f} GB are free")
    if needed > free * 0.9:
        raise SystemExit(f"{disk} has no room for that: choose another --disk, or fewer minutes")


def _markdown(
    moments: Sequence[Moment], rate: float, minutes: float, end: dict[str, int],
    facts: dict[str, str], command: str,
) -> str:  # fmt: skip
    names = {
        "rss": "RSS, MB", "files": "open files", "p50": "p50, ms", "p99": "p99, ms",
    }  # fmt: skip
    verdicts = []
    for key, text in names.items():
        values = [getattr(moment, key) for moment in moments]
        first, last, is_flat = flatness(values, _ALLOWED[key])
        verdict = "flat" if is_flat else f"GROWS (more than × {_ALLOWED[key]:g})"
        verdicts.append([text, f"{first:,.1f}", f"{last:,.1f}", f"{max(values):,.1f}", verdict])
    step = max(1, len(moments) // 12)
    rows = [
        [
            f"{m.minute:.1f}", f"{m.rate:,.0f}", f"{m.rss:.0f}", f"{m.files:.0f}",
            f"{m.p50:.1f}", f"{m.p99:.1f}", f"{m.waiting:,}",
        ]
        for m in moments[::step]
    ]  # fmt: skip
    lines = [
        "# Under load for long",
        "",
        f"Generated by `{command}`: {rate:,.0f} callbacks/s, single POST, which take "
        f"{rate * ATTEMPTS_EACH:,.0f} attempts/s ({SHARE:.0%} of what this machine made at first, "
        f"when all was well), for {minutes:g} minutes; of {DESTINATIONS} destinations {ILL} "
        f"answered 500 to the first two attempts of every callback, and {HUNG} never answered "
        "until the end. Latency, from handing in to arrival, is that of the healthy ones.",
        "",
        "Nothing was lost or repeated: " + ", ".join(f"{v:,} {k}" for k, v in end.items()) + ".",
        "",
        *table(("", "first third", "last third", "most", "verdict"), verdicts),
        "",
        *table(
            ("minute", "arrivals/s", "RSS MB", "open files", "p50 ms", "p99 ms", "waiting"), rows
        ),
        "",
        *(f"- {key}: {value}" for key, value in facts.items()),
        "",
    ]
    return "\n".join(lines)
