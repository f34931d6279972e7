import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy

from primeflowd.model import new_id
from primeflowd.sql import rows, tables
from primeflowd.testing.factories import make_attempt, make_batch, make_delivery
from tests.benchmarks.history import Mark, grow, hasten


def seeded(directory: Path, delivered: int, waiting: int) -> Path:
    """A database with one delivered callback, and then so many more."""
    path = directory / "primeflowd.db"
    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    tables.metadata.create_all(engine)
    insert(engine)
    engine.dispose()
    grow(path, delivered, waiting, lambda _: None)
    return path


def insert(engine: sqlalchemy.Engine) -> None:
    batch = make_batch()
    delivery = make_delivery(
        batch_id=batch.id, status="succeeded", attempt_count=1, due_at=None, completed_at=1
    )
    attempt = make_attempt(delivery_id=delivery.id)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.insert(tables.batches), rows.BATCHES.mapping(batch))
        connection.execute(sqlalchemy.insert(tables.deliveries), rows.DELIVERIES.mapping(delivery))
        connection.execute(sqlalchemy.insert(tables.attempts), rows.ATTEMPTS.mapping(attempt))


def counts(path: Path) -> list[int]:
    with closing(sqlite3.connect(path)) as connection:
        return [
            connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0]
            for name in ("batches", "deliveries", "attempts")
        ]


def test_history_is_whole_callbacks_whose_ids_sort_before_new_ones(tmp_path: Path) -> None:
    path = seeded(tmp_path, 1000, 500)
    assert counts(path) == [1501, 1501, 1501]
    with closing(sqlite3.connect(path)) as connection:
        joined = connection.execute(
            "SELECT count(*) FROM batches b JOIN deliveries d ON d.batch_id = b.id"
            " JOIN attempts a ON a.delivery_id = d.id AND a.created_at <= d.updated_at + 1"
        ).fetchone()[0]
        newest = connection.execute("SELECT max(id) FROM deliveries").fetchone()[0]
        ids = [r[0] for r in connection.execute("SELECT id FROM deliveries ORDER BY created_at")]
        statuses = dict(connection.execute("SELECT status, count(*) FROM deliveries GROUP BY 1"))
        due = connection.execute(
            "SELECT count(*) FROM deliveries WHERE due_at > unixepoch() * 1000000"
        ).fetchone()[0]
    assert joined >= 1500
    assert newest < new_id()
    assert [i for i in ids if i != newest] == sorted(i for i in ids if i != newest)
    assert statuses == {"succeeded": 1001, "pending": 500}
    assert due == 500


def test_the_file_is_in_wal_mode_again(tmp_path: Path) -> None:
    with closing(sqlite3.connect(seeded(tmp_path, 1, 0))) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_nothing_can_be_made_of_nothing(tmp_path: Path) -> None:
    path = tmp_path / "primeflowd.db"
    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    tables.metadata.create_all(engine)
    engine.dispose()
    with pytest.raises(ValueError, match="no callback to copy"):
        grow(path, 1, 0, lambda _: None)


def test_one_of_the_waiting_can_be_made_due(tmp_path: Path) -> None:
    path = seeded(tmp_path, 5, 3)
    hasten(path, "http://127.0.0.1:80", "http://127.0.0.1:80/c/7")
    with closing(sqlite3.connect(path)) as connection:
        found = connection.execute(
            "SELECT destination, callback_url FROM deliveries WHERE status = 'pending'"
            " AND due_at < unixepoch() * 1000000"
        ).fetchall()
    assert found == [("http://127.0.0.1:80", "http://127.0.0.1:80/c/7")]


def test_what_was_added_after_a_mark_can_be_taken_out_again(tmp_path: Path) -> None:
    path = seeded(tmp_path, 10, 0)
    mark = Mark(path)
    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    insert(engine)
    engine.dispose()
    assert counts(path) == [12, 12, 12]
    mark.restore()
    assert counts(path) == [11, 11, 11]
