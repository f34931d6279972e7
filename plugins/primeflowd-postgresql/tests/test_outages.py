"""What a database does to its clients, and what nodes do to each other: nobody hangs, nothing that
was answered is lost, and all goes on by itself."""

import itertools
import threading
from collections.abc import Awaitable, Callable
from operator import methodcaller
from time import monotonic

import outcome
import psycopg
import pytest
import trio
from proxy import Proxy
from server import How, Server
from trio.testing import wait_all_tasks_blocked

from primeflowd.durations import Duration
from primeflowd.errors import StorageUnavailable
from primeflowd.hookspecs import Storage, Tx
from primeflowd.sql.failures import Collision
from primeflowd.testing.conformance.base import store
from primeflowd.testing.conformance.submissions import Listener
from primeflowd.testing.factories import ORG, make_batch, make_delivery
from primeflowd_postgresql.settings import Settings
from primeflowd_postgresql.storage import open_postgresql

QUICK = Settings(timeout=Duration("2s"))
BOUND = 3.9
"""Seconds: the timeout, the watchdog's rounding, and a loaded machine; less than two timeouts."""


async def fails_in_time(storage: Storage, call: Callable[[], Awaitable[object]]) -> None:
    began = monotonic()
    with pytest.raises(StorageUnavailable):
        await call()
    assert monotonic() - began < BOUND


async def recovers(storage: Storage) -> None:
    with trio.fail_after(15):
        while True:
            try:
                await storage.write(lambda tx: tx.put_note("after", "1"))
                assert await storage.read(lambda tx: tx.note("after")) == "1"
                break
            except StorageUnavailable:
                await trio.sleep(0.1)
    assert storage.statistics().healthy


@pytest.mark.parametrize("how", ["cut", "blackhole"])
async def test_out_of_reach_and_back(proxied: str, proxy: Proxy, how: str) -> None:
    """5.6: writes and reads fail in time, whether the network refuses or swallows."""
    async with open_postgresql(proxied, "node-1", QUICK) as storage:
        await storage.write(lambda tx: tx.put_note("before", "1"))
        assert await storage.read(lambda tx: tx.note("before")) == "1"
        getattr(proxy, how)()
        for _ in range(2):  # on the connection that was open, and on none
            await fails_in_time(storage, lambda: storage.write(lambda tx: tx.put_note("a", "1")))
            assert not storage.statistics().healthy
            await fails_in_time(storage, lambda: storage.read(lambda tx: tx.note("a")))
        proxy.restore()
        await recovers(storage)
        assert await storage.read(lambda tx: tx.note("before")) == "1"
        assert await storage.read(lambda tx: tx.note("a")) is None


@pytest.mark.parametrize("how", ["cut", "blackhole"])
async def test_submitted_out_of_reach_is_told_in_time(proxied: str, proxy: Proxy, how: str) -> None:
    """Whoever has no task that waits, too; and nothing of it is stored."""
    async with open_postgresql(proxied, "node-1", QUICK) as storage:
        await storage.write(lambda tx: tx.put_note("before", "1"))
        getattr(proxy, how)()
        committed: list[None] = []
        listener = Listener()
        began = monotonic()
        for name in "ab":
            storage.submit(methodcaller("put_note", name, "1"), committed.append, listener)
        results = await listener.heard(2)
        assert monotonic() - began < BOUND
        assert [
            isinstance(result, outcome.Error) and isinstance(result.error, StorageUnavailable)
            for result in results
        ] == [True, True]
        assert committed == []
        proxy.restore()
        await recovers(storage)
        assert await storage.read(lambda tx: (tx.note("a"), tx.note("b"))) == (None, None)


async def test_group_fails_together_when_the_network_swallows(proxied: str, proxy: Proxy) -> None:
    """Not one after the other, each for as long as the timeout."""
    async with open_postgresql(proxied, "node-1", QUICK) as storage:
        failed = 0
        queued = threading.Event()
        reached = trio.Event()
        token = trio.lowlevel.current_trio_token()

        def hold(tx: Tx) -> None:
            token.run_sync_soon(reached.set)
            queued.wait()

        async def write(name: str) -> None:
            nonlocal failed
            try:
                await storage.write(lambda tx: tx.put_note(name, "1"))
            except StorageUnavailable:
                failed += 1

        await write("before")
        # The listener connects by itself, on a loaded machine later than that.
        await storage.wait_for_others()
        connected = proxy.accepted
        proxy.blackhole()
        began = monotonic()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(storage.write, hold)
            await reached.wait()
            for index in range(50):
                nursery.start_soon(write, str(index))
            await wait_all_tasks_blocked()
            queued.set()
        assert failed == 50
        assert monotonic() - began < BOUND
        assert proxy.accepted == connected, "another connection was tried, for as long again"


async def test_idle_connections_that_died_cost_nobody_an_error(
    server: Server, database: str, url: str
) -> None:
    async with open_postgresql(url, "node-1") as storage:
        await storage.write(lambda tx: tx.put_note("a", "1"))
        assert await storage.read(lambda tx: tx.note("a")) == "1"
        for how in ("terminated", "restarted"):
            if how == "restarted":
                server.restart()
            else:
                assert server.disconnect_clients(database) >= 3
            async with trio.open_nursery() as nursery:
                for index in range(20):
                    nursery.start_soon(store, storage, make_batch(plan_id=str(index)))
                    nursery.start_soon(storage.read, lambda tx: tx.note("a"))
            statistics = storage.statistics()
            assert (statistics.healthy, statistics.failures) == (True, 0)


