"""The files of systemd/monitoring: well-formed, and of metrics that exist, by labels they have."""

import json
import re
import shutil
import subprocess

import pytest

from tests.monitoring import MONITORING, alerts, dashboard, documented, expressions

# Given by Prometheus to every series, and by every histogram to its buckets.
EVERYWHERE = {"job", "instance", "le"}


def series() -> dict[str, set[str]]:
    """The labels of everything that can be asked for, by its name."""
    found: dict[str, set[str]] = {}
    for name, (kind, labels) in documented().items():
        parts = ("_bucket", "_count", "_sum") if kind == "histogram" else ("",)
        found |= {f"{name}{part}": labels for part in parts}
    return found


def complaints(expression: str) -> list[str]:
    """What is wrong with an expression's names."""
    known = series()
    bare = re.sub(r'"[^"]*"', '""', expression)
    names = set(re.findall(r"\b(?:primeflowd|process)_\w+", bare))
    found = [f"there is no {name}" for name in names - known.keys()]
    labels = {label for name in names & known.keys() for label in known[name]} | EVERYWHERE
    used = set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)\s*\"\"", bare))
    for group in re.findall(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)", bare):
        used |= {label.strip() for label in group.split(",")}
    found += [f"no label {label}" for label in used - labels]
    found += ["names nothing"] if not names else []
    if bare.count("(") != bare.count(")"):
        found.append("parentheses")
    return found


@pytest.mark.parametrize(
    ("expression", "wrong"),
    [
        ("primeflowd_ready == 0", False),
        ("primeflowd_redy == 0", True),
        ("rate(primeflowd_loop_lag_seconds[5m])", True),  # a histogram is asked for by its parts
        ('primeflowd_ready{outcome="2xx"}', True),
        ("sum by (outcome) (primeflowd_attempts_total)", False),
        ("sum by (result) (primeflowd_attempts_total)", True),
        ("sum(primeflowd_ready", True),
    ],
)
def test_wrong_names_are_found(expression: str, wrong: bool) -> None:
    assert bool(complaints(expression)) is wrong


def test_expressions_are_of_metrics_and_labels_that_exist() -> None:
    found = list(expressions())
    assert len(found) > 40
    for where, expression in found:
        assert complaints(expression) == [], where


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    for rule in alerts():
        assert set(rule) - {"for"} == {"alert", "expr", "labels", "annotations"}
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert set(rule["annotations"]) == {"summary", "description"}
        assert rule["alert"].startswith("Primeflowd")
    assert len({rule["alert"] for rule in alerts()}) == len(alerts())


def test_what_annotations_name_is_left_by_the_expression() -> None:
    """A label that was summed away is an empty word in somebody's night."""
    for rule in alerts():
        text = " ".join(rule["annotations"].values())
        named = set(re.findall(r"\$labels\.(\w+)", text)) - {"job", "instance"}
        grouped = re.findall(r"\bby \(([^)]*)\)", rule["expr"])
        for kept in grouped:
            assert named <= {label.strip() for label in kept.split(",")}, rule["alert"]
        if not grouped:
            names = re.findall(r"\bprimeflowd_\w+", rule["expr"])
            assert named <= set.union(*(series()[name] for name in names)), rule["alert"]


def test_the_dashboard_shows_every_metric_of_ours() -> None:
    shown = json.dumps(dashboard())
    for name in documented():
        if name.startswith("primeflowd_") and not name.endswith("_limit"):
            assert name in shown, name


def test_panels_have_a_place_each() -> None:
    panels = dashboard()["panels"]
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({panel["title"] for panel in panels}) == len(panels)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_has_no_complaint() -> None:
    done = subprocess.run(
        ["promtool", "check", "rules", str(MONITORING / "alerts.yml")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
