"""The figures of `--stages` as Markdown."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from tests.benchmarks.contenders.contender import HOSTS
from tests.benchmarks.figures import Spread, ratios, spread
from tests.benchmarks.passages import STAGES, SUMS, Latency
from tests.benchmarks.report import table
from tests.benchmarks.rounds import Sample

FULL, HALF, STEADY = "full", "half", "steady"

PLAIN: Final = "primeflowd, single POST"
STAMPED: Final = "the same, noting instants"

_READING: Final = f"""\
Medians of the rounds, in parentheses the least and the most. Callbacks are handed in one in each
POST, steadily paced, to {HOSTS} destinations; the daemon has a core to itself, client and receiver
another. After every measurement all that was accepted has arrived, once, signed, and is on record
so. Percentiles are of each stage by itself: those of several do not add up to that of their sum.

- **handed in to taken in**: from the client's own stamp until the daemon has read the request,
  decoded it and found it good, and asks its storage for a commit. A request waits here until a
  connection is free, and then until the daemon, busy with something else, looks at it.
- **taken in to durable**: the wait for the group commit, the commit, and until the thread of the
  daemon that goes on with it has heard of it.
- **durable to started**: until the attempt starts, by the instant that is on record of it, just
  before it is sent. That is the time of day, set off against the clock of the others afterwards.
- **started to arrived**: until the receiver has it, and has got round to noting it.
- **handed in to arrived** is what results.md calls p50 and p99; **taken in to arrived** leaves out
  what comes before the daemon has the request."""


class Round(NamedTuple):
    """Samples of both, and by load the latencies of each stage and of the sums."""

    samples: list[Sample]
    stages: dict[str, dict[str, Latency]]


def markdown(rounds: Sequence[Round], rate: float, note: str, facts: Mapping[str, str]) -> str:
    """The whole report; `rate` is that of the load that stays the same."""
    names = {HALF: "half load", STEADY: f"{rate:,.0f}/s"}
    columns = [f"{text}, {p} ms" for text in names.values() for p in ("p50", "p99")]
    lines = [
        "# Where the time of a callback goes",
        "",
        note,
        "",
        *table(("", *columns), [_row(rounds, stage, names) for stage in (*STAGES, *SUMS)]),
        "",
        f"Half load is half of the rate that was reached in the same round: {_half(rounds)}/s.",
        "",
        _READING,
        "",
        "What noting the instants adds, which is in all that stands above; both in turns, in the "
        "same rounds:",
        "",
        *table(
            (
                "",
                "callbacks/s at full load",
                "CPU µs, full load",
                "×, full load",
                "CPU µs, half load",
                f"CPU µs, {rate:,.0f}/s",
                "handed in to arrived, half load, p50 ms",
                "p99 ms",
            ),
            [_cost(rounds, name) for name in (PLAIN, STAMPED)],
        ),
        "",
        *(f"- {key}: {value}" for key, value in facts.items()),
        "",
    ]
    return "\n".join(lines)


def _row(rounds: Sequence[Round], stage: str, loads: Mapping[str, str]) -> list[str]:
    found = [[each.stages[load][stage] for each in rounds] for load in loads]
    cells = [spread(of) for each in found for of in zip(*each, strict=True)]
    return [f"**{stage}**" if stage in SUMS else stage, *(cell.text(2) for cell in cells)]


def _cost(rounds: Sequence[Round], name: str) -> list[str]:
    def figure(load: str, of: Callable[[Sample], float]) -> Spread:
        return spread(_samples(rounds, name, load, of))

    def server(sample: Sample) -> float:
        return sample.server

    ours, theirs = (_samples(rounds, each, FULL, server) for each in (name, PLAIN))
    return [
        name,
        figure(FULL, lambda s: s.rate).text(0),
        figure(FULL, server).text(1),
        ratios(ours, theirs).text(),
        figure(HALF, server).text(1),
        figure(STEADY, server).text(1),
        figure(HALF, lambda s: s.arrive_p50).text(2),
        figure(HALF, lambda s: s.arrive_p99).text(2),
    ]


def _half(rounds: Sequence[Round]) -> str:
    return spread([rate / 2 for rate in _samples(rounds, STAMPED, FULL, lambda s: s.rate)]).text(0)


def _samples(
    rounds: Sequence[Round], name: str, load: str, of: Callable[[Sample], float]
) -> list[float]:
    found = [sample for each in rounds for sample in each.samples]
    return [of(s) for s in found if (s.contender, s.load) == (name, load)]
