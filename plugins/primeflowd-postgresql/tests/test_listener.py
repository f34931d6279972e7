"""Nodes that tell each other what one has left for the rest."""

from functools import partial
from time import monotonic

import psycopg
import pytest
import trio
from proxy import Proxy
from server import Server

from primeflowd.durations import Duration
from primeflowd.hookspecs import Storage, Tx
from primeflowd.testing.conformance.base import store
from primeflowd.testing.factories import make_batch, make_delivery
from primeflowd_postgresql.connections import LISTENING, Address
from primeflowd_postgresql.listener import CHANNEL, INTERVAL, Listener
from primeflowd_postgresql.settings import Settings
from primeflowd_postgresql.storage import open_postgresql
from primeflowd_postgresql.watchdog import Watchdog

QUICK = Settings(timeout=Duration("2s"))


async def settle(*storages: Storage) -> None:
    """Until nothing is to be heard any more: a listener that has just connected wakes its node."""
    for storage in storages:
        quiet = False
        while not quiet:
            with trio.move_on_after(3 * INTERVAL) as scope:
                await storage.wait_for_others()
            quiet = scope.cancelled_caught


async def hears(storage: Storage, within: float = 1.0) -> bool:
    with trio.move_on_after(within):
        await storage.wait_for_others()
        return True
    return False


async def leave(storage: Storage) -> None:
    """Something for another node: a delivery that nobody has claimed."""
    await store(storage, make_delivery())


async def test_the_other_node_is_woken_and_one_self_is_not(url: str) -> None:
    async with open_postgresql(url, "node-1") as one, open_postgresql(url, "node-2") as other:
        await settle(one, other)
        for sender, receiver in ((one, other), (other, one)):
            await leave(sender)
            assert await hears(receiver)
            assert not await hears(sender, 3 * INTERVAL)


async def test_what_is_for_nobody_else_wakes_nobody(url: str) -> None:
    async with open_postgresql(url, "node-1") as one, open_postgresql(url, "node-2") as other:
        await settle(one, other)
        await store(one, make_batch(), make_delivery(claimed_by="node-1"))

        def raises(tx: Tx) -> None:
            tx.insert_delivery(make_delivery())
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await one.write(raises)
        assert not await hears(other, 5 * INTERVAL)


async def test_word_that_came_before_the_waiting_is_heard(url: str) -> None:
    async with open_postgresql(url, "node-1") as one, open_postgresql(url, "node-2") as other:
        await settle(one, other)
        await leave(one)
        await trio.sleep(5 * INTERVAL)
        assert await hears(other, 0.05)
        assert not await hears(other, 3 * INTERVAL)


async def test_closing_tells_what_the_last_commit_left(url: str) -> None:
    """5.6: of a node that drains, the others learn at once."""
    async with open_postgresql(url, "node-2") as other:
        async with open_postgresql(url, "node-1") as one:
            await settle(one, other)
            await leave(one)
            assert await hears(other)
            # A second word so soon would wait, were the node not closed.
            await leave(one)
        assert await hears(other)


async def test_words_are_few_however_many_commits(url: str) -> None:
    async with open_postgresql(url, "node-1") as one:
        await settle(one)
        with psycopg.connect(url, autocommit=True) as witness:
            witness.execute(f"LISTEN {CHANNEL}".encode())
            began = monotonic()
            while monotonic() - began < 1.0:
                await leave(one)
            await trio.sleep(3 * INTERVAL)
            heard = list(witness.notifies(timeout=0))
            taken = monotonic() - began
    assert one.statistics().commits > 30, "too few to mean anything"
    assert 2 <= len(heard) <= taken / INTERVAL + 2


async def test_broken_connection_counts_as_a_word_and_is_made_again(
    proxied: str, url: str, proxy: Proxy
) -> None:
    async with (
        open_postgresql(url, "node-1") as one,
        open_postgresql(proxied, "node-2", QUICK) as other,
    ):
        await settle(one, other)
        proxy.cut()
        await leave(one)
        assert not await hears(other, 5 * INTERVAL)
        proxy.restore()
        assert await hears(other, 5.0)
        await settle(other)
        await leave(one)
        assert await hears(other)


async def test_terminated_connection_is_made_again(server: Server, database: str, url: str) -> None:
    async with open_postgresql(url, "node-1") as one, open_postgresql(url, "node-2") as other:
        await settle(one, other)
        server.disconnect_clients(database)
        await settle(one, other)
        for sender, receiver in ((one, other), (other, one)):
            await leave(sender)
            assert await hears(receiver)


async def test_connection_that_is_swallowed_is_noticed(proxied: str, proxy: Proxy) -> None:
    watchdog = Watchdog(1.0)
    listener = Listener(partial(Address(proxied).connect, LISTENING, watchdog), ping=0.2)
    with trio.fail_after(10):
        await listener.wait()
        proxy.blackhole()
        while proxy.accepted < 2:  # noqa: ASYNC110 -- the proxy knows no Trio
            await trio.sleep(0.05)
        proxy.restore()
        await listener.wait()
        await listener.aclose()
    await trio.to_thread.run_sync(watchdog.close)


async def test_visitor_has_no_listener(server: Server, database: str, url: str) -> None:
    """A command that looks in makes no more connections than it needs, and waits for nobody."""
    async with open_postgresql(url, None) as visitor:
        await visitor.write(lambda tx: tx.put_note("a", "1"))
        found = server.execute(
            f"SELECT query FROM pg_stat_activity WHERE datname = '{database}'"
            f" AND query LIKE '%{CHANNEL}%' AND pid <> pg_backend_pid()"
        )
        assert found == []
        assert not await hears(visitor, 0.05)