async def test_hot_statement_on_a_connection_that_died(
    server: Server, database: str, url: str
) -> None:
    """These run beside SQLAlchemy, which does not learn of it."""
    async with open_postgresql(url, "node-1") as storage:
        batch = make_batch()
        await store(storage, batch)
        server.disconnect_clients(database)
        await storage.write(lambda tx: tx.update_batch(make_batch(id=batch.id, output=b"1")))
        found = await storage.read(lambda tx: tx.batch(ORG, batch.id))
        assert found is not None
        assert found.output == b"1"


@pytest.mark.parametrize("how", ["silence", "cut"])
async def test_commit_whose_answer_is_lost_is_not_run_again(
    proxied: str, proxy: Proxy, how: str
) -> None:
    """It happened, and happens once; the caller cannot know and is told that it failed."""
    async with open_postgresql(proxied, "node-1", QUICK) as storage:
        runs = 0

        def cut_and_restore() -> None:
            # A new connection would be made, if it were tried.
            proxy.cut()
            proxy.restore()

        def function(tx: Tx) -> None:
            nonlocal runs
            runs += 1
            tx.put_note("in doubt", "1")
            proxy.blackhole("to_client")
            if how == "cut":
                threading.Timer(0.3, cut_and_restore).start()

        await fails_in_time(storage, lambda: storage.write(function))
        assert runs == 1
        assert storage.statistics().failures == 1
        proxy.restore()
        await recovers(storage)
        assert await storage.read(lambda tx: tx.note("in doubt")) == "1"
        assert runs == 1


@pytest.mark.parametrize("how", ["fast", "immediate"])
async def test_restart_under_load_loses_nothing(server: Server, url: str, how: How) -> None:
    """5.6: whatever was answered is there, on a database that shut down in order or crashed."""
    async with open_postgresql(url, "node-1", QUICK) as storage:
        stored: list[str] = []
        under_load = trio.Event()
        refused = 0
        goal: int | None = None

        async def client() -> None:
            nonlocal refused
            while goal is None or len(stored) < goal:
                batch = make_batch()
                try:
                    await store(storage, batch, make_delivery(batch_id=batch.id))
                    stored.append(batch.id)
                    if len(stored) == 200:
                        under_load.set()
                except StorageUnavailable:
                    refused += 1
                    await trio.sleep(0.01)

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(client)
                await under_load.wait()
                await trio.to_thread.run_sync(server.restart, how)
                goal = len(stored) + 200
        taken = await storage.read(lambda tx: tx.taken_batch_ids(stored))
        assert taken == set(stored)
        assert storage.statistics().healthy


# Nodes against each other


async def test_deadlocked_groups_both_go_through(url: str) -> None:
    first, second = make_batch(), make_batch()
    async with (
        open_postgresql(url, "node-1") as one,
        open_postgresql(url, "node-2") as other,
    ):
        await store(one, first, second)
        both_hold_one = threading.Barrier(2)
        runs = itertools.count()

        def lock(tx: Tx, *ids: str) -> None:
            for number, batch_id in enumerate(ids):
                assert tx.batch(ORG, batch_id) is not None
                if number == 0 and next(runs) < 2:
                    both_hold_one.wait(10)
            tx.put_note(ids[0], "1")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.write, lambda tx: lock(tx, first.id, second.id))
            nursery.start_soon(other.write, lambda tx: lock(tx, second.id, first.id))
        assert next(runs) > 2, "there was no deadlock"
        for storage in (one, other):
            assert storage.statistics().healthy
            assert storage.statistics().failures == 0
            assert await storage.read(lambda tx: tx.note(first.id)) == "1"
            assert await storage.read(lambda tx: tx.note(second.id)) == "1"


async def test_lock_that_does_not_come_free_fails_one_operation(url: str) -> None:
    batch = make_batch()
    async with open_postgresql(url, "node-1", QUICK) as storage:
        await store(storage, batch)
        with psycopg.connect(url) as stuck:
            stuck.execute("SELECT id FROM batches FOR UPDATE")
            began = monotonic()
            with pytest.raises(Collision):
                await storage.write(lambda tx: tx.batch(ORG, batch.id))
            # Twice as a group and four times alone, for a fifth of the timeout each.
            assert monotonic() - began < 2 * BOUND
            assert storage.statistics().healthy
            await storage.write(lambda tx: tx.put_note("a", "1"))
        assert await storage.write(lambda tx: tx.batch(ORG, batch.id)) == batch


async def test_lock_that_comes_free_is_waited_for(url: str) -> None:
    batch = make_batch()
    async with open_postgresql(url, "node-1", QUICK) as storage:
        await store(storage, batch)
        with psycopg.connect(url) as slow:
            slow.execute("SELECT id FROM batches FOR UPDATE")

            async def end() -> None:
                await trio.sleep(0.5)
                slow.commit()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(end)
                assert await storage.write(lambda tx: tx.batch(ORG, batch.id)) == batch


async def test_node_that_is_cut_off_does_not_keep_its_locks(
    url: str, proxied: str, proxy: Proxy
) -> None:
    """The database ends its transaction, so that others can take over what it held."""
    batch = make_batch()
    async with (
        open_postgresql(proxied, "node-1", QUICK) as lost,
        open_postgresql(url, "node-2") as other,
    ):
        await store(other, batch)
        locked = trio.Event()
        token = trio.lowlevel.current_trio_token()

        def function(tx: Tx) -> None:
            tx.batch(ORG, batch.id)
            proxy.blackhole()
            token.run_sync_soon(locked.set)

        async def cut_off() -> None:
            with pytest.raises(StorageUnavailable):
                await lost.write(function)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(cut_off)
            await locked.wait()
            with trio.fail_after(2 * BOUND):
                assert await other.write(lambda tx: tx.batch(ORG, batch.id)) == batch
