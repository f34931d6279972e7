"""`copy-storage` from SQLite into PostgreSQL and back: nothing is lost, doubled or changed."""

import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio
from server import Server
from sqlalchemy import Engine, insert

from primeflowd.builtin.sqlite import open_sqlite
from primeflowd.hookspecs import Tx
from primeflowd.sql import tables
from primeflowd.sql.pages import TABLES, Reader
from primeflowd.testing.factories import (
    make_answer,
    make_batch,
    make_delivery,
    make_destination_policy,
    make_item,
    make_key,
    make_policy,
    make_recovery,
    make_secret,
)
from primeflowd_postgresql.connections import WRITING, Address
from primeflowd_postgresql.storage import open_postgresql

MINUTE = 60_000_000
FROM = "sqlite:///from.db"
BACK = "sqlite:///back.db"

MANY = """
WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60000)
INSERT INTO attempts (delivery_id, attempt_number, id, response_time, created_at, org_id)
SELECT printf('%05d', i / 3), i % 3, 'id' || i, i, i, 'acme' FROM n
"""

Contents = dict[str, list[tuple[Any, ...]]]


class Commands:
    """`primeflowd` in a directory whose configuration enables the plugin."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "primeflowd.toml").write_text(
            f'state_directory = "{directory}/state"\n[plugins]\nenable = ["postgresql"]\n'
        )

    def start(self, *words: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "primeflowd", *words],
            cwd=self.directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        process = self.start(*words)
        stdout, stderr = process.communicate(timeout=60)
        return subprocess.CompletedProcess(words, process.returncode, stdout, stderr)

    def refused(self, *words: str) -> str:
        """The error of a command that fails at once."""
        done = self.run(*words)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("primeflowd: error: ")
        assert done.stderr.count("\n") == 1
        return done.stderr.removeprefix("primeflowd: error: ").rstrip()


@pytest.fixture
def commands(tmp_path: Path) -> Commands:
    return Commands(tmp_path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Something of everything, with values that databases like to change."""

    def fill(tx: Tx) -> None:
        tx.put_note("master-key", "00ff")
        tx.put_destination_policy(make_destination_policy(sealed_headers=b"\0\xff"))
        tx.put_policy(make_policy(plan_id="é"))
        tx.put_policy(make_policy(plan_id="Z"))
        tx.put_secret(make_secret(sealed=bytes(range(256))))
        tx.put_key(make_key(label="tab\t line\n \\N \\ back"))
        tx.put_recovery(make_recovery(status="finished", position="x"))
        for key in ("b", "B", "a", "é", "~", "_", " "):
            tx.put_answer(make_answer(key=key, sealed=key == "a"))
        for payload in (b"", b"\\x00\x00\xff", None):
            batch = make_batch(payload=payload, items_total=3)
            tx.insert_batch(batch)
            tx.put_items([make_item(batch_id=batch.id, sequence_index=n) for n in range(3)])
            delivery = make_delivery(batch_id=batch.id, is_automatic=payload is None)
            tx.insert_delivery(delivery)

    async def make() -> None:
        async with open_sqlite(tmp_path / "from.db", None) as storage:
            await storage.write(fill)

    trio.run(make)
    change(
        tmp_path / "from.db",
        "INSERT INTO attempts SELECT id, 1, 'a' || id, 200, 5, NULL, NULL, 1, NULL,"
        " '日本' || char(13, 10, 1), org_id FROM deliveries",
    )
    return tmp_path / "from.db"


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = Address(url).engine(WRITING, None)
    yield engine
    engine.dispose()


def change(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)


def contents(path: Path) -> Contents:
    """What is copied from one storage to another; the position of a copy is not."""
    with closing(sqlite3.connect(path)) as connection:
        return {
            table.name: sorted(
                (
                    row
                    for row in connection.execute(f"SELECT * FROM {table.name}")
                    if row[0] != "copy-storage"
                ),
                key=repr,
            )
            for table in TABLES
        }


def in_postgresql(url: str, function: Callable[[Tx], object]) -> None:
    async def visit() -> None:
        async with open_postgresql(url, None) as storage:
            await storage.write(function)

    trio.run(visit)


def test_there_and_back_everything_is_as_it_was(
    commands: Commands, source: Path, url: str, tmp_path: Path
) -> None:
    for words in ((FROM, url), (url, BACK)):
        done = commands.run("copy-storage", *words)
        assert done.returncode == 0, done.stderr
        assert "DIFFERENT" not in done.stdout
    before = contents(source)
    assert contents(tmp_path / "back.db") == before
    assert all(before.values())


