"""What is in systemd/monitoring, as values: the table of its README.md, alerts, dashboard."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

MONITORING = Path(__file__).parent.parent / "systemd" / "monitoring"

Table = dict[str, tuple[str, set[str]]]
"""Type and labels by the name of a metric."""


def documented() -> Table:
    text = (MONITORING / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) ?\| \S", text, re.MULTILINE)
    assert len(rows) == len({name for name, *_ in rows})
    return {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def alerts() -> list[dict[str, Any]]:
    with (MONITORING / "alerts.yml").open(encoding="utf-8") as file:
        [group] = yaml.safe_load(file)["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def dashboard() -> dict[str, Any]:
    text = (MONITORING / "grafana-dashboard.json").read_text(encoding="utf-8")
    shown: dict[str, Any] = json.loads(text)
    return shown


def expressions() -> Iterator[tuple[str, str]]:
    """Every expression of both files, with where it stands."""
    for rule in alerts():
        yield rule["alert"], rule["expr"]
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
