"""The figures of `--growth` as Markdown and as a picture, beside what they are wanted to be."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.benchmarks import reads
from tests.benchmarks.figures import ratios, spread
from tests.benchmarks.report import table

FLAT: Final = 1.3
"""What is called flat is at most so many times what the empty daemon takes."""

MEASURES: Final = {
    "rate": "bulk of 100, full load: callbacks/s",
    "cpu": "bulk of 100, full load: CPU µs a callback",
    "accept": "single POST, steady: answer, p50 ms",
    "accept_p99": "single POST, steady: answer, p99 ms",
    "arrive": "single POST, steady: arrival, p50 ms",
    "arrive_p99": "single POST, steady: arrival, p99 ms",
    "single_cpu": "single POST, steady: CPU µs a callback",
    **reads.NAMES,
    "shape": "`GET /v1/deliveries/shape`, again, ms",
    "first_shape": "`GET /v1/deliveries/shape`, first after the start, ms",
    "rss": "RSS MB at full load",
    "served": "served after the start, s",
    "attempted": "first attempt after the start, s",
}

_FLAT: Final = ("rate", "cpu", "accept", "arrive", "single_cpu", *reads.NAMES)
"""Which shall be flat. The rest have bounds of their own, or none: a p99 of seconds is noise."""

_READING: Final = f"""\
Medians; in parentheses the range of the empty daemon, and for the others the median of the ratios
to it, round by round; **bold** is what shall be within {FLAT:g} times and is not. A row of history
is a batch with its delivery and its attempt; a waiting one is due tomorrow. RSS is measured while
the daemon delivers all it can. The start is measured once, with one retry overdue: from the start
of the process to the listening socket, and to the arrival of that retry."""


@dataclass(frozen=True)
class Found:
    """What was measured at one size of history; `octets` is the size of the file."""

    name: str
    samples: Mapping[str, Sequence[float]]
    octets: int

    def factor(self, empty: "Found", measure: str) -> float:
        """How many times worse it is than `empty`, which is less for a rate."""
        ratio = ratios(self.samples[measure], empty.samples[measure]).median
        return 1 / ratio if measure == "rate" and ratio else ratio


def markdown(found: Sequence[Found], notes: Sequence[str]) -> str:
    """The whole report; the first of `found` is the empty daemon."""
    empty = found[0]
    rows = [[text, *(_cell(each, empty, key) for each in found)] for key, text in MEASURES.items()]
    rows.append(["database, MB", *(f"{each.octets / 1e6:,.0f}" for each in found)])
    lines = [
        "# What a past costs",
        "",
        notes[0],
        "",
        *table(("", *(each.name for each in found)), rows),
        "",
        _READING,
        "",
        *table(("wanted", "found", ""), [[w, f, "yes" if ok else "**no**"] for w, f, ok in
                                         verdicts(found)]),
        "",
        *(f"- {note}" for note in notes[1:]),
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def verdicts(found: Sequence[Found]) -> list[tuple[str, str, bool]]:
    """What is wanted, what was found, and whether that is as wanted."""
    empty, *others = found
    lines: list[tuple[str, str, bool]] = []
    for name in _FLAT:
        worst = max(others, key=lambda each: each.factor(empty, name), default=empty)
        factor = worst.factor(empty, name)
        text = f"× {factor:.2f} ({worst.name})"
        lines.append((f"{MEASURES[name]}: at most × {FLAT:g}", text, factor <= FLAT))

    def bound(name: str, most: float, of: Callable[[Found], bool]) -> None:
        for each in filter(of, found):
            value = spread(each.samples[name]).median
            wanted = f"{MEASURES[name]}, {each.name}: at most {most:g}"
            lines.append((wanted, _number(value), value <= most))

    bound("rss", 150, lambda each: "waiting" not in each.name)
    bound("rss", 250, lambda each: "waiting" in each.name)
    bound("attempted", 2, lambda each: "waiting" in each.name)
    bound("first_shape", 500, lambda each: "waiting" in each.name)
    bound("shape", 500, lambda each: "waiting" in each.name)
    return lines


def draw(found: Sequence[Found], facts: Mapping[str, str], path: Path) -> None:
    """Write a PNG: each measure that shall be flat, as a multiple of the empty daemon's.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import StrMethodFormatter

    canvas = Figure(figsize=(9, 1.8 + 0.45 * len(_FLAT)), layout="constrained")
    axes = canvas.subplots()
    axes.axvspan(1 / FLAT, FLAT, color="#1b6ca8", alpha=0.08)
    axes.axvline(1, color="#8a8a8a", linewidth=1)
    names = tuple(reversed(_FLAT))
    for shade, each in enumerate(found[1:], 1):
        factors = [each.factor(found[0], name) for name in names]
        alpha = 0.35 + 0.65 * shade / len(found)
        marker = "D" if "waiting" in each.name else "o"
        axes.plot(factors, range(len(names)), marker, color="#1b6ca8", alpha=alpha, label=each.name)
    axes.set_yticks(range(len(names)), [MEASURES[name].replace("`", "") for name in names])
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.5), max(high, 2))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
    axes.grid(axis="x", which="both", alpha=0.25)
    axes.set_title(
        f"Times what the empty daemon takes (less is better; shaded: within {FLAT:g})", fontsize=10
    )
    axes.legend(loc="best")
    canvas.supxlabel(f"{facts['date']}, {facts['processor']}, kernel {facts['kernel']}", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, dpi=130)


def _cell(each: Found, empty: Found, measure: str) -> str:
    seen = spread(each.samples[measure])
    if each is empty:
        return seen.text() if len(each.samples[measure]) > 1 else _number(seen.median)
    factor = each.factor(empty, measure)
    ratio = 1 / factor if measure == "rate" and factor else factor
    text = f"{_number(seen.median)} (× {ratio:.2f})"
    return f"**{text}**" if measure in _FLAT and factor > FLAT else text


def _number(value: float) -> str:
    digits = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:,.{digits}f}"
