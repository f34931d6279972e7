"""What the README shows of the comparison: a few rows, and where others are ahead of us.

Owns the README's part between the two markers: it is generated, as all that is in `results/`.
"""

import operator
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tests.benchmarks.compare import Comparison
from tests.benchmarks.report import figure, relative, server, table, with_client
from tests.benchmarks.rounds import Sample

FIRST, LAST = "<!-- speed, generated -->", "<!-- end of speed -->"
FOLDER: Final = "tests/benchmarks/results"


class Group(NamedTuple):
    """Contenders that are handed callbacks in the same way; ours is the first."""

    size: int
    title: str
    names: tuple[str, ...]


GROUPS: Final = (
    Group(
        1,
        "handed in one at a time",
        (
            "primeflowd, single POST",
            "BullMQ + Redis + undici, add",
            "Celery + Redis + requests",
        ),
    ),
    Group(
        100,
        "handed in a hundred at a time",
        (
            "primeflowd, bulk of 100",
            "primeflowd, bulk of 100, PostgreSQL, 1 node",
            "BullMQ + Redis + undici, addBulk(100)",
        ),
    ),
)
"""All of them have one core for everything that is theirs."""

_COLUMNS: Final = (
    "CPU µs a callback",
    "CPU, × the group's first",
    "with the client, ×",
    "callbacks/s",
    "p50 ms",
    "p99 ms",
)

_MORE: Final = {
    "results.md": "every row with its ranges, and how it was measured",
    "stages.md": "where the time of one goes",
    "growth.md": "with millions of old rows",
    "purge.md": "while old rows are removed",
    "outbound.md": "the transport alone",
    "soak.md": "at length, among receivers that fail and hang",
}


class _Measure(NamedTuple):
    """Something that a contender can be ahead in."""

    what: str
    text: str
    load: str
    of: Callable[[Sample], float]
    better: Callable[[float, float], bool]


_MEASURES: Final = (
    _Measure("CPU a callback", "{:,.0f} µs", "full", lambda s: s.server, operator.lt),
    _Measure("rate", "{:,.0f} callbacks/s", "full", lambda s: s.rate, operator.gt),
    _Measure("p50", "{:.1f} ms", "half", lambda s: s.arrive_p50, operator.lt),
    _Measure("p99", "{:.1f} ms", "half", lambda s: s.arrive_p99, operator.lt),
)


def present(found: Comparison, group: Group) -> list[str]:
    """Those of the group that were run."""
    run = {each.name for each in found.definitions} - found.not_run.keys()
    return [name for name in group.names if name in run]


def markdown(found: Comparison, command: str, folder: Path) -> str:
    """What stands between the markers; it links those reports that are in `folder`."""
    facts, plan = found.facts, found.plan
    versions = ", ".join(f"{key} {v}" for key, v in found.versions.items() if key not in facts)
    links = [f"[{text}]({FOLDER}/{name})" for name, text in _MORE.items() if _is_in(folder, name)]
    about = (
        f"Medians of {plan.rounds} rounds of `{command}`, {facts['date']}; thin lines in the "
        f"picture run from the least to the most, × is the median of the ratios round by "
        f"round. All that belongs to a row (daemon, workers, Redis, PostgreSQL) shares one core; "
        f"client and receiver have another; *with the client* counts what handing in costs, too. "
        f"p50 and p99 run from handing in to the arrival, at half the row's own rate. "
        f"{facts['processor']}, {facts['memory']}, kernel {facts['kernel']}; {facts['disk']}. "
        f"{versions}."
    )
    return "\n\n".join(
        (
            f"![Callbacks a second and time to arrive, of each row]({FOLDER}/results.png)",
            "\n".join(_table(found)),
            "\n".join(("Where others are ahead of primeflowd:", "", *behind(found))),
            _wrapped(about),
            _wrapped(f"More: {'; '.join(links)}."),
        )
    )


def behind(found: Comparison) -> list[str]:
    """A line for each figure in which another contender of the same group is ahead of ours."""
    lines = []
    for group in GROUPS:
        names = present(found, group)
        if group.names[0] not in names:
            continue
        ours, *others = names
        for name in others:
            if not name.startswith("primeflowd"):
                lines += [f"- {name}: {text}" for text in _ahead(found, name, ours)]
    return lines or ["- in none of these figures, this time"]


def put(page: str, text: str) -> str:
    """The page with `text` between the markers.

    Raises:
        ValueError: the page has no such place.
    """
    before, rest = page.split(FIRST)
    _, after = rest.split(LAST)
    return f"{before}{FIRST}\n\n{text}\n\n{LAST}{after}"


def _table(found: Comparison) -> list[str]:
    rows = []
    for group in GROUPS:
        names = present(found, group)
        if names:
            rows.append([f"*{group.title}*"])
            rows += [_row(found, name, group.size) for name in names]
    return table(("", *_COLUMNS), rows)


def _row(found: Comparison, name: str, size: int) -> list[str]:
    cpu, rate, p50, p99 = (figure(found, name, m.load, m.of).median for m in _MEASURES)
    times, whole = (relative(found, name, size, of).median for of in (server, with_client))
    label = f"**{name}**" if name.startswith("primeflowd") else name
    ratios = (f"{times:#.3g}", f"{whole:#.3g}")
    return [label, f"{cpu:,.0f}", *ratios, f"{rate:,.0f}", f"{p50:.1f}", f"{p99:.1f}"]


def _ahead(found: Comparison, name: str, ours: str) -> Iterator[str]:
    for measure in _MEASURES:
        theirs, own = (
            figure(found, each, measure.load, measure.of).median for each in (name, ours)
        )
        if measure.better(theirs, own):
            their_text, own_text = measure.text.format(theirs), measure.text.format(own)
            yield f"{measure.what} {their_text} ({ours}: {own_text})"


def _is_in(folder: Path, name: str) -> bool:
    # results.md is written together with this.
    return name == "results.md" or (folder / name).exists()


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 104, break_long_words=False, break_on_hyphens=False)
