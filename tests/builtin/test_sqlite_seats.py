"""Nodes that share a SQLite file: who sits where, and what the dead leave behind."""

import sys
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path

import pytest
import trio

from primeflowd.builtin import sqlite_seats
from primeflowd.builtin.sqlite import open_sqlite
from primeflowd.errors import OperatorError
from primeflowd.hookspecs import Storage
from primeflowd.instants import HOUR
from primeflowd.model import Delivery
from primeflowd.testing.conformance.base import delivery_of, store
from primeflowd.testing.factories import make_delivery
from tests.builtin.processes import python_process

NODE = """
import sys, trio
from pathlib import Path
from primeflowd.builtin.sqlite import open_sqlite
from primeflowd.instants import HOUR
from primeflowd.testing.factories import NOW

async def main(path, node_id, *leases):
    async with open_sqlite(Path(path), node_id) as storage:
        for lease in leases:
            await storage.write(lambda tx: tx.begin_lease(lease, HOUR))
            await storage.write(lambda tx: tx.claim(lease, NOW, 1, 1, {}))
        print("sits", flush=True)
        await trio.sleep_forever()

trio.run(main, *sys.argv[1:])
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "storage.db"


def node_process(
    path: Path, node_id: str, *leases: str
) -> AbstractAsyncContextManager[trio.Process]:
    """A process that has the storage open as a node, with these leases and a claim for each."""
    return python_process(NODE, str(path), node_id, *leases, says=b"sits")


async def kill(process: trio.Process) -> None:
    process.kill()
    await process.wait()


async def sitting(storage: Storage) -> dict[int, str]:
    """Who sat down last, by seat."""

    def notes(seat: int) -> str | None:
        return found[seat - 1]

    numbers = range(1, sqlite_seats.COUNT + 1)
    found = await storage.read(lambda tx: [tx.note(f"seat:{seat}") for seat in numbers])
    return {seat: name for seat in numbers if (name := notes(seat)) is not None}


async def living(storage: Storage) -> list[str]:
    return await storage.read(lambda tx: tx.nodes())


async def test_nodes_share_the_file(path: Path) -> None:
    async with (
        open_sqlite(path, "node-1") as first,
        open_sqlite(path, "node-2") as second,
        open_sqlite(path, None) as visitor,
    ):
        await visitor.write(lambda tx: tx.put_note("from", "visitor"))
        await first.write(lambda tx: tx.put_note("to", "all"))
        for storage in (first, second, visitor):
            assert await storage.read(lambda tx: (tx.note("from"), tx.note("to"))) == (
                "visitor",
                "all",
            )
        assert await sitting(visitor) == {1: "node-1", 2: "node-2"}


async def test_the_first_free_seat_is_taken(path: Path) -> None:
    async with open_sqlite(path, "node-1"):
        async with open_sqlite(path, "node-2"), open_sqlite(path, "node-3") as storage:
            assert await sitting(storage) == {1: "node-1", 2: "node-2", 3: "node-3"}
        async with open_sqlite(path, "node-4") as storage:
            assert await sitting(storage) == {1: "node-1", 2: "node-4", 3: "node-3"}


async def test_all_seats_taken(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_seats, "COUNT", 3)
    async with AsyncExitStack() as stack:
        for number in range(3):
            await stack.enter_async_context(open_sqlite(path, f"node-{number}"))
        with pytest.raises(OperatorError, match="3 nodes use the storage already"):
            async with open_sqlite(path, "one too many"):
                pass
        async with open_sqlite(path, None):
            pass


async def test_killed_node_is_succeeded_at_once(path: Path) -> None:
    """5.6: whoever takes its seat need not wait for its lease to expire."""
    deliveries = [make_delivery() for _ in range(2)]
    async with open_sqlite(path, None) as visitor:
        await store(visitor, *deliveries)
        # The second lease is that of a node that lost its first one and goes on.
        async with node_process(path, "old", "old", "old/2", "older") as process:
            assert await living(visitor) == ["old", "old/2", "older"]
            assert await claimants(visitor, deliveries) == {"old", "old/2"}
            await kill(process)
            assert await living(visitor) == ["old", "old/2", "older"]
            async with open_sqlite(path, "new") as storage:
                # One of another name is not its.
                assert await living(storage) == ["older"]
                assert await claimants(storage, deliveries) == {None}
                assert await sitting(storage) == {1: "new"}


async def test_claims_of_a_killed_node_whose_lease_is_over_are_freed_too(path: Path) -> None:
    delivery = make_delivery()
    async with open_sqlite(path, None) as visitor:
        await store(visitor, delivery)
        async with node_process(path, "old", "old") as process:
            await kill(process)
            await visitor.write(lambda tx: tx.renew_lease("old", 1))
            assert await living(visitor) == []
            async with open_sqlite(path, "new") as storage:
                assert (await delivery_of(storage, delivery.id)).claimed_by is None


async def test_living_nodes_keep_what_they_have(path: Path) -> None:
    """Whoever comes: another node, or a visitor."""
    delivery = make_delivery()
    async with open_sqlite(path, None) as visitor:
        await store(visitor, delivery)
        async with node_process(path, "old", "old", "old/2"):
            for node_id in ("new", None):
                async with open_sqlite(path, node_id) as storage:
                    assert await living(storage) == ["old", "old/2"]
                    assert (await delivery_of(storage, delivery.id)).claimed_by == "old"


async def test_the_dead_on_other_seats_are_buried_too(path: Path) -> None:
    async with open_sqlite(path, "first") as first:
        await first.write(lambda tx: tx.begin_lease("first", HOUR))
        async with (
            node_process(path, "second", "second"),
            node_process(path, "third", "third") as third,
            node_process(path, "fourth", "fourth") as fourth,
        ):
            await kill(third)
            await kill(fourth)
            async with open_sqlite(path, "fifth") as storage:
                assert await living(storage) == ["first", "second"]
                assert (await sitting(storage))[3] == "fifth"


async def test_visitor_finds_only_the_living(path: Path) -> None:
    """Commands that need all daemons stopped ask tx.nodes(): a killed one must not stand there."""
    async with open_sqlite(path, "first") as first:
        await first.write(lambda tx: tx.begin_lease("first", HOUR))
        async with node_process(path, "second", "second") as process:
            async with open_sqlite(path, None) as visitor:
                assert await living(visitor) == ["first", "second"]
            await kill(process)
            async with open_sqlite(path, None) as visitor:
                assert await living(visitor) == ["first"]


async def test_visitor_writes_nothing_where_nobody_died(path: Path) -> None:
    """A full disk must not keep anybody from looking."""
    async with open_sqlite(path, "node-1") as storage:
        await storage.write(lambda tx: tx.begin_lease("node-1", HOUR))
        async with open_sqlite(path, None) as visitor:
            assert visitor.statistics().commits == 0
        await storage.write(lambda tx: tx.end_lease("node-1"))
    async with open_sqlite(path, None) as visitor:
        assert visitor.statistics().commits == 0


async def test_opening_does_not_end_the_locks_of_the_same_process(path: Path) -> None:
    """SQLite's on the database are the process's: closing any descriptor of the file ends them,
    and the last to close in another process would take the write-ahead log away from under us."""
    program = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("SELECT count(*) FROM notes").fetchone()
connection.close()
"""
    log = trio.Path(f"{path}-wal")
    async with open_sqlite(path, "node-1") as storage:
        await storage.write(lambda tx: tx.put_note("a", "1"))
        async with open_sqlite(path, "node-2"):
            pass
        await storage.write(lambda tx: tx.put_note("b", "1"))
        before = await log.stat()
        await trio.run_process([sys.executable, "-c", program, str(path)])
        assert (await log.stat()).st_ino == before.st_ino
        await storage.write(lambda tx: tx.put_note("c", "1"))
        assert await storage.read(lambda tx: tx.note("c")) == "1"


async def claimants(storage: Storage, deliveries: list[Delivery]) -> set[str | None]:
    return {(await delivery_of(storage, delivery.id)).claimed_by for delivery in deliveries}
