"""A node that stands still in the middle of a transaction, with the locks that it has taken: the
others go on, and leave for later what is locked (contract 5.6).

It is played by a connection that has not committed. Nobody gives a lock up while it is waited for:
each wait would end in a Collision.
"""

import threading
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any, LiteralString

import psycopg
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from primeflowd.durations import Duration
from primeflowd.hookspecs import Renewal, Storage, Tx
from primeflowd.instants import HOUR, Micros
from primeflowd.sql.failures import Collision
from primeflowd.testing.conformance.base import store
from primeflowd.testing.factories import ORG, make_batch, make_delivery
from primeflowd_postgresql.settings import Settings
from primeflowd_postgresql.storage import open_postgresql

QUICK = Settings(timeout=Duration("2s"))
LIVING, STUCK, DEAD = "living", "stuck", "dead"
OVER: Micros = 1
"""Of a lease that has expired by the next transaction."""

Stuck = psycopg.Connection[tuple[Any, ...]]


@pytest.fixture
async def storage(url: str) -> AsyncIterator[Storage]:
    """Of the node that lives; the leases of two others are over, each has two claims and orders."""
    async with open_postgresql(url, LIVING, QUICK) as storage:
        for node_id in (STUCK, DEAD):
            ids = [f"{node_id}-{number}" for number in (1, 2)]
            await store(storage, *(make_delivery(id=each, claimed_by=node_id) for each in ids))
            await storage.write(partial(begin, node_id=node_id, ids=ids))
        await storage.write(lambda tx: tx.begin_lease(LIVING, HOUR))
        yield storage


def begin(tx: Tx, node_id: str, ids: list[str]) -> None:
    tx.begin_lease(node_id, OVER)
    for each in ids:
        tx.put_order(node_id, each)


@pytest.fixture
def stuck(url: str) -> Iterator[Stuck]:
    with psycopg.connect(url) as stuck:
        yield stuck


def renew(tx: Tx) -> tuple[Renewal | None, int]:
    """As a node does every few seconds."""
    return tx.renew_lease(LIVING, HOUR), tx.release_lost()


async def claimed(storage: Storage) -> set[str]:
    return await storage.read(lambda tx: tx.claimed(STUCK) | tx.claimed(DEAD))


async def ordered(storage: Storage, node_id: str) -> bool:
    return await storage.read(lambda tx: tx.has_orders(node_id))


@pytest.mark.parametrize("node_commits", [True, False])
async def test_lease_that_is_being_renewed_is_left(
    storage: Storage, stuck: Stuck, *, node_commits: bool
) -> None:
    """With its claims and orders: its node may yet go on with them."""
    stuck.execute("UPDATE nodes SET expires_at = expires_at + %s WHERE id = %s", (HOUR, STUCK))
    renewal, freed = await storage.write(renew)
    assert renewal is not None
    assert freed == 2
    assert await claimed(storage) == {"stuck-1", "stuck-2"}
    assert await ordered(storage, STUCK)
    assert not await ordered(storage, DEAD)
    if node_commits:
        stuck.commit()
    else:
        stuck.rollback()
    assert await storage.write(lambda tx: tx.release_lost()) == (0 if node_commits else 2)
    assert await ordered(storage, STUCK) == node_commits


LOCKS: list[LiteralString] = [
    # an attempt recorded
    "UPDATE deliveries SET attempt_count = 2 WHERE id = 'stuck-1'",
    # an attempt recorded that was the last
    "UPDATE deliveries SET claimed_by = NULL, status = 'succeeded' WHERE id = 'stuck-1'",
    # read, to be changed
    "SELECT FROM deliveries WHERE id = 'stuck-1' FOR UPDATE",
]


