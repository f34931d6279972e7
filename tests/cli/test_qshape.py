"""`qshape` beside a daemon."""

from tests.cli.api_commands import Desk


def test_table_and_json(desk: Desk) -> None:
    """The totals first, then destinations; what waits for its retry is due later."""
    _, delivery = desk.ended_batch("http://127.0.0.1:1/qshape")
    try:
        found = desk.json("qshape")
        assert found["total"]["waiting"] >= 1
        heading, total, *rows = desk.told("qshape").splitlines()
        assert heading.split() == (
            ["DESTINATION", "TOTAL", "LATER", "10s", "1m", "5m", "15m", "1h", "6h", "1d", "1d+"]
        )
        assert total.split()[:2] == ["TOTAL", str(found["total"]["waiting"])]
        assert any(row.startswith("http://127.0.0.1:1 ") for row in rows)
    finally:
        desk.told("deliveries", "cancel", delivery)
