"""The table of metrics in systemd/monitoring/README.md, as values."""

import re
from pathlib import Path

MONITORING = Path(__file__).parent.parent / "systemd" / "monitoring"

Table = dict[str, tuple[str, set[str]]]
"""Type and labels by the name of a metric."""


def documented() -> Table:
    text = (MONITORING / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) ?\| \S", text, re.MULTILINE)
    assert len(rows) == len({name for name, *_ in rows})
    return {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
