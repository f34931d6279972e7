"""A SQLite database with a past: callbacks delivered long ago, or waiting for a retry.

Rows are copies of those of one callback that a daemon really delivered, made by the database
itself: only what tells one callback from another differs. So they have every column that the
package's tables have, filled as the daemon fills it. Ids sort as the instants of their rows do.
"""

import contextlib
import sqlite3
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Final

from sqlalchemy import Table

from primeflowd.sql.tables import attempts, batches, deliveries
from tests.benchmarks.contenders.contender import HOSTS

BYTES_EACH: Final = 2_500
"""Of a delivered callback in the file: batch, delivery, attempt and their index entries."""

_AT_ONCE: Final = 200_000
_DAY: Final = 86_400_000_000
_PAST: Final = 300 * _DAY

# Instants in µs, and ids that begin with them as UUIDv7s do; `k` numbers the callbacks from 0.
_AT: Final = "(:began + k * :step)"
_ID: Final = (
    f"printf('%08x-%04x-7%03x-8%03x-%012x', ({_AT} / 1000) >> 16, ({_AT} / 1000) & 65535, "
    "k & 4095, {kind}, k)"
)
_BATCH_ID: Final = _ID.format(kind=1)
_DELIVERY_ID: Final = _ID.format(kind=2)
_HOST: Final = f"'http://127.0.0.' || (k % {HOSTS} + 1) || ':9'"

_TIMES: Final = dict.fromkeys(("created_at", "updated_at", "completed_at"), _AT)
_DIFFERING: Final[dict[str, dict[str, str]]] = {
    "batches": {"id": _BATCH_ID, "callback_url": f"{_HOST} || '/c/0000000000'", **_TIMES},
    "deliveries": {
        "id": _DELIVERY_ID,
        "batch_id": _BATCH_ID,
        "callback_url": f"{_HOST} || '/c/0000000000'",
        "destination": _HOST,
        **_TIMES,
    },
    "attempts": {"delivery_id": _DELIVERY_ID, "id": _ID.format(kind=3), "created_at": _AT},
}
_WAITING: Final[dict[str, dict[str, str]]] = {
    "deliveries": {
        "status": "'pending'",
        "due_at": f":began + {_PAST} + {_DAY} + k",
        "completed_at": "NULL",
    },
    "attempts": {"status_code": "500", "failure_reason": "'http_status'"},
}


def grow(database: Path, delivered: int, waiting: int, tell: Callable[[str], None]) -> None:
    """Add so many callbacks to a database, with no daemon on it, that holds one delivered one."""
    began = int(time.time() * 1e6) - _PAST
    total = delivered + waiting
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as connection:
        if connection.execute("SELECT max(id) FROM attempts").fetchone() == (None,):
            raise ValueError(f"{database} holds no callback to copy")
        # Nothing is lost if the machine fails meanwhile: the file is made anew then. Without a log
        # every page is written once, not twice.
        for pragma in ("locking_mode = EXCLUSIVE", "journal_mode = OFF", "synchronous = OFF"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("PRAGMA cache_size = -262144")
        for first in range(0, total, _AT_ONCE):
            last = min(first + _AT_ONCE, total)
            # A chunk is of one kind, or the two meet in it.
            edges = sorted({first, last, min(max(delivered, first), last)})
            connection.execute("BEGIN")
            for start, end in pairwise(edges):
                for table in (batches, deliveries, attempts):
                    given = {
                        "began": began, "step": _PAST // max(1, total),
                        "first": start, "last": end,
                    }  # fmt: skip
                    connection.execute(_copies(table, start >= delivered), given)
            connection.execute("COMMIT")
            if last % 1_000_000 == 0 or last == total:
                tell(f"  {last:,} of {total:,} callbacks of history")
        # For ever, unlike the rest: it is in the file.
        if connection.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
            raise OSError(f"{database} is not in WAL mode any more")


def hasten(database: Path, destination: str, url: str) -> None:
    """Make the first of the waiting overdue, to this URL; no daemon is on the database."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute(
            "UPDATE deliveries SET due_at = 1, destination = ?, callback_url = ? WHERE id ="
            " (SELECT id FROM deliveries WHERE status = 'pending' AND claimed_by IS NULL"
            " ORDER BY due_at, id LIMIT 1)",
            (destination, url),
        )
        connection.commit()


def _copies(table: Table, is_waiting: bool) -> str:
    differing = dict(_DIFFERING[table.name])
    if is_waiting:
        differing |= _WAITING.get(table.name, {})
    columns = [column.name for column in table.columns]
    values = [differing.get(name, f"template.{name}") for name in columns]
    return (
        "WITH RECURSIVE numbers(k) AS "
        "(SELECT :first UNION ALL SELECT k + 1 FROM numbers WHERE k + 1 < :last) "
        f"INSERT INTO {table.name} ({', '.join(columns)}) SELECT {', '.join(values)} "
        # The template is the newest row: what was copied lies in the past.
        f"FROM numbers, (SELECT * FROM {table.name} ORDER BY {columns[0]} DESC LIMIT 1) template"
    )


class Mark:
    """The end of a database's history; what comes later can be taken out again."""

    def __init__(self, database: Path) -> None:
        self._database = database
        with contextlib.closing(sqlite3.connect(database)) as connection:
            self._newest = {
                name: connection.execute(f"SELECT max({key}) FROM {name}").fetchone()[0]
                for name, key in _KEYS
            }

    def restore(self) -> None:
        """Delete what was added; the daemon may run, idle."""
        with contextlib.closing(sqlite3.connect(self._database, timeout=60)) as connection:
            for name, key in _KEYS:
                connection.execute(f"DELETE FROM {name} WHERE {key} > ?", (self._newest[name],))
            connection.commit()
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


_KEYS: Final = (("attempts", "delivery_id"), ("deliveries", "id"), ("batches", "id"))
