"""The README's part about speed is what `results/` holds, and says where others are ahead."""

from pathlib import Path

import pytest

from tests.benchmarks import excerpt, report
from tests.benchmarks.__main__ import README, RESULTS
from tests.benchmarks.compare import Comparison
from tests.benchmarks.contenders.table import named
from tests.benchmarks.rounds import Plan
from tests.benchmarks.test_report import rows, sample

OURS, BULLMQ, CELERY = excerpt.GROUPS[0].names
FACTS = dict.fromkeys(("date", "processor", "memory", "kernel", "disk"), "so")


def comparison(theirs: float, not_run: str = CELERY) -> Comparison:
    """Our single POST takes 100 µs, BullMQ `theirs`; all else is equal."""
    shown = {OURS: 100.0, BULLMQ: theirs, CELERY: 300.0}
    rounds = [
        [
            sample(name, load, server)
            for name, server in shown.items()
            if name != not_run
            for load in ("full", "half")
        ]
    ]
    definitions = tuple(each for each in named() if each.name in shown)
    return Comparison(
        definitions, {not_run: "missing"}, {"Redis": "7"}, FACTS, Plan(1, 1.0, 0.5), rounds, 9.0
    )


def test_all_rows_of_the_readme_are_contenders_with_one_core() -> None:
    contenders = {each.name: each for each in named()}
    for group in excerpt.GROUPS:
        assert group.names[0].startswith("primeflowd")
        for name in group.names:
            assert contenders[name].size == group.size
            assert contenders[name].cores.text == "1"


def test_a_row_is_compared_with_ours_of_its_group(tmp_path: Path) -> None:
    found = rows(excerpt.markdown(comparison(250), "cmd", tmp_path))
    assert found[f"**{OURS}**"][1:5] == ["100", "1.00", "1.00", "5,000"]
    # Each client takes 1 µs.
    assert found[BULLMQ][1:5] == ["250", "2.50", "2.49", "5,000"]


def test_what_was_not_run_has_no_row(tmp_path: Path) -> None:
    text = excerpt.markdown(comparison(250), "cmd", tmp_path)
    assert CELERY not in text
    assert "a hundred" not in text


def test_others_that_are_ahead_are_named() -> None:
    assert excerpt.behind(comparison(80)) == [f"- {BULLMQ}: CPU a callback 80 µs ({OURS}: 100 µs)"]


def test_equal_figures_and_rows_of_ours_are_not_ahead() -> None:
    assert excerpt.behind(comparison(100)) == ["- in none of these figures, this time"]


def test_nobody_is_ahead_of_what_was_not_run() -> None:
    assert excerpt.behind(comparison(80, OURS)) == ["- in none of these figures, this time"]


def test_reports_that_are_there_are_linked(tmp_path: Path) -> None:
    (tmp_path / "soak.md").touch()
    text = excerpt.markdown(comparison(250), "cmd", tmp_path)
    assert f"({excerpt.FOLDER}/soak.md)" in text
    assert f"({excerpt.FOLDER}/results.md)" in text
    assert "growth.md" not in text


def test_only_what_is_between_the_markers_is_replaced() -> None:
    page = f"a\n{excerpt.FIRST}\nold\n{excerpt.LAST}\nb\n"
    assert excerpt.put(page, "new") == f"a\n{excerpt.FIRST}\n\nnew\n\n{excerpt.LAST}\nb\n"
    with pytest.raises(ValueError, match="unpack"):
        excerpt.put("no markers", "new")


def test_what_is_shown_is_what_was_measured() -> None:
    """Nothing was edited by hand; if this fails, `python -m tests.benchmarks --draw`."""
    found, command = report.from_json((RESULTS / "results.json").read_text("utf-8"), named())
    assert (RESULTS / "results.md").read_text("utf-8") == report.markdown(found, command)
    page = README.read_text("utf-8")
    assert page == excerpt.put(page, excerpt.markdown(found, command, RESULTS))
