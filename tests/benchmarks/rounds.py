"""One measurement, and contenders in turns.

A measurement hands callbacks to a contender for a warm-up and a window, and then waits until all
are done. Only the window is measured, while the load is steady: what is outstanding is bounded, so
as many arrive in it as are accepted. Afterwards the books must agree: what was accepted has
arrived, once, signed, and the contender has no work left and no complaint. If not, the run fails.
"""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final, NamedTuple

from tests.benchmarks import machine
from tests.benchmarks.contenders.contender import Contender, Failed
from tests.benchmarks.figures import percentile
from tests.benchmarks.ledger import Counts, read_stamps
from tests.benchmarks.producer import Job
from tests.benchmarks.receiver import Receiver

BOUND: Final = 1024
"""Callbacks outstanding at most, for every contender."""

_PATIENCE: Final = 60.0
"""Seconds without any progress until what is missing counts as lost."""


@dataclass(frozen=True)
class Plan:
    """How much to measure: seconds of warm-up and window of each measurement."""

    rounds: int
    seconds: float
    warm_up: float


@dataclass(frozen=True)
class Sample:
    """What one measurement found; times per callback in µs, latencies in ms, memory in MB.

    Attributes:
        rate: arrivals per second in the window.
        server: CPU time of all of the contender's processes.
        client, receiver: CPU time of who hands in and of who receives.
        load_busy: the share of a core that these two took.
        others: the share of the server side's cores that nobody above accounts for: interrupts,
            the kernel, and whatever else ran on the machine.
        accept: from handing in to the answer; arrive: from handing in to the arrival.
    """

    contender: str
    load: str
    accepted: int
    refused: int
    body_bytes: float
    rate: float
    server: float
    client: float
    receiver: float
    load_busy: float
    others: float
    rss: float
    pss: float
    accept_p50: float
    accept_p99: float
    arrive_p50: float
    arrive_p99: float


class _Reading(NamedTuple):
    """All counters at one instant."""

    at: int
    delivered: int
    server: float
    client: float
    receiver: float
    cores: float


@dataclass
class Entrant:
    """A running contender that takes part, and what it has accepted so far."""

    name: str
    cores: machine.Cores
    contender: Contender
    accepted: int = 0


