"""`python -m tests.benchmarks`: what one callback costs, beside what else one would build with.

Without a flag: the comparison, in a quarter of an hour, into `results/`. `--stages`, `--growth`,
`--purge`, `--soak` and `--outbound` are measurements of their own. Each writes the README's part
about speed anew, from what is in `results/` then; `--draw` measures nothing, and does that alone.
Two cores are needed, and a quiet machine if the figures are to mean anything. A run in which a
callback is lost or repeated fails, says so, and writes no report.
"""

import argparse
import shlex
import signal
import sys
import tempfile
from pathlib import Path

from tests.benchmarks import compare, excerpt, growth, outbound, purge, report, setup, soak, stages
from tests.benchmarks.contenders.contender import REPOSITORY
from tests.benchmarks.contenders.table import named
from tests.benchmarks.rounds import Plan

RESULTS = Path(__file__).parent / "results"
README = REPOSITORY / "README.md"


def options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--setup", action="store_true", help="install what contenders need first")
    kind.add_argument(
        "--outbound", action="store_true", help="our transport alone, with TLS and without"
    )
    kind.add_argument(
        "--draw", action="store_true", help="report and picture again, from results.json"
    )
    kind.add_argument(
        "--stages", action="store_true", help="where the time of a callback goes, stage by stage"
    )
    kind.add_argument("--growth", action="store_true", help="with 0 to 10,000,000 rows of history")
    kind.add_argument(
        "--purge", type=int, nargs="?", const=purge.ROWS, metavar="ROWS",
        help="while so many old rows are removed (default: 1,000,000)",
    )  # fmt: skip
    kind.add_argument(
        "--soak", type=float, nargs="?", const=30.0, metavar="MINUTES",
        help="at 70 %% load, with failing and hanging receivers (default: 30)",
    )  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.5, help="of each measurement")
    parser.add_argument("--warm-up", type=float, default=0.5, metavar="SECONDS", help="before it")
    parser.add_argument("--only", default="", metavar="TEXT", help="contenders named so")
    parser.add_argument(
        "--history", type=int, nargs="+", default=growth.HISTORY, metavar="ROWS",
        help="what --growth looks at",
    )  # fmt: skip
    parser.add_argument(
        "--waiting", type=int, default=growth.WAITING, metavar="ROWS", help="retries, for --growth"
    )
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIRECTORY")
    parser.add_argument(
        "--disk", type=Path, default=Path(tempfile.gettempdir()), metavar="DIRECTORY",
        help="where the databases lie: on the disk that is to be measured",
    )  # fmt: skip
    parser.add_argument("--cache", type=Path, default=setup.default_cache(), metavar="DIRECTORY")
    return parser.parse_args(argv)


def _draw(found: compare.Comparison, path: Path) -> None:
    try:
        from tests.benchmarks import plot
    except ModuleNotFoundError as missing:
        # The figures are written; the picture is not worth losing a quarter of an hour for.
        print(f"{path.name} was not drawn: {missing}", file=sys.stderr)
    else:
        plot.draw(found, path)


def _show(found: compare.Comparison, command: str, output: Path) -> None:
    text = report.markdown(found, command)
    report.write(output, {"results.md": text, "results.json": report.as_json(found, command)})
    print(text)
    _draw(found, output / "results.png")


def _stored(directory: Path) -> tuple[compare.Comparison, str]:
    return report.from_json((directory / "results.json").read_text("utf-8"), named())


def main() -> None:
    """Parse the command line, measure, write, print."""
    # A run that is ended by a signal ends its daemons and removes its databases, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    given = options(sys.argv[1:])
    command = shlex.join(["python", "-m", "tests.benchmarks", *sys.argv[1:]])
    _run(given, command)
    # A part of the table is not for the README; another directory is for somebody's own eyes.
    if given.output == RESULTS and not given.only and (RESULTS / "results.json").exists():
        page = excerpt.put(README.read_text("utf-8"), excerpt.markdown(*_stored(RESULTS), RESULTS))
        README.write_text(page, "utf-8")


def _run(given: argparse.Namespace, command: str) -> None:
    plan = Plan(given.rounds, given.seconds, given.warm_up)
    if given.draw:
        _show(*_stored(given.output), given.output)
        return
    if given.growth:
        growth.run(
            plan, [*given.history], given.waiting, given.disk, given.cache, given.output, command
        )
        return
    if given.purge is not None:
        purge.run(plan, given.purge, given.disk, given.cache, given.output, command)
        return
    if given.outbound:
        outbound.run(plan, given.cache, given.output, command)
        return
    if given.stages:
        stages.run(plan, given.disk, given.cache, given.output, command)
        return
    if given.soak is not None:
        soak.run(given.soak, given.disk, given.cache, given.output, command)
        return
    if given.setup:
        setup.install(given.cache)
    found = compare.compare(plan, given.disk, given.cache, given.only)
    _show(found, command, given.output)


if __name__ == "__main__":
    main()
