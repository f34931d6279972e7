"""The comparison as a picture: what a callback costs, and how long it takes to arrive."""

from math import floor, log10
from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from tests.benchmarks.compare import Comparison
from tests.benchmarks.report import figure

OURS: Final = "#1b6ca8"
THEIRS: Final = "#8a8a8a"


def draw(found: Comparison, path: Path) -> None:
    """Write a PNG. Both axes are logarithmic: the contenders lie orders of magnitude apart."""
    names = [
        each.name
        for each in reversed(found.definitions)
        if each.name not in found.not_run and not each.name.startswith("(")
    ]
    canvas = Figure(figsize=(11, 1.6 + 0.55 * len(names)), layout="constrained")
    cost, latency = canvas.subplots(1, 2, sharey=True)
    for place, name in enumerate(names):
        color = OURS if name.startswith("primeflowd") else THEIRS
        _cost(cost, found, name, place, color)
        _latency(latency, found, name, place, color)
    cost.set_yticks(range(len(names)), names)
    cost.set_ylim(-0.6, len(names) - 0.4)
    cost.set_title("CPU µs a callback, all processes (less is better)", fontsize=10)
    latency.set_title("ms to arrive at half load: p50 to p99 (less is better)", fontsize=10)
    for axes in (cost, latency):
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        # Whole decades, and room for the text on the right.
        axes.set_xlim(10 ** floor(log10(low)), high * 6)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(axis="x", which="both", alpha=0.25)
        axes.set_axisbelow(True)
    facts = found.facts
    canvas.supxlabel(f"{facts['date']}, {facts['processor']}, kernel {facts['kernel']}", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.savefig(path, dpi=130)


def _cost(axes: Axes, found: Comparison, name: str, place: int, color: str) -> None:
    seen = figure(found, name, "full", lambda s: s.server)
    errors = [[seen.median - seen.low], [seen.high - seen.median]]
    # No bars: on a logarithmic axis their lengths would mean nothing.
    axes.errorbar(seen.median, place, xerr=errors, fmt="o", color=color, markersize=9, capsize=4)
    axes.annotate(
        f"{seen.median:,.0f}", (seen.high, place), (6, 0), textcoords="offset points",
        va="center", fontsize=9,
    )  # fmt: skip


def _latency(axes: Axes, found: Comparison, name: str, place: int, color: str) -> None:
    p50 = figure(found, name, "half", lambda s: s.arrive_p50).median
    p99 = figure(found, name, "half", lambda s: s.arrive_p99).median
    axes.plot([p50, p99], [place, place], "o-", color=color, linewidth=3)
    axes.annotate(
        f"{p50:.1f} - {p99:.1f}", (p99, place), (8, 0), textcoords="offset points",
        va="center", fontsize=9,
    )  # fmt: skip
