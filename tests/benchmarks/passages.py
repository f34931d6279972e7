"""The way of a callback: the instants at which it was where, and how long it took in between.

All instants are nanoseconds of CLOCK_MONOTONIC.
"""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from tests.benchmarks.contenders.contender import Failed
from tests.benchmarks.figures import percentile


class Passage(NamedTuple):
    """One callback's."""

    handed_in: int
    """by the client, which notes it itself"""
    taken_in: int
    """read, decoded and found good by the daemon, which now has it stored"""
    durable: int
    """on the disk, and the daemon's own thread has heard of it"""
    started: int
    """the attempt, as it is on record"""
    arrived: int
    """whole, at the receiver"""


class Latency(NamedTuple):
    """Milliseconds."""

    p50: float
    p99: float


STAGES: Final = {
    "handed in to taken in": ("handed_in", "taken_in"),
    "taken in to durable": ("taken_in", "durable"),
    "durable to started": ("durable", "started"),
    "started to arrived": ("started", "arrived"),
}
"""One after the other."""

SUMS: Final = {
    "handed in to arrived": ("handed_in", "arrived"),
    "taken in to arrived": ("taken_in", "arrived"),
}
"""All of them, and those from when the daemon has the request."""


def joined(
    handed_in: Mapping[int, int],
    inside: Mapping[int, tuple[int, int]],
    started: Mapping[int, int],
    arrived: Mapping[int, int],
) -> list[Passage]:
    """The passages of what was `handed_in`; all by number, `inside` is (taken in, durable).

    Raises:
        Failed: an instant is missing: it was lost, or nobody took it down.
    """
    found = []
    for number, at in handed_in.items():
        passage = Passage(
            at, *inside.get(number, (0, 0)), started.get(number, 0), arrived.get(number, 0)
        )
        if not all(passage):
            raise Failed(f"callback {number} left no trace of where it was: {passage}")
        found.append(passage)
    return found


def latencies(passages: Sequence[Passage]) -> dict[str, Latency]:
    """Of each stage and of both sums. NaN where there are no passages."""
    found = {}
    for name, (begin, end) in {**STAGES, **SUMS}.items():
        took = [(getattr(p, end) - getattr(p, begin)) / 1e6 for p in passages]
        found[name] = Latency(percentile(took, 0.5), percentile(took, 0.99))
    return found
