"""Transactions that begin and end at the driver, with statements of SQLAlchemy's or without."""

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from primeflowd.errors import StorageUnavailable
from primeflowd.sql.writing_connection import WritingConnection
from tests.sql.database import Breakable, make_database, make_engine

INSERT = "INSERT INTO notes (name, value) VALUES ('a', '1')"


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "storage.db"
    make_database(path).dispose()
    Breakable.reset()
    yield path
    Breakable.reset()


@pytest.fixture
def writing(path: Path) -> Iterator[WritingConnection]:
    writing = WritingConnection(make_engine(path))
    yield writing
    Breakable.reset()
    writing.close()


def stored(path: Path) -> int:
    with sqlite3.connect(path) as connection:
        [[count]] = connection.execute("SELECT count(*) FROM notes")
    connection.close()
    assert isinstance(count, int)
    return count


def by_driver(connection: Connection) -> None:
    connection.connection.cursor().execute(INSERT)
    assert connection.get_transaction() is None


def by_sqlalchemy(connection: Connection) -> None:
    connection.execute(text(INSERT))
    assert connection.get_transaction() is not None


def by_both(connection: Connection) -> None:
    by_driver(connection)
    connection.execute(text(INSERT.replace("'a'", "'b'")))


each_way = pytest.mark.parametrize("insert", [by_driver, by_sqlalchemy, by_both])


@each_way
def test_one_transaction_after_the_other(
    path: Path, writing: WritingConnection, insert: Callable[[Connection], None]
) -> None:
    for end in (writing.roll_back, writing.commit):
        connection = writing.begin()
        insert(connection)
        assert stored(path) == 0
        end()
        assert connection.get_transaction() is None
        assert (stored(path) > 0) == (end == writing.commit)
    writing.begin().exec_driver_sql("DELETE FROM notes")
    writing.commit()
    assert stored(path) == 0
    assert Breakable.opened == 1


@each_way
def test_commit_that_fails_leaves_no_trace(
    path: Path, writing: WritingConnection, insert: Callable[[Connection], None]
) -> None:
    Breakable.on_commit = sqlite3.OperationalError("disk I/O error")
    insert(writing.begin())
    with pytest.raises(StorageUnavailable, match="disk I/O error") as caught:
        writing.commit()
    assert caught.value.__cause__ is not None
    writing.roll_back()
    Breakable.reset()
    insert(writing.begin())
    writing.commit()
    assert stored(path) > 0
    assert Breakable.opened == 0, "the connection was kept"


@each_way
def test_connection_that_cannot_roll_back_is_given_up(
    path: Path, writing: WritingConnection, insert: Callable[[Connection], None]
) -> None:
    insert(writing.begin())
    Breakable.on_rollback = sqlite3.OperationalError("disk I/O error")
    writing.roll_back()
    assert writing.open is None
    writing.roll_back()
    Breakable.reset()
    assert stored(path) == 0
    insert(writing.begin())
    writing.commit()
    assert Breakable.opened == 1
    assert stored(path) > 0


def test_begin_that_fails(path: Path, writing: WritingConnection) -> None:
    writing.begin().exec_driver_sql("PRAGMA busy_timeout = 0")
    writing.commit()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageUnavailable, match="locked"):
        writing.begin()
    writing.roll_back()
    other.close()
    by_driver(writing.begin())
    writing.commit()
    assert stored(path) == 1
    assert Breakable.opened == 1


def test_file_that_cannot_be_opened(tmp_path: Path) -> None:
    writing = WritingConnection(make_engine(tmp_path / "missing" / "storage.db"))
    with pytest.raises(StorageUnavailable):
        writing.begin()
    writing.roll_back()
    writing.close()