@pytest.mark.parametrize("lock", LOCKS)
async def test_claim_that_is_locked_is_freed_later(
    storage: Storage, stuck: Stuck, lock: LiteralString
) -> None:
    """By whoever looks then: of a node without a lease nothing is kept."""
    stuck.execute(lock)
    renewal, freed = await storage.write(renew)
    assert renewal is not None
    assert freed == 3
    assert await claimed(storage) == {"stuck-1"}
    assert await storage.read(lambda tx: tx.nodes()) == [LIVING]
    # Again, and nobody waits.
    assert await storage.write(lambda tx: tx.release_lost()) == 0
    stuck.rollback()
    assert await storage.write(lambda tx: tx.release_lost()) == 1
    assert await claimed(storage) == set()


async def test_order_that_is_being_taken_is_removed_later(storage: Storage, stuck: Stuck) -> None:
    stuck.execute("DELETE FROM orders WHERE delivery_id = 'stuck-1'")
    assert await storage.write(lambda tx: tx.release_lost()) == 4
    left = await storage.write(lambda tx: tx.take_orders(DEAD))
    assert left == []
    stuck.rollback()
    assert await storage.write(lambda tx: tx.release_lost()) == 0
    assert not await ordered(storage, STUCK)


async def test_claim_of_a_node_that_ends_is_left_to_the_others(
    storage: Storage, stuck: Stuck
) -> None:
    """A drain gives back all but what a stuck node has locked, as for a person's order."""
    stuck.execute(LOCKS[-1])
    stuck.execute("DELETE FROM orders WHERE delivery_id = 'stuck-1'")
    assert await storage.write(lambda tx: tx.end_lease(STUCK)) == 1
    assert await claimed(storage) == {"stuck-1", "dead-1", "dead-2"}
    stuck.rollback()
    assert await storage.write(lambda tx: tx.release_lost()) == 3


async def test_lease_that_another_is_ending_is_lost(storage: Storage, stuck: Stuck) -> None:
    """Its node, back from standing still itself, does not wait for who has begun to end it."""
    stuck.execute("DELETE FROM nodes WHERE id = %s", (STUCK,))

    def come_back(tx: Tx) -> int:
        assert tx.renew_lease(STUCK, HOUR) is None
        tx.begin_lease("stuck/2", HOUR)
        return tx.release_lost()

    assert await storage.write(come_back) == 2
    assert await claimed(storage) == {"stuck-1", "stuck-2"}
    stuck.rollback()
    assert await storage.write(lambda tx: tx.release_lost()) == 2


async def test_end_of_a_lease_that_another_is_ending(storage: Storage, stuck: Stuck) -> None:
    stuck.execute("DELETE FROM nodes WHERE id = %s", (STUCK,))
    assert await storage.write(lambda tx: tx.end_lease(STUCK)) == 2
    stuck.commit()
    assert await storage.write(lambda tx: tx.release_lost()) == 2


async def test_several_stuck_locks_hold_up_the_rest_hardly_longer_than_one(url: str) -> None:
    """Whoever is stuck keeps the node from renewing its lease: several do not add up."""
    batches = [make_batch() for _ in range(3)]
    runs = 0

    def lock(tx: Tx, batch_id: str) -> None:
        nonlocal runs
        runs += 1
        tx.batch(ORG, batch_id)

    async with open_postgresql(url, "node-1", QUICK) as storage:
        await store(storage, *batches)
        queued = threading.Event()
        reached = trio.Event()
        token = trio.lowlevel.current_trio_token()
        refused = 0

        def hold(tx: Tx) -> None:
            token.run_sync_soon(reached.set)
            queued.wait()

        async def fail(batch_id: str) -> None:
            nonlocal refused
            with pytest.raises(Collision):
                await storage.write(partial(lock, batch_id=batch_id))
            refused += 1

        with psycopg.connect(url) as stuck:
            stuck.execute("SELECT id FROM batches FOR UPDATE")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(storage.write, hold)
                await reached.wait()
                for batch in batches:
                    nursery.start_soon(fail, batch.id)
                nursery.start_soon(storage.write, lambda tx: tx.put_note("beside", "1"))
                await wait_all_tasks_blocked()
                queued.set()
        assert refused == 3
        # Twice together, as far as the first; each once alone, and three times more in all.
        assert runs == 2 + 3 + 3
        assert await storage.read(lambda tx: tx.note("beside")) == "1"
