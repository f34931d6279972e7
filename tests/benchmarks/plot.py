"""The README's rows as a picture: how many callbacks a second, and how long one takes."""

from pathlib import Path
from typing import Final

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullFormatter, StrMethodFormatter

from tests.benchmarks.compare import Comparison
from tests.benchmarks.excerpt import GROUPS, present
from tests.benchmarks.report import figure

OURS: Final = "#1b6ca8"
THEIRS: Final = "#9a9a9a"
_GAP: Final = 1.7
"""Between the last row of a group and the first of the next, for its title; a row takes 1."""


def draw(found: Comparison, path: Path) -> None:
    """Write a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(found).savefig(path, dpi=110)


def picture(found: Comparison) -> Figure:
    """Not written yet."""
    places, titles = _places(found)
    lowest = max(places.values(), default=0.0)
    canvas = Figure(figsize=(9.8, 1.8 + 0.36 * (lowest + 1)))
    canvas.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1)
    rate, time = canvas.subplots(1, 2, sharey=True)
    for name, place in places.items():
        color = OURS if name.startswith("primeflowd") else THEIRS
        _rate(rate, found, name, place, color)
        _time(time, found, name, place, color)
    rate.set_ylim(lowest + 0.6, -1.4)
    rate.set_yticks([*places.values()], [name.removesuffix(", 1 node") for name in places])
    rate.set_title("Callbacks a second", loc="left", fontsize=11, fontweight="bold")
    rate.set_xlabel("on one core; more is better", fontsize=9)
    time.set_title("Time to arrive", loc="left", fontsize=11, fontweight="bold")
    time.set_xlabel("at half load; less is better; logarithmic", fontsize=9)
    _finish(rate, time)
    for place, title in titles:
        rate.text(0, place - 0.75, title, fontsize=9, style="italic", va="center")
    canvas.legend(handles=_legend(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return canvas


def _places(found: Comparison) -> tuple[dict[str, float], list[tuple[float, str]]]:
    """Where each row is, from above, and each title with the row below it."""
    places: dict[str, float] = {}
    titles = []
    at = 0.0
    for group in GROUPS:
        names = present(found, group)
        if names:
            titles.append((at, group.title))
            places |= {name: at + k for k, name in enumerate(names)}
            at += len(names) - 1 + _GAP
    return places, titles


def _rate(axes: Axes, found: Comparison, name: str, place: float, color: str) -> None:
    seen = figure(found, name, "full", lambda s: s.rate)
    errors = [[seen.median - seen.low], [seen.high - seen.median]]
    axes.barh(
        place, seen.median, 0.62, color=color,
        xerr=errors, error_kw={"elinewidth": 1, "capsize": 2, "ecolor": "#404040"},
    )  # fmt: skip
    axes.annotate(
        f"{seen.median:,.0f}", (seen.high, place), (5, 0), textcoords="offset points",
        va="center", fontsize=9,
    )  # fmt: skip


def _time(axes: Axes, found: Comparison, name: str, place: float, color: str) -> None:
    p50 = figure(found, name, "half", lambda s: s.arrive_p50).median
    p99 = figure(found, name, "half", lambda s: s.arrive_p99).median
    axes.plot([p50, p99], [place, place], "-", color=color, linewidth=3, zorder=2)
    axes.plot(p50, place, "o", color=color, markersize=8)
    axes.plot(p99, place, "o", color=color, markersize=8, markerfacecolor="white")
    for value, shift, side in ((p50, -8, "right"), (p99, 8, "left")):
        axes.annotate(
            f"{value:.1f}", (value, place), (shift, 0), textcoords="offset points",
            va="center", ha=side, fontsize=9,
        )  # fmt: skip


def _finish(rate: Axes, time: Axes) -> None:
    """Scales with room for the figures beside what they stand for, and no more ink than needed."""
    rate.set_xlim(0, rate.get_xlim()[1] * 1.15)
    rate.xaxis.set_major_locator(MaxNLocator(5))
    rate.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    time.set_xscale("log")
    low, high = time.get_xlim()
    time.set_xlim(low / 2, high * 2)
    time.xaxis.set_major_formatter(StrMethodFormatter("{x:g} ms"))
    time.xaxis.set_minor_formatter(NullFormatter())
    for axes in (rate, time):
        axes.grid(axis="x", alpha=0.3)
        axes.set_axisbelow(True)
        axes.tick_params(axis="y", length=0)
        axes.tick_params(axis="x", labelsize=9)
        axes.spines[["top", "right", "left"]].set_visible(False)


def _legend() -> list[Patch | Line2D]:
    return [
        Patch(color=OURS, label="primeflowd: fsync before the answer"),
        Patch(color=THEIRS, label="others: Redis AOF, fsync once a second"),
        Line2D([], [], color="#404040", marker="o", linestyle="", label="p50"),
        Line2D(
            [], [], color="#404040", marker="o", linestyle="", markerfacecolor="white", label="p99"
        ),
    ]
