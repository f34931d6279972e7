"""Storage in a SQLite file: the conformance suite, and what a file and its disk can do to it."""

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import AbstractAsyncContextManager, closing
from operator import methodcaller
from pathlib import Path

import pytest
import trio

from primeflowd.builtin.sqlite import PAGE_SIZE, open_sqlite, open_storage
from primeflowd.config import Config, from_mapping
from primeflowd.errors import OperatorError, SchemaTooNew, StorageUnavailable
from primeflowd.hookspecs import Storage, Tx
from primeflowd.instants import MILLISECOND
from primeflowd.testing.conformance.base import store
from primeflowd.testing.conformance.retention import at
from primeflowd.testing.factories import NOW, ORG, make_batch, make_delivery
from primeflowd.testing.storage_conformance import SharedStorageConformance


class TestSqliteStorage(SharedStorageConformance):
    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.path = tmp_path / "storage.db"

    def open(self) -> AbstractAsyncContextManager[Storage]:
        return open_sqlite(self.path, "node-1")

    def open_again(self) -> AbstractAsyncContextManager[Storage]:
        return open_sqlite(self.path, "node-2")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "storage.db"


def pragma(tx: Tx, name: str) -> object:
    """What a connection of the storage says of itself; no plugin-neutral way to ask."""
    return tx._connection.exec_driver_sql(f"PRAGMA {name}").scalar()  # type: ignore[attr-defined]


def size(path: Path) -> int:
    return path.stat().st_size


async def read_line(process: trio.Process) -> bytes:
    """The first line that it prints; it prints no more."""
    assert process.stdout is not None
    line = b""
    async with process.stdout:
        while not line.endswith(b"\n"):
            line += await process.stdout.receive_some()
    return line


# The file


async def test_commits_are_on_the_disk(path: Path) -> None:
    """5.6: WAL with synchronous=FULL (2) is what survives a power loss."""
    async with open_sqlite(path, "node-1") as storage:
        assert await storage.write(lambda tx: pragma(tx, "journal_mode")) == "wal"
        assert await storage.write(lambda tx: pragma(tx, "synchronous")) == 2
        assert await storage.write(lambda tx: pragma(tx, "page_size")) == PAGE_SIZE


async def test_readers_cannot_write(path: Path) -> None:
    async with open_sqlite(path, "node-1") as storage:
        for write in (
            lambda tx: tx.put_note("a", "1"),
            lambda tx: tx.insert_batch(make_batch()),
        ):
            with pytest.raises(StorageUnavailable, match="readonly"):
                await storage.read(write)


