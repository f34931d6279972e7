"""A real daemon purges: one that is killed in the middle of it has removed whole batches."""

import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import trio

from primeflowd.builtin.sqlite import open_sqlite
from primeflowd.hookspecs import Tx
from primeflowd.instants import DAY
from primeflowd.testing.conformance.base import NODE, put
from primeflowd.testing.conformance.retention import at, ended
from primeflowd.testing.daemon_process import DaemonProcess, eventually
from primeflowd.testing.factories import make_attempt, make_item

OLD, YOUNG, KILLS = 5_000, 50, 4

ORPHANS = (
    "deliveries WHERE batch_id NOT IN (SELECT id FROM batches)",
    "attempts WHERE delivery_id NOT IN (SELECT id FROM deliveries)",
    "items WHERE batch_id NOT IN (SELECT id FROM batches)",
    "batches WHERE id NOT IN (SELECT batch_id FROM deliveries)",
    "batches WHERE id NOT IN (SELECT batch_id FROM items)",
    "deliveries WHERE id NOT IN (SELECT delivery_id FROM attempts)",
)


def fill(tx: Tx) -> None:
    """Ended batches, most of them old, each with an item, a delivery and an attempt."""
    now = tx.now()
    for k in range(OLD + YOUNG):
        batch = at(now - (31 * DAY if k < OLD else 29 * DAY) + k, items_total=1)
        delivery = ended(batch, attempt_count=1)
        put(tx, batch, make_item(batch_id=batch.id, status="succeeded"))
        put(tx, ended(batch, id=delivery.id, status="pending", due_at=now, claimed_by=NODE))
        attempt = make_attempt(delivery_id=delivery.id, created_at=batch.created_at)
        assert tx.record_attempt(NODE, attempt, delivery) == "recorded"


def asked(path: Path, query: str) -> Any:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchone()[0]


def test_a_purge_that_is_killed_leaves_no_halves(tmp_path: Path) -> None:
    """4.6, 5.5: at whatever moment; the next daemon goes on, and stops at what is young."""
    path = tmp_path / "daemon" / "primeflowd.db"
    daemon = DaemonProcess(tmp_path / "daemon", '[retention]\nevery = "1s"\n')

    async def prepare() -> None:
        async with open_sqlite(path, None) as storage:
            await storage.write(fill)

    trio.run(prepare)
    left = OLD + YOUNG
    for _ in range(KILLS):
        with daemon:
            enough = f"SELECT count(*) < {left - 200} FROM batches"
            eventually(partial(asked, path, enough))
            daemon.kill()
        left = asked(path, "SELECT count(*) FROM batches")
        assert left > YOUNG, "it was over too soon to be killed in the middle"
        assert asked(path, "PRAGMA integrity_check") == "ok"
        for orphans in ORPHANS:
            assert asked(path, f"SELECT count(*) FROM {orphans}") == 0, orphans
    with daemon:
        [told] = eventually(lambda: daemon.events("old_rows_removed"), 60)
        assert told["batches"] == told["items"] == told["deliveries"] == left - YOUNG
        assert daemon.terminate() == 0
    assert asked(path, "SELECT count(*) FROM batches") == YOUNG
    for orphans in ORPHANS:
        assert asked(path, f"SELECT count(*) FROM {orphans}") == 0, orphans
    # Those attempts are older than a week.
    assert asked(path, "SELECT count(*) FROM attempts WHERE response_body IS NOT NULL") == 0