class Track:
    """Where measurements are made, one at a time. `next_number` was not used yet."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self.next_number = 0

    def warm_up(self, entrant: Entrant, seconds: float) -> None:
        """Let it start: open connections, fill caches. Nothing is measured."""
        self.measure(entrant, Plan(1, seconds, 0.0), None)

    def measure(self, entrant: Entrant, plan: Plan, rate: float | None) -> Sample:
        """At `rate` callbacks a second, else as fast as it goes.

        Raises:
            Failed: a callback was lost or repeated.
        """
        receiver, producer = self._receiver, entrant.contender.producer
        machine.move(receiver.pid, entrant.cores.load)
        # What was written before, by whomever, shall not be on its way to the disk still.
        os.sync()
        before = receiver.arrivals.counts()
        began = time.monotonic_ns()
        until = began + int((plan.warm_up + plan.seconds) * 1e9)
        producer.begin(Job(self.next_number, until, BOUND, rate))
        _sleep_until(began + int(plan.warm_up * 1e9))
        start = self._read(entrant)
        _sleep_until(until)
        end = self._read(entrant)
        rss, pss = (look(entrant.contender.roots()) for look in (machine.rss_mb, machine.pss_mb))
        reply = producer.finish()
        first, self.next_number = self.next_number, self.next_number + reply.taken
        after = self._settle(entrant, before, reply.taken - reply.refused, first)
        accept, arrive = self._latencies(first, reply.taken, start.at, end.at)
        count, took = max(1, end.delivered - start.delivered), (end.at - start.at) / 1e9
        client, received = end.client - start.client, end.receiver - start.receiver
        return Sample(
            contender=entrant.name,
            load="full" if rate is None else "half",
            accepted=reply.taken - reply.refused,
            refused=reply.refused,
            body_bytes=(after.body_bytes - before.body_bytes)
            / max(1, after.requests - before.requests),
            rate=count / took,
            server=(end.server - start.server) / count * 1e6,
            client=client / count * 1e6,
            receiver=received / count * 1e6,
            load_busy=(client + received) / took,
            others=_others(entrant, start, end) / took,
            rss=rss,
            pss=pss,
            accept_p50=percentile(accept, 0.5),
            accept_p99=percentile(accept, 0.99),
            arrive_p50=percentile(arrive, 0.5),
            arrive_p99=percentile(arrive, 0.99),
        )

    def _read(self, entrant: Entrant) -> _Reading:
        receiver = self._receiver
        return _Reading(
            time.monotonic_ns(),
            receiver.arrivals.counts().delivered,
            machine.cpu_seconds(entrant.contender.roots()),
            machine.cpu_seconds([entrant.contender.producer.pid]),
            machine.cpu_seconds([receiver.pid]),
            machine.busy_seconds(entrant.cores.server),
        )

    def _settle(self, entrant: Entrant, before: Counts, accepted: int, first: int) -> Counts:
        """Wait until all is done, and check that it was done once."""
        name, arrivals = entrant.name, self._receiver.arrivals
        if not _progresses(lambda: arrivals.counts().delivered - before.delivered, accepted):
            now = arrivals.counts()
            raise Failed(
                f"{name} LOST callbacks: {accepted} accepted, {now.delivered - before.delivered} "
                f"arrived, {now.repeated - before.repeated} repeatedly ({self._missing(first)})"
            )
        entrant.accepted += accepted
        deadline = time.monotonic() + _PATIENCE
        while complaint := entrant.contender.complaint(entrant.accepted):
            if time.monotonic() > deadline:
                raise Failed(f"{name}: its books are wrong: {complaint}")
            time.sleep(0.02)
        after = arrivals.counts()
        check(name, before, accepted, after)
        return after

    def _missing(self, first: int) -> str:
        stamps = read_stamps(self._receiver.stamps, first, self.next_number - first)
        slots = self._receiver.arrivals.slots(first, self.next_number - first)
        lost = [
            first + k
            for k, ((sent, _), slot) in enumerate(zip(stamps, slots, strict=True))
            if sent and not slot.delivered
        ]
        shown = ", ".join(map(str, lost[:10]))
        return f"{len(lost)} missing: {shown}{', ...' if len(lost) > 10 else ''}"

    def _latencies(
        self, first: int, count: int, start: int, end: int
    ) -> tuple[list[float], list[float]]:
        """Milliseconds to the answer and to the arrival, of what was handed in in the window."""
        accept, arrive = [], []
        stamps = read_stamps(self._receiver.stamps, first, count)
        slots = self._receiver.arrivals.slots(first, count)
        for (sent, accepted), slot in zip(stamps, slots, strict=True):
            if start <= sent < end:
                accept.append((accepted - sent) / 1e6)
                arrive.append((slot.arrived_at - sent) / 1e6)
        return accept, arrive


def _others(entrant: Entrant, start: _Reading, end: _Reading) -> float:
    known = end.server - start.server
    if entrant.cores.server == entrant.cores.load:
        known += end.client - start.client + end.receiver - start.receiver
    return max(0.0, end.cores - start.cores - known)


def check(name: str, before: Counts, accepted: int, after: Counts) -> None:
    """Raises Failed unless just `accepted` callbacks arrived in between, each once and signed."""
    if after.repeated != before.repeated:
        raise Failed(f"{name} REPEATED {after.repeated - before.repeated} callbacks")
    if after.delivered - before.delivered != accepted:
        raise Failed(
            f"{name}: {accepted} accepted, but {after.delivered - before.delivered} arrived"
        )
    if after.unknown != before.unknown or after.unsigned != before.unsigned:
        raise Failed(f"{name} sent requests that are no signed callbacks")


def in_turns(
    track: Track,
    starts: Sequence[Callable[[], AbstractContextManager[Entrant]]],
    plan: Plan,
    tell: Callable[[str], None],
) -> tuple[list[list[Sample]], int]:
    """All entrants, round by round, each at full and then at half load: samples by round, and how
    many callbacks were accepted in all.

    Each is started for its turn and stopped after it: daemons that have nothing to do take a
    twentieth of a core together, and by waking up when others are at work twice their p99.
    """
    rounds, accepted = [], 0
    for turn in range(plan.rounds):
        samples = []
        for start in starts:
            with start() as entrant:
                track.warm_up(entrant, plan.warm_up + plan.seconds)
                full = track.measure(entrant, plan, None)
                half = track.measure(entrant, plan, full.rate / 2)
            accepted += entrant.accepted
            samples += [full, half]
            tell(
                f"round {turn + 1}/{plan.rounds}  {full.contender}: {full.server:.0f} µs, "
                f"{full.rate:.0f}/s, half load p50 {half.arrive_p50:.1f} ms"
            )
        rounds.append(samples)
    return rounds, accepted


def _progresses(count: Callable[[], int], enough: int) -> bool:
    """Wait for `enough`; False once nothing has happened for long."""
    seen, since = -1, time.monotonic()
    while (now := count()) < enough:
        if now != seen:
            seen, since = now, time.monotonic()
        elif time.monotonic() - since > _PATIENCE:
            return False
        time.sleep(0.005)
    return True


def _sleep_until(at: int) -> None:
    time.sleep(max(0.0, (at - time.monotonic_ns()) / 1e9))