def test_killed_again_and_again_it_loses_and_doubles_nothing(
    commands: Commands, source: Path, url: str, server: Server, database: str, tmp_path: Path
) -> None:
    change(source, MANY)

    def position() -> list[tuple[Any, ...]]:
        return server.execute("SELECT value FROM notes WHERE name = 'copy-storage'", database)

    before = position()
    for delay in (0.0, 0.013, 0.05, 0.021):
        process = commands.start("copy-storage", FROM, url)
        while process.poll() is None and position() == before:
            time.sleep(0.005)  # between two looks at how far another process is
        time.sleep(delay)  # so that each kill meets it elsewhere in its work
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        before = position()
    assert '"table":null' not in before[0][0]
    done = commands.run("copy-storage", FROM, url)
    assert done.returncode == 0, done.stderr
    assert server.execute("SELECT count(*) FROM attempts", database) == [(60_003,)]
    assert commands.run("copy-storage", url, BACK).returncode == 0
    assert contents(tmp_path / "back.db") == contents(source)


def test_a_nul_is_named_and_after_it_is_mended_the_copy_goes_on(
    commands: Commands, source: Path, url: str, server: Server, database: str
) -> None:
    """PostgreSQL holds none in a text; the error has the statement that mends it."""
    change(source, "UPDATE attempts SET response_body = '日本' || char(0, 65)")
    done = commands.run("copy-storage", FROM, url)
    assert (done.returncode, done.stdout) == (1, "")
    error = done.stderr.splitlines()[-1]
    assert error.startswith("primeflowd: error: TO: attempts: the response_body of delivery_id '")
    assert "', attempt_number 1 has a NUL in it, which PostgreSQL cannot hold" in error
    change(source, error.split("`")[1])
    done = commands.run("copy-storage", FROM, url)
    assert done.returncode == 0, done.stderr
    found = server.execute("SELECT response_body FROM attempts", database)
    assert found == [("日本",)] * 3


def test_orgs_that_share_an_id_do_not_fit_into_sqlite(
    commands: Commands, url: str, engine: Engine
) -> None:
    """In PostgreSQL the org is in the key; pages end between the two all the same."""
    batches = [make_batch(id="same", org_id=org) for org in ("acme", "globex", "umbrella")]
    columns = tables.batches.columns.keys()
    with engine.begin() as connection:
        for batch in batches:
            values = {name: getattr(batch, name) for name in columns}
            connection.execute(insert(tables.batches).values(values))
    reader, after = Reader(engine, page_rows=1), None
    found: list[tuple[Any, ...]] = []
    while page := reader.page(tables.batches, after):
        found += page.rows
        after = page.last
    assert [row[1] for row in found] == ["acme", "globex", "umbrella"]
    done = commands.run("copy-storage", url, BACK)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "primeflowd: error: TO: batches: it refuses a row: UNIQUE constraint failed: batches.id"
    )


def test_pages_are_in_the_order_of_bytes(
    commands: Commands, source: Path, url: str, engine: Engine
) -> None:
    """Else a page could begin after rows that were never read."""
    assert commands.run("copy-storage", FROM, url).returncode == 0
    reader, after = Reader(engine, page_rows=2), None
    found: list[str] = []
    while page := reader.page(tables.answers, after):
        found += [row[3] for row in page.rows]
        after = page.last
    assert found == [" ", "B", "_", "a", "b", "~", "é"]


@pytest.mark.parametrize("side", ["FROM", "TO"])
def test_a_daemon_on_either_side(commands: Commands, source: Path, url: str, side: str) -> None:
    in_postgresql(url, lambda tx: tx.begin_lease("node-7", MINUTE))
    words = (FROM, url) if side == "TO" else (url, BACK)
    error = commands.refused("copy-storage", *words)
    assert error.startswith(f"{side}: a daemon uses it (node-7); stop that one")


def test_a_database_that_is_not_there(commands: Commands, source: Path, server: Server) -> None:
    url = server.url("absent").replace("postgres@", "postgres:tiger@")
    error = commands.refused("copy-storage", FROM, url)
    assert error.startswith("TO: PostgreSQL database absent at 127.0.0.1 cannot be used: ")
    assert "tiger" not in error


def test_a_source_without_a_schema(commands: Commands, server: Server, tmp_path: Path) -> None:
    database = server.create_database()
    error = commands.refused("copy-storage", server.url(database), BACK)
    assert error == "FROM: there is no storage"
    assert not (tmp_path / "back.db").exists()
    tables = server.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'", database)
    assert tables == []
    server.drop_database(database)


def test_a_password_is_neither_stored_nor_told(
    commands: Commands, source: Path, url: str, server: Server, database: str, tmp_path: Path
) -> None:
    with_password = url.replace("postgres@", "postgres:tiger@")
    told = [commands.run("copy-storage", *words) for words in ((FROM, url), (with_password, BACK))]
    assert [done.returncode for done in told] == [0, 0]
    assert all("tiger" not in done.stdout + done.stderr for done in told)
    assert b"tiger" not in (tmp_path / "back.db").read_bytes()
    with closing(sqlite3.connect(tmp_path / "back.db")) as connection:
        [(value,)] = connection.execute("SELECT value FROM notes WHERE name = 'copy-storage'")
    assert f'"postgresql://127.0.0.1:{server.port}/{database}"' in value
