"""`copy-storage`: all of it arrives, whatever cuts it short, and what must not be is refused."""

import os
import pty
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from primeflowd.builtin.sqlite import open_sqlite
from primeflowd.cli.copy_storage import _name
from primeflowd.cli.progress import Progress
from primeflowd.errors import OperatorError
from primeflowd.hookspecs import Tx
from primeflowd.sql.copying import Position
from primeflowd.sql.pages import NOTE
from primeflowd.testing.daemon_process import DaemonProcess, eventually
from primeflowd.testing.factories import make_batch, make_delivery, make_key
from tests.cli.conftest import Run

FROM, TO = "sqlite:///from.db", "sqlite:///to.db"
MINUTE = 60_000_000

MANY = """
WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 60000)
INSERT INTO attempts (delivery_id, attempt_number, id, response_time, created_at, org_id)
SELECT printf('%05d', i / 3), i % 3, 'id' || i, i, i, 'acme' FROM n
"""


def in_storage(path: Path, function: Callable[[Tx], object]) -> None:
    async def visit() -> None:
        async with open_sqlite(path, None) as storage:
            await storage.write(function)

    trio.run(visit)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A storage that holds a batch and its delivery, which a node that is gone had claimed."""

    def fill(tx: Tx) -> None:
        tx.put_key(make_key(label="ünicode"))
        batch = make_batch(payload=b"\x00" * 1000)
        tx.insert_batch(batch)
        tx.insert_delivery(make_delivery(batch_id=batch.id, claimed_by="gone"))

    in_storage(tmp_path / "from.db", fill)
    return tmp_path / "from.db"


def rows_of(path: Path, table: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return sorted(connection.execute(f"SELECT * FROM {table}").fetchall(), key=repr)


def change(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement)


def position_in(path: Path) -> Position | None:
    if not path.exists():
        return None
    try:
        found = [value for name, value in rows_of(path, "notes") if name == NOTE]
    except sqlite3.OperationalError:
        # It is being made at this moment.
        return None
    return msgspec.json.decode(found[0], type=Position) if found else None


def error_of(done: "subprocess.CompletedProcess[str]") -> str:
    assert (done.returncode, done.stdout) == (1, "")
    [line] = done.stderr.splitlines()
    assert line.startswith("primeflowd: error: ")
    return line.removeprefix("primeflowd: error: ")


def test_everything_is_copied_and_both_are_shown(
    primeflowd: Run, source: Path, tmp_path: Path
) -> None:
    done = primeflowd("copy-storage", FROM, TO)
    assert done.returncode == 0
    for table in ("keys", "batches", "attempts"):
        assert rows_of(tmp_path / "to.db", table) == rows_of(source, table)
    assert len(rows_of(tmp_path / "to.db", "deliveries")) == 1
    assert all("gone" not in row for row in rows_of(tmp_path / "to.db", "deliveries"))
    lines = [line.split() for line in done.stdout.splitlines()]
    [batches] = [line for line in lines if line[0] == "batches"]
    assert batches == ["batches", "1", batches[2], "1", batches[2], "same"]
    assert int(batches[2].replace(",", "")) > 1000
    assert "the copy is complete" in done.stdout
    assert done.stdout.splitlines()[-1] == (
        "the master key is not in the storage: nodes on TO need the one of FROM, "
        f"{tmp_path}/state/primeflowd/master.key"
    )
    assert re.search(r"^copying batches: 2 of 3 rows, ", done.stderr, re.M)


def test_copied_again_it_is_complete(primeflowd: Run, source: Path, tmp_path: Path) -> None:
    primeflowd("copy-storage", FROM, TO)
    before = rows_of(tmp_path / "to.db", "batches")
    done = primeflowd("copy-storage", FROM, TO)
    assert done.returncode == 0
    assert "the copy was complete already" in done.stdout
    assert not re.search("copying|going on", done.stderr)
    assert rows_of(tmp_path / "to.db", "batches") == before


def test_killed_again_and_again_it_loses_and_doubles_nothing(
    primeflowd: Run, source: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    """kill -9 at whatever moment: between pages, while one is written, while all is compared."""
    change(source, MANY)
    before: Position | None = None
    for delay in (0.0, 0.013, 0.05, 0.021):
        process = subprocess.Popen(
            [sys.executable, "-m", "primeflowd", "copy-storage", FROM, TO],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and position_in(tmp_path / "to.db") == before:
            time.sleep(0.005)
        time.sleep(delay)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        before = position_in(tmp_path / "to.db")
    assert before is not None
    assert 0 < before.rows < 60_000
    done = primeflowd("copy-storage", FROM, TO)
    assert done.returncode == 0
    assert f"going on after {before.rows:,} rows of an earlier run\n" in done.stderr
    assert rows_of(tmp_path / "to.db", "attempts") == rows_of(source, "attempts")
    assert re.search(r"^attempts +60,000 .* 60,000 +[\d,]+ +same *$", done.stdout, re.M)


@pytest.mark.parametrize(
    ("statement", "table"),
    [
        ("UPDATE batches SET payload = x'01' || payload", "batches"),
        ("UPDATE deliveries SET attempt_count = 7", "deliveries"),
        ("DELETE FROM keys", "keys"),
    ],
)
def test_a_difference_is_named(
    primeflowd: Run, source: Path, tmp_path: Path, statement: str, table: str
) -> None:
    primeflowd("copy-storage", FROM, TO)
    change(tmp_path / "to.db", statement)
    done = primeflowd("copy-storage", FROM, TO)
    assert done.returncode == 1
    assert re.search(rf"^{table} .* DIFFERENT *$", done.stdout, re.M)
    assert done.stdout.count("DIFFERENT") == 1
    assert "complete" not in done.stdout
    assert f"error: FROM and TO differ in {table}: " in done.stderr.splitlines()[-1]


def test_a_row_that_changed_between_two_runs_is_found(
    primeflowd: Run, source: Path, tmp_path: Path
) -> None:
    """A daemon ran on FROM after the copy was cut short: what it changed had been copied."""
    primeflowd("copy-storage", FROM, TO)
    back = Position("sqlite:///" + str(source), "items", rows=2)
    text = msgspec.json.encode(back).decode()
    change(tmp_path / "to.db", f"UPDATE notes SET value = '{text}' WHERE name = '{NOTE}'")
    change(tmp_path / "to.db", "DELETE FROM deliveries")
    change(source, "UPDATE batches SET status = 'failed'")
    done = primeflowd("copy-storage", FROM, TO)
    assert done.returncode == 1
    assert "differ in batches: one of them was changed while it was copied" in done.stderr


# Refusals


def test_a_source_that_is_not_there(primeflowd: Run, tmp_path: Path) -> None:
    """A slip of the pen makes no storage, on neither side."""
    assert error_of(primeflowd("copy-storage", FROM, TO)) == "FROM: there is no storage"
    assert list(tmp_path.glob("*.db*")) == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((FROM, "sqlite:///./from.db"), "FROM and TO are the same storage"),
        ((FROM, "to.db"), "TO: a storage is named by a URL, as sqlite:///PATH"),
        ((FROM, "memory://"), "TO: only a storage in a database with SQL can be copied"),
        (("memory://", TO), "FROM: only a storage in a database with SQL can be copied"),
        ((FROM, "oracle://scott:tiger@db/x"), "TO: no plugin opens oracle:// URLs; "),
        (("oracle://scott:tiger@db/x", TO), "FROM: no plugin opens oracle:// URLs; "),
        ((FROM, "sqlite://"), "TO: sqlite:// names no file; "),
    ],
)
def test_urls_that_will_not_do(
    primeflowd: Run, source: Path, words: tuple[str, str], expected: str
) -> None:
    error = error_of(primeflowd("copy-storage", *words))
    assert error.startswith(expected)
    assert "tiger" not in error


@pytest.mark.parametrize("side", ["FROM", "TO"])
def test_a_daemon_on_either_side(primeflowd: Run, source: Path, tmp_path: Path, side: str) -> None:
    path = source if side == "FROM" else tmp_path / "to.db"
    in_storage(path, lambda tx: tx.begin_lease("node-7", MINUTE))
    error = error_of(primeflowd("copy-storage", FROM, TO))
    assert error.startswith(f"{side}: a daemon uses it (node-7); stop that one")


def test_a_daemon_that_starts_meanwhile(
    source: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    """What it changes may have been copied already."""
    change(source, MANY)
    with subprocess.Popen(
        [sys.executable, "-m", "primeflowd", "copy-storage", FROM, TO],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        eventually(lambda: position_in(tmp_path / "to.db"))
        in_storage(source, lambda tx: tx.begin_lease("node-7", MINUTE))
        _, told = process.communicate(timeout=60)
    assert process.returncode == 1
    assert told.splitlines()[-1].startswith("primeflowd: error: FROM: a daemon uses it (node-7)")


def test_a_real_daemon(primeflowd: Run, tmp_path: Path) -> None:
    """One that drained is out of the way at once."""
    with DaemonProcess(tmp_path) as daemon:
        [database] = tmp_path.glob("*.db")
        url = f"sqlite:///{database}"
        assert "FROM: a daemon uses it" in error_of(primeflowd("copy-storage", url, TO))
        assert daemon.terminate() == 0
    assert primeflowd("copy-storage", url, TO).returncode == 0


def test_a_target_that_is_not_empty(primeflowd: Run, source: Path, tmp_path: Path) -> None:
    in_storage(tmp_path / "to.db", lambda tx: tx.put_key(make_key()))
    before = rows_of(tmp_path / "to.db", "keys")
    error = error_of(primeflowd("copy-storage", FROM, TO))
    assert error == "TO: it is not empty, it has keys; give an empty storage"
    assert rows_of(tmp_path / "to.db", "keys") == before


def test_half_a_copy_is_neither_source_nor_anothers_target(
    primeflowd: Run, source: Path, tmp_path: Path
) -> None:
    half = msgspec.json.encode(Position("sqlite:////elsewhere.db", "items")).decode()
    in_storage(tmp_path / "to.db", lambda tx: tx.put_note(NOTE, half))
    error = error_of(primeflowd("copy-storage", FROM, TO))
    assert error == "TO: it holds a part of sqlite:////elsewhere.db; give an empty storage"
    error = error_of(primeflowd("copy-storage", TO, "sqlite:///third.db"))
    assert error == "FROM: it is half a copy of sqlite:////elsewhere.db; finish that one first"


def test_no_daemon_runs_on_half_a_copy(primeflowd: Run, tmp_path: Path) -> None:
    """It would send what it has, and miss the rest without a word."""
    half = msgspec.json.encode(Position("sqlite:////elsewhere.db", "items")).decode()
    in_storage(tmp_path / "state" / "primeflowd.db", lambda tx: tx.put_note(NOTE, half))
    done = primeflowd("run", env={"STATE_DIRECTORY": str(tmp_path / "state")})
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "primeflowd: error: the storage is half a copy of sqlite:////elsewhere.db; "
        "run copy-storage again, to its end"
    )


def test_a_copy_can_be_copied_on(primeflowd: Run, source: Path, tmp_path: Path) -> None:
    primeflowd("copy-storage", FROM, TO)
    assert primeflowd("copy-storage", TO, "sqlite:///third.db").returncode == 0
    assert rows_of(tmp_path / "third.db", "batches") == rows_of(source, "batches")


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("postgresql://me:pw@db.example:5432/flow", "postgresql://db.example:5432/flow"),
        ("postgresql://me:p%40w@db/flow", "postgresql://db/flow"),
        ("postgresql://me:p@w/x@db/flow", "postgresql://db/flow"),
        ("postgresql://me:p?w@db/flow", "postgresql://db/flow"),
        ("postgresql://db/flow?user=me&password=pw&port=5433", "postgresql://db/flow?port=5433"),
        ("postgresql:///flow?host=/run/postgresql", "postgresql:///flow?host=/run/postgresql"),
        ("sqlite:////a/../b.db", "sqlite:////b.db"),
    ],
)
def test_names_of_storages_have_no_password(url: str, name: str) -> None:
    """A name is stored in the target and told in errors."""
    assert _name("FROM", url) == name


def test_what_is_no_url_is_not_repeated() -> None:
    with pytest.raises(OperatorError) as caught:
        _name("FROM", "me:tiger@db")
    assert "tiger" not in str(caught.value)


# Progress


def test_progress_is_a_line_for_each_table_and_one_every_ten_seconds(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = 0.0
    with Progress("copying", 100_000, 20_000, monotonic=lambda: now) as progress:
        for table, rows in (("batches", 20_000), ("batches", 30_000), ("items", 40_000)):
            progress.show(table, rows, 1_500_000)
            now += 5.0
        progress.show("items", 50_000, 2_000_000)
        now += 5.0
        progress.show("items", 60_000, 2_000_000)
    assert capsys.readouterr().err.splitlines() == [
        "copying batches: 20,000 of 100,000 rows, 1.5 MB",
        "copying items: 40,000 of 100,000 rows, 1.5 MB, 2,000 rows/s, 0:00:30 left",
        "copying items: 60,000 of 100,000 rows, 2.0 MB, 2,000 rows/s, 0:00:20 left",
    ]


def test_on_a_terminal_there_is_a_bar(
    source: Path, tmp_path: Path, environment: dict[str, str]
) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "primeflowd", "copy-storage", FROM, TO],
        cwd=tmp_path,
        env=environment | {"TERM": "xterm", "COLUMNS": "80"},
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    ) as process:
        os.close(theirs)
        told = b""
        while chunk := read(ours):
            told += chunk
        assert process.wait(30) == 0
    os.close(ours)
    assert "\x1b[2K" in told.decode()
    assert "deliveries ━" in re.sub(r"\x1b\[[\d;]*m", "", told.decode())


def read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:  # how a terminal says that nobody is at its other end any more
        return b""
