import json
from dataclasses import asdict

import pytest

from tests.benchmarks import report
from tests.benchmarks.compare import Comparison
from tests.benchmarks.contenders.contender import Definition
from tests.benchmarks.contenders.direct import ReceiverAlone
from tests.benchmarks.contenders.primeflowd import Primeflowd
from tests.benchmarks.machine import Cores
from tests.benchmarks.rounds import Plan, Sample

ONE = Cores(frozenset({0}), frozenset({1}))
BOTH = Cores(frozenset({0, 1}), frozenset({0, 1}))


def sample(name: str, load: str, server: float, busy: float = 0.5) -> Sample:
    figures = dict.fromkeys(Sample.__dataclass_fields__, 1.0)
    return Sample(
        **{  # type: ignore[arg-type]  # one dict for fields of several types
            **figures,
            "contender": name, "load": load, "server": server, "load_busy": busy,
            "accepted": 10, "refused": 0, "rate": 5000.0, "body_bytes": 600.0,
        }
    )  # fmt: skip


def comparison() -> Comparison:
    definitions: tuple[Definition, ...] = (
        ReceiverAlone(ONE),
        Primeflowd("primeflowd, single", 1, ONE),
        Primeflowd("primeflowd, bulk", 100, BOTH),
        Primeflowd("other", 1, ONE),
    )
    rounds = [
        [
            sample("(the receiver alone)", "full", 10),
            sample("primeflowd, single", "full", 100 * noise),
            sample("primeflowd, single", "half", 150 * noise),
            sample("primeflowd, bulk", "full", 50 * noise, busy=0.95),
            sample("primeflowd, bulk", "half", 60 * noise),
        ]
        for noise in (1.0, 2.0, 1.1)
    ]
    return Comparison(
        definitions, {"other": "no such thing"}, {"primeflowd": "1"}, {"kernel": "6"},
        Plan(3, 3.0, 0.5), rounds, 60.0,
    )  # fmt: skip


def rows(text: str) -> dict[str, list[str]]:
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {cells[0]: [cell.strip() for cell in cells] for cells in lines}


def test_the_table_shows_medians_ranges_and_paired_ratios() -> None:
    found = rows(report.markdown(comparison(), "cmd"))
    assert found["primeflowd, single"][1:6] == [
        "1", "110 (100-200)", "1.00 (1.00-1.00)", "2.00 (2.00-2.00)", "5,000 (5,000-5,000)",
    ]  # fmt: skip
    assert found["primeflowd, bulk"][1:4] == ["2, shared", "55 (50-100)", "0.500 (0.500-0.500)"]
    assert found["kernel"] == ["kernel", "6"]


def test_the_clients_own_cpu_counts_only_where_the_column_says_so() -> None:
    found = rows(report.markdown(comparison(), "cmd"))
    names = found["contender"]
    single = dict(zip(names, found["primeflowd, single"], strict=True))
    assert single["CPU µs a callback"] == "110 (100-200)"
    assert single["client CPU µs"] == "1 (1-1)"
    # 101 of 51, 201 of 101 and 111 of 56.
    assert single["with the client, × bulk of 100"] == "1.98 (1.98-1.99)"


def test_what_was_not_run_is_in_the_table_with_its_reason() -> None:
    assert rows(report.markdown(comparison(), "cmd"))["other"][2] == "not run: no such thing"


def test_a_load_side_that_was_the_limit_stands_out() -> None:
    found = rows(report.markdown(comparison(), "cmd"))
    assert "**95%**" in found["primeflowd, bulk"]
    assert "50%" in found["primeflowd, single"]


def test_a_table_fills_short_rows() -> None:
    assert report.table(("a", "b"), [["1", "2"], ["3"]]) == [
        "| a | b |", "| --- | ---: |", "| 1 | 2 |", "| 3 |  |",
    ]  # fmt: skip


def test_every_raw_round_is_in_the_json() -> None:
    found = comparison()
    stored = json.loads(report.as_json(found, "cmd"))
    assert stored["rounds"] == [[asdict(s) for s in each] for each in found.rounds]
    assert stored["not_run"] == {"other": "no such thing"}


def test_the_json_gives_the_comparison_again() -> None:
    found = comparison()
    assert report.from_json(report.as_json(found, "cmd"), found.definitions) == (found, "cmd")


def test_a_row_of_the_json_that_is_no_contender_any_more_is_refused() -> None:
    found = comparison()
    with pytest.raises(ValueError, match="no contender is called primeflowd, single"):
        report.from_json(
            report.as_json(found, "cmd"), found.definitions[2:] + found.definitions[:1]
        )