async def test_a_long_read_does_not_stop_the_writer(path: Path) -> None:
    """And keeps its snapshot while others commit."""
    async with open_sqlite(path, "node-1") as storage:
        begun, written = trio.Event(), trio.Event()
        seen: list[str | None] = []

        def read(tx: Tx) -> None:
            seen.append(tx.note("a"))
            trio.from_thread.run_sync(begun.set)
            trio.from_thread.run(written.wait)
            seen.append(tx.note("a"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(storage.read, read)
            await begun.wait()
            await storage.write(lambda tx: tx.put_note("a", "new"))
            written.set()
        assert seen == [None, None]


async def test_more_readers_than_connections(path: Path) -> None:
    async with open_sqlite(path, "node-1") as storage:
        batch = make_batch()
        await store(storage, batch)
        found: list[set[str]] = []

        async def read() -> None:
            found.append(await storage.read(lambda tx: tx.taken_batch_ids([batch.id])))

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(read)
        assert found == [{batch.id}] * 50


async def test_only_the_owner_may_look(path: Path) -> None:
    """Payloads and sealed secrets are in it."""
    async with open_sqlite(path, "node-1") as storage:
        await store(storage, make_batch())
        for file in path.parent.iterdir():
            assert file.stat().st_mode & 0o077 == 0, file


async def test_closing_leaves_one_complete_file(path: Path) -> None:
    batch = make_batch()
    async with open_sqlite(path, "node-1") as storage:
        await store(storage, batch)
        visitor = sqlite3.connect(path)
        visitor.execute("SELECT count(*) FROM batches").fetchone()
    with closing(visitor), closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as alone:
        assert alone.execute("SELECT id FROM batches").fetchall() == [(batch.id,)]


async def test_space_that_was_removed_is_given_back(path: Path) -> None:
    """In steps, while it is in use; all but a tenth, which will be needed again."""
    async with open_sqlite(path, "node-1") as storage:
        batches = [at(NOW, output=b"x" * 20_000) for _ in range(500)]
        await store(storage, *batches)
        assert await storage.read(lambda tx: tx.give_back(0)) == 0
        full = size(path)
        old = [(batch.org_id, batch.id) for batch in batches[:-1]]
        removed = await storage.write(lambda tx: tx.remove_batches(old, NOW + 1, 1_000))
        assert removed.batches == 499
        left = await storage.read(lambda tx: tx.give_back(0))
        assert left > 0.8 * full
        steps = 0
        while left:
            left = await storage.write(lambda tx: tx.give_back(1_000_000))
            steps += 1
        assert 5 < steps < 20
        # Not only once it is closed, or somebody commits.
        assert await storage.read(lambda tx: tx.give_back(0)) == 0
        assert size(path) < 0.2 * full
        assert await storage.read(lambda tx: tx.batch(ORG, batches[-1].id)) == batches[-1]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


async def test_a_file_that_gives_nothing_back_is_left_alone(path: Path) -> None:
    """It was made before; `primeflowd restore` makes one that does."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    async with open_sqlite(path, "node-1") as storage:
        assert await storage.write(lambda tx: pragma(tx, "auto_vacuum")) == 0
        batches = [at(NOW, output=b"x" * 20_000) for _ in range(500)]
        await store(storage, *batches)
        old = [(batch.org_id, batch.id) for batch in batches]
        await storage.write(lambda tx: tx.remove_batches(old, NOW + 1, 1_000))
        assert await storage.read(lambda tx: tx.give_back(0)) == 0


async def test_killed_process_loses_nothing_that_it_was_told_is_stored(path: Path) -> None:
    """5.6"""
    program = """
import sys, trio
from pathlib import Path
from primeflowd.builtin.sqlite import open_sqlite
from primeflowd.testing.factories import make_batch

async def main():
    async with open_sqlite(Path(sys.argv[1]), "node-1") as storage, trio.open_nursery() as nursery:
        async def client():
            while True:
                batch = make_batch()
                await storage.write(lambda tx: tx.insert_batch(batch))
                print(batch.id, flush=True)
        for _ in range(8):
            nursery.start_soon(client)

trio.run(main)
"""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    output = b""
    while output.count(b"\n") < 300:
        output += await process.stdout.receive_some()
    process.send_signal(signal.SIGKILL)
    async for chunk in process.stdout:
        output += chunk
    await process.wait()
    # The last line may have been cut short.
    told = {line.decode() for line in output.split(b"\n")[:-1]}
    async with open_sqlite(path, "node-1") as storage:
        assert await storage.read(lambda tx: tx.taken_batch_ids(told)) == told


# Opening


def test_hook_opens_its_own_urls_only(tmp_path: Path) -> None:
    def config(url: str) -> Config:
        return from_mapping({"storage": {"url": url}})

    assert open_storage(config("memory://"), "node-1") is None
    assert open_storage(config(f"sqlite:///{tmp_path}/x.db"), None) is not None
    for url in ("sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite://x.db"):
        with pytest.raises(OperatorError, match="names no file"):
            open_storage(config(url), "node-1")


async def test_hook_opens_the_file_that_the_url_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for url, file in (
        (f"sqlite:///{tmp_path}/absolute.db", tmp_path / "absolute.db"),
        ("sqlite:///new/100% relative.db", tmp_path / "new" / "100% relative.db"),
    ):
        opened = open_storage(from_mapping({"storage": {"url": url}}), "node-1")
        assert opened is not None
        async with opened:
            assert file.exists()


@pytest.mark.parametrize("directory", ["/proc", "/proc/nowhere", "/dev/null"])
async def test_directory_that_is_not_writable(directory: str) -> None:
    with pytest.raises(OperatorError, match=f"state directory {directory} is not writable"):
        async with open_sqlite(Path(directory) / "storage.db", "node-1"):
            pass


async def test_file_that_is_no_database(path: Path) -> None:
    await trio.Path(path).write_bytes(b"state_directory = '/var/lib/primeflowd'\n" * 100)
    with pytest.raises(OperatorError, match=r"storage\.db cannot be opened.*not a database"):
        async with open_sqlite(path, "node-1"):
            pass
    assert (await trio.Path(path).read_bytes()).startswith(b"state_directory")


async def test_database_of_something_else(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE batches (id INTEGER)")
    with pytest.raises(OperatorError, match="already exists"):
        async with open_sqlite(path, "node-1"):
            pass
    with closing(sqlite3.connect(path)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_master").fetchall()
    assert tables == [("batches",)], "a migration that fails leaves nothing behind"


async def test_schema_of_a_newer_version(path: Path) -> None:
    async with open_sqlite(path, "node-1"):
        pass
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(SchemaTooNew, match=r"9999.*install that version or a newer one"):
        async with open_sqlite(path, "node-1"):
            pass


async def test_two_processes_that_open_a_new_file_at_once(path: Path) -> None:
    program = """
import sys, trio
from pathlib import Path
from primeflowd.builtin.sqlite import open_sqlite

async def main(name):
    async with open_sqlite(Path(sys.argv[1]), None) as storage:
        await storage.write(lambda tx: tx.put_note(name, "was here"))

print("ready", flush=True)
sys.stdin.readline()
trio.run(main, sys.argv[2])
"""
    processes = [
        await trio.lowlevel.open_process(
            [sys.executable, "-c", program, str(path), str(index)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for index in range(4)
    ]
    for process in processes:
        await read_line(process)
    for process in processes:
        assert process.stdin is not None
        await process.stdin.send_all(b"go\n")
        await process.stdin.aclose()
    assert [await process.wait() for process in processes] == [0, 0, 0, 0]
    async with open_sqlite(path, "node-1") as storage:
        for index in range(4):
            assert await storage.read(methodcaller("note", str(index))) == "was here"


# A failing environment


async def test_locked_by_another_program(path: Path) -> None:
    """The operation fails, is not stored, and the next one after the lock works."""
    async with open_sqlite(path, "node-1", busy_timeout=20 * MILLISECOND) as storage:
        batch = make_batch()
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            with pytest.raises(StorageUnavailable, match="locked"):
                await store(storage, batch)
            assert not storage.statistics().healthy
            assert storage.statistics().failures == 1
            assert "locked" in (storage.statistics().last_failure or "")
            # In WAL mode nobody who writes stops a reader.
            assert await storage.read(lambda tx: tx.taken_batch_ids([batch.id])) == set()
            other.execute("ROLLBACK")
        await store(storage, batch)
        assert storage.statistics().healthy
        assert await storage.read(lambda tx: tx.taken_batch_ids([batch.id])) == {batch.id}


async def test_disk_full_and_free_again(path: Path) -> None:
    """The process meets a limit of file size, as it would a full disk, and then more room."""
    program = """
import resource, sys, trio
from pathlib import Path
from primeflowd.builtin.sqlite import open_sqlite
from primeflowd.errors import StorageUnavailable
from primeflowd.testing.factories import make_batch

def limit(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

async def main():
    async with open_sqlite(Path(sys.argv[1]), "node-1") as storage:
        stored, refused = [], []
        async def write(payload):
            batch = make_batch(payload=payload)
            try:
                await storage.write(lambda tx: tx.insert_batch(batch))
                stored.append(batch.id)
            except StorageUnavailable:
                refused.append(batch.id)
        await write(b"before")
        limit(Path(sys.argv[1] + "-wal").stat().st_size + 20_000)
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(write, b"x" * 10_000)
        assert refused, "the disk was not full"
        assert not storage.statistics().healthy
        assert await storage.read(lambda tx: tx.taken_batch_ids(refused)) == set()
        limit(resource.RLIM_INFINITY)
        await write(b"after")
        assert storage.statistics().healthy
        assert await storage.read(lambda tx: tx.taken_batch_ids(stored + refused)) == set(stored)
        print("ok", len(stored), len(refused))

trio.run(main)
"""
    done = await trio.run_process(
        [sys.executable, "-c", program, str(path)], capture_stdout=True, check=False
    )
    assert done.returncode == 0
    assert done.stdout.startswith(b"ok")
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_corrupt_page_fails_those_who_meet_it(path: Path) -> None:
    delivery = make_delivery()
    async with open_sqlite(path, "node-1") as storage:
        await store(storage, delivery, *(make_delivery() for _ in range(500)))
    with closing(sqlite3.connect(path)) as connection:
        (page,) = connection.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'deliveries'"
        ).fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    async with open_sqlite(path, "node-1") as storage:
        with pytest.raises(StorageUnavailable, match="malformed"):
            await storage.read(lambda tx: tx.delivery(None, delivery.id))
        ended = make_delivery(id=delivery.id, status="failed", due_at=None)
        told: list[str] = []

        async def meets_it() -> None:
            with pytest.raises(StorageUnavailable, match="malformed"):
                await storage.write(lambda tx: tx.update_delivery(ended))
            told.append("malformed")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(meets_it)
            nursery.start_soon(storage.write, lambda tx: tx.put_note("a", "1"))
        assert told == ["malformed"]
        assert await storage.read(lambda tx: tx.note("a")) == "1"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
async def test_what_root_makes_belongs_to_whom_the_directory_does(tmp_path: Path) -> None:
    """A key made by an administrator before the first start must not lock the daemon out."""
    directory = tmp_path / "state"
    directory.mkdir()
    os.chown(directory, 12345, 23456)
    async with open_sqlite(directory / "storage.db", None):
        found = {file.name: file.stat() for file in directory.iterdir()}
        assert {"storage.db", "storage.db.lock", "storage.db-wal"} <= found.keys()
        for name, file in found.items():
            assert (file.st_uid, file.st_gid, file.st_mode & 0o777) == (12345, 23456, 0o600), name
