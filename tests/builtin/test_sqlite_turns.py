"""Turns: writers of a shared file come first come, first served, and none can hang the others."""

import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, closing
from pathlib import Path

import pytest
import trio

from primeflowd.builtin.sqlite import open_sqlite
from primeflowd.builtin.sqlite_locks import LockFile
from primeflowd.builtin.sqlite_turns import NEXT, TURN, InTurn
from primeflowd.errors import OperatorError, StorageUnavailable
from primeflowd.hookspecs import Tx
from primeflowd.instants import MILLISECOND
from primeflowd.testing.daemon_process import eventually
from tests.builtin.processes import python_process

WRITER = """
import sys, trio
from pathlib import Path
from primeflowd.builtin.sqlite import open_sqlite

async def main():
    async with open_sqlite(Path(sys.argv[1]), "other") as storage:
        def write(tx):
            tx.put_note("a", "half")
            print("writes", flush=True)
            sys.stdin.read()
        await storage.write(write)

trio.run(main)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "storage.db"


@pytest.fixture
def connect(path: Path) -> Iterator[Callable[[], InTurn]]:
    opened: list[InTurn] = []

    def connect() -> InTurn:
        opened.append(InTurn(str(path), 0.05, isolation_level=None, check_same_thread=False))
        return opened[-1]

    yield connect
    for connection in opened:
        connection.close()


def writing_process(path: Path) -> AbstractAsyncContextManager[trio.Process]:
    """A process in the middle of a transaction, which it commits when its input ends."""
    return python_process(WRITER, str(path), says=b"writes")


def takes(connection: InTurn, order: list[str], name: str) -> threading.Thread:
    """Wait for a turn in a thread, and put the name on record once it came."""

    def take() -> None:
        connection._timeout = 10
        connection.wait_turn()
        order.append(name)
        connection.end_turn()

    thread = threading.Thread(target=take)
    thread.start()
    return thread


def test_who_has_just_had_its_turn_comes_after_who_waits(
    path: Path, connect: Callable[[], InTurn]
) -> None:
    order: list[str] = []
    first, second = connect(), connect()
    first.wait_turn()
    waiting = takes(second, order, "second")
    with LockFile(path) as watch:
        eventually(lambda: not watch.is_free(NEXT))
        first.end_turn()
        again = takes(first, order, "first again")
        for thread in (waiting, again):
            thread.join()
        assert order == ["second", "first again"]
        assert watch.is_free(NEXT)
        assert watch.is_free(TURN)


def test_turn_ends_with_the_transaction(connect: Callable[[], InTurn]) -> None:
    first, second = connect(), connect()
    for end in (first.commit, first.rollback, first.end_turn):
        first.wait_turn()
        with pytest.raises(StorageUnavailable, match="another process does not finish"):
            second.wait_turn()
        end()
        second.wait_turn()
        second.end_turn()
    first.wait_turn()
    first.close()
    second.wait_turn()


def test_who_gives_up_waiting_is_in_nobodys_way(path: Path, connect: Callable[[], InTurn]) -> None:
    first, second, third = connect(), connect(), connect()
    first.wait_turn()
    with pytest.raises(StorageUnavailable):
        second.wait_turn()
    with LockFile(path) as watch:
        assert watch.is_free(NEXT)
    first.end_turn()
    third.wait_turn()


def test_commit_that_fails_keeps_its_turn_until_it_is_rolled_back(
    connect: Callable[[], InTurn],
) -> None:
    """The transaction may be open still, and so may SQLite's lock be taken."""
    first, second = connect(), connect()
    first.execute("CREATE TABLE t (a PRIMARY KEY, b REFERENCES t DEFERRABLE INITIALLY DEFERRED)")
    first.execute("PRAGMA foreign_keys = ON")
    first.wait_turn()
    first.execute("BEGIN IMMEDIATE")
    first.execute("INSERT INTO t VALUES (1, 2)")
    with pytest.raises(sqlite3.IntegrityError):
        first.commit()
    with pytest.raises(StorageUnavailable):
        second.wait_turn()
    first.rollback()
    second.wait_turn()


async def test_storages_take_turns(path: Path) -> None:
    """Each waits while another writes, and all come to write: none by SQLite's own sleeping."""
    seen: list[bool] = []

    def write(tx: Tx) -> None:
        with LockFile(path) as watch:
            seen.append(watch.is_free(TURN))
        count = int(tx.note("count") or 0)
        tx.put_note("count", str(count + 1))

    async with open_sqlite(path, "node-1") as first, open_sqlite(path, "node-2") as second:
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                for storage in (first, second):
                    nursery.start_soon(storage.write, write)
        assert await first.read(lambda tx: tx.note("count")) == "100"
        with LockFile(path) as watch:
            assert watch.is_free(TURN)
    assert seen == [False] * 100


async def test_turn_ends_where_the_transaction_cannot_begin(path: Path) -> None:
    """Another program, which takes no turns, has the file."""
    async with open_sqlite(path, "node-1", busy_timeout=20 * MILLISECOND) as storage:
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StorageUnavailable, match="locked"):
                await storage.write(lambda tx: None)
            with LockFile(path) as watch:
                assert watch.is_free(TURN)
            other.execute("ROLLBACK")
        await storage.write(lambda tx: tx.put_note("a", "1"))


async def test_stopped_process_does_not_hang_the_others(path: Path) -> None:
    """SIGSTOP in the middle of a transaction: writes fail until it goes on, reads never do."""
    async with open_sqlite(path, "node-1", busy_timeout=20 * MILLISECOND) as storage:
        async with writing_process(path) as process:
            process.send_signal(signal.SIGSTOP)
            with pytest.raises(StorageUnavailable, match="does not finish"):
                await storage.write(lambda tx: tx.put_note("b", "1"))
            assert await storage.read(lambda tx: tx.note("a")) is None
            with pytest.raises(OperatorError, match="does not finish"):
                async with open_sqlite(path, None, busy_timeout=20 * MILLISECOND):
                    pass
            process.send_signal(signal.SIGCONT)
            assert process.stdin is not None
            await process.stdin.aclose()
            assert await process.wait() == 0
        await storage.write(lambda tx: tx.put_note("b", "1"))
        assert await storage.read(lambda tx: (tx.note("a"), tx.note("b"))) == ("half", "1")


async def test_turn_of_a_killed_process_is_over(path: Path) -> None:
    async with (
        open_sqlite(path, "node-1", busy_timeout=20 * MILLISECOND) as storage,
        writing_process(path) as process,
    ):
        process.kill()
        await process.wait()
        await storage.write(lambda tx: tx.put_note("b", "1"))
        assert await storage.read(lambda tx: tx.note("a")) is None
