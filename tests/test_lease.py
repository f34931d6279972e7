"""A node's lease: renewed, lapsed, lost; always trusted for less long than storage counts."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

import outcome
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from primeflowd.builtin.memory import MemoryStorage, open_memory
from primeflowd.clock import SharedClock, TrioClock
from primeflowd.errors import OperatorError, StorageUnavailable
from primeflowd.holdings import Tenure as HoldingsTenure
from primeflowd.hookspecs import Tx
from primeflowd.instants import HOUR, MILLISECOND, SECOND, Micros
from primeflowd.lease import Lease
from primeflowd.model import Delivery
from primeflowd.testing.factories import make_delivery
from primeflowd.waiting_attempts import Tenure as SendersTenure
from tests.sending import Tenure

T = TypeVar("T")

TTL = 15 * SECOND


class Way:
    """A node's way to the storage that it shares with others, which can be cut."""

    def __init__(self, storage: MemoryStorage) -> None:
        self._storage = storage
        self.cut = False
        self.tries = 0
        self.statistics = storage.statistics
        self.wait_for_others = storage.wait_for_others

    async def write(
        self, function: Callable[[Tx], T], on_commit: Callable[[T], None] | None = None
    ) -> T:
        self.tries += 1
        await self._pass()
        return await self._storage.write(function, on_commit)

    def submit(
        self,
        function: Callable[[Tx], T],
        on_commit: Callable[[T], None],
        on_end: Callable[[outcome.Maybe[T]], None],
    ) -> None:
        if self.cut:
            raise StorageUnavailable("the way is cut")
        self._storage.submit(function, on_commit, on_end)

    async def read(self, function: Callable[[Tx], T]) -> T:
        await self._pass()
        return await self._storage.read(function)

    async def _pass(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.cut:
            raise StorageUnavailable("the way is cut")


class Node:
    """A lease, and what it told of itself."""

    def __init__(self, storage: MemoryStorage, name: str, ahead: Micros = 0) -> None:
        self.storage = storage
        self.way = Way(storage)
        self.clock = SharedClock(_fast(ahead))
        self.told: list[str] = []
        self.lease = Lease(self.way, self.clock, name, TTL, elapsed=trio.current_time)
        self.lease.on_lapsed = lambda: self.told.append("lapsed")
        self.lease.on_lost = lambda: self.told.append("lost")

    async def claim(self, count: int = 1) -> set[str]:
        """Deliveries made and claimed by this node; their ids."""
        made = [make_delivery(claimed_by=self.lease.node_id) for _ in range(count)]
        for delivery in made:
            await self.storage.write(partial(_insert, delivery))
        return {delivery.id for delivery in made}

    async def claims(self, node_id: str | None = None) -> set[str]:
        return await self.storage.read(lambda tx: tx.claimed(node_id or self.lease.node_id))

    async def living(self) -> list[str]:
        return await self.storage.read(lambda tx: tx.nodes())


def _insert(delivery: Delivery, tx: Tx) -> None:
    tx.insert_delivery(delivery)


def _fast(ahead: Micros) -> Callable[[], int]:
    """A machine's clock that is ahead of storage's, in nanoseconds."""
    true = TrioClock()
    return lambda: 1000 * (true.now() + ahead)


@asynccontextmanager
async def nodes(*names: str) -> AsyncIterator[list[Node]]:
    """Nodes that hold leases, and renew them until the block ends."""
    async with open_memory(TrioClock()) as storage, trio.open_nursery() as nursery:
        made = [Node(storage, name) for name in names]
        for node in made:
            await node.lease.begin()
            await trio.sleep(0.001)  # so that one is older
            nursery.start_soon(node.lease.run)
        yield made
        nursery.cancel_scope.cancel()


async def test_holds_for_as_long_as_it_is_renewed(autojump_clock: MockClock) -> None:
    async with nodes("a") as (node,):
        for _ in range(1000):
            assert node.lease.holds()
            await trio.sleep(0.5)
        assert node.told == []
        assert await node.living() == ["a"]


async def test_does_not_hold_before_it_began(autojump_clock: MockClock) -> None:
    async with open_memory(TrioClock()) as storage:
        node = Node(storage, "a")
        assert not node.lease.holds()
        await node.lease.begin()
        assert node.lease.holds()


async def test_lapses_before_storage_lets_it_expire(autojump_clock: MockClock) -> None:
    """Storage counts from the commit of the renewal, the node from before it was asked for."""
    async with nodes("a") as (node,):
        await trio.sleep(7)  # renewed at 5 s
        node.way.cut = True
        await trio.sleep_until(5 + 13.4)
        assert node.lease.holds()
        assert node.lease.covers("a")
        await trio.sleep_until(5 + 13.6)  # a tenth of its time is margin
        assert not node.lease.holds()
        assert not node.lease.covers("a")
        assert node.told == ["lapsed"]
        await trio.sleep_until(5 + 14.9)
        assert await node.living() == ["a"]
        await trio.sleep_until(5 + 15.1)
        assert await node.living() == []


async def test_a_lapsed_lease_that_nobody_ended_goes_on(autojump_clock: MockClock) -> None:
    """One node alone, and storage out of reach for an hour: its claims still stand."""
    async with nodes("a") as (node,):
        claimed = await node.claim(3)
        node.way.cut = True
        await trio.sleep(3600)
        assert not node.lease.holds()
        node.way.cut = False
        await trio.sleep(5.1)
        assert node.lease.holds()
        assert node.lease.node_id == "a"
        assert node.told == ["lapsed"]
        assert await node.claims() == claimed
        node.way.cut = True
        await trio.sleep(20)
        assert node.told == ["lapsed", "lapsed"]


async def test_keeps_trying_to_renew_but_not_all_the_time(autojump_clock: MockClock) -> None:
    async with nodes("a") as (node,):
        node.way.cut = True
        before = node.way.tries
        await trio.sleep(6)
        assert 3 <= node.way.tries - before <= 4
        await trio.sleep(94)
        assert 20 <= node.way.tries - before <= 26
        node.way.cut = False
        await trio.sleep(5.1)
        assert node.lease.holds()


async def test_a_dead_nodes_claims_are_freed_after_its_time(autojump_clock: MockClock) -> None:
    async with nodes("a") as (node,):
        dead = Node(node.storage, "dead")
        await dead.lease.begin()
        claimed = await dead.claim(3)
        own = await node.claim(2)
        await trio.sleep(14.9)
        assert await dead.claims() == claimed
        await trio.sleep(5.2)  # its time is over, and ours to renew comes after that
        assert await dead.claims() == set()
        assert await node.claims() == own


async def test_what_was_freed_is_told_to_the_own_node_too(autojump_clock: MockClock) -> None:
    """Storage tells the others; without this the node itself would find it by chance."""
    async with nodes("a") as (node,):
        dead = Node(node.storage, "dead")
        await dead.lease.begin()
        await dead.claim(3)
        node.lease.on_freed = lambda: node.told.append("freed")
        await trio.sleep(14)
        assert node.told == []
        await trio.sleep(20)
        assert node.told == ["freed"]


async def test_a_check_that_fails_lets_nothing_begin(autojump_clock: MockClock) -> None:
    """A wrong master key, say: nothing is changed."""
    async with open_memory(TrioClock()) as storage:
        node = Node(storage, "a")

        def refuse(tx: Tx) -> None:
            assert tx.nodes() == []
            raise OperatorError("no")

        with pytest.raises(OperatorError):
            await node.lease.begin(refuse)
        assert await node.living() == []
        assert not node.lease.holds()


async def test_beginning_frees_what_dead_nodes_left(autojump_clock: MockClock) -> None:
    async with open_memory(TrioClock()) as storage:
        dead, node = Node(storage, "dead"), Node(storage, "a")
        await dead.lease.begin()
        await dead.claim(3)
        await trio.sleep(15.1)
        assert await node.lease.begin() == 3


async def test_a_lost_lease_is_gone_on_from_under_another_id(autojump_clock: MockClock) -> None:
    """What is done under the old id is never taken for the node's again."""
    async with nodes("a", "b") as (lost, other):
        await lost.claim(3)
        lost.way.cut = True
        await trio.sleep(26)  # its time, and until the other one renews and looks
        assert await lost.claims() == set()
        assert await other.living() == ["b"]
        lost.way.cut = False
        await trio.sleep(5.1)
        assert lost.told == ["lapsed", "lost"]
        assert lost.lease.node_id == "a/2"
        assert lost.lease.holds()
        assert not lost.lease.covers("a")
        assert lost.lease.covers("a/2")
        assert await other.living() == ["b", "a/2"]
        assert not lost.lease.is_eldest
        await lost.claim(2)
        await trio.sleep(100)
        assert lost.lease.node_id == "a/2"
        assert len(await lost.claims()) == 2


async def test_a_lease_that_is_lost_is_told_with_the_commit(autojump_clock: MockClock) -> None:
    """Claims that are committed next are made under the new id, and must not meet the old state."""
    async with nodes("a") as (node,):
        order: list[str] = []
        node.lease.on_lost = lambda: order.append(f"lost, now {node.lease.node_id}")
        node.storage.hold()
        await trio.sleep(5.1)  # the renewal waits for its commit
        node.storage.resume()
        await node.storage.write(lambda tx: tx.end_lease("a"))
        node.storage.hold()
        await trio.sleep(5.1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                node.storage.write, lambda tx: node.lease.node_id, lambda seen: order.append(seen)
            )
            await wait_all_tasks_blocked()
            node.storage.resume()
        assert order == ["lost, now a/2", "a/2"]


async def test_ending_gives_everything_back_at_once(autojump_clock: MockClock) -> None:
    async with nodes("a", "b") as (ends, other):
        claimed = await ends.claim(3)
        await ends.lease.end()
        assert not ends.lease.holds()
        assert await other.claims("a") == set()
        taken = await other.storage.write(lambda tx: tx.claim("b", 10**18, 10, 10, {}))
        assert {delivery.id for delivery in taken} == claimed


async def test_one_node_is_the_eldest(autojump_clock: MockClock) -> None:
    async with nodes("b", "a") as (eldest, younger):
        await trio.sleep(6)
        assert eldest.lease.is_eldest
        assert not younger.lease.is_eldest
        await eldest.storage.write(lambda tx: tx.end_lease("b"))
        await trio.sleep(5)
        assert younger.lease.is_eldest


@pytest.mark.parametrize("ahead", [HOUR, -HOUR, 500 * MILLISECOND])
async def test_all_nodes_go_by_the_storages_clock(ahead: Micros, autojump_clock: MockClock) -> None:
    """3.6: else a retry that one node reckons would be early for another's clock."""
    async with open_memory(TrioClock()) as storage, trio.open_nursery() as nursery:
        node = Node(storage, "a", ahead)
        true = await storage.read(lambda tx: tx.now())
        assert node.clock.now() == true + ahead
        await node.lease.begin()
        nursery.start_soon(node.lease.run)
        await trio.sleep(5.5)
        assert node.clock.now() == await storage.read(lambda tx: tx.now())
        nursery.cancel_scope.cancel()


async def test_a_clock_that_may_be_right_is_left_alone(autojump_clock: MockClock) -> None:
    clock = SharedClock(_fast(0))
    now = clock.now()
    clock.correct(now + 3, now, now + 5)
    assert clock.now() == now
    clock.correct(now + 30, now + 10, now + 20)
    assert clock.now() == now + 15


async def test_the_stand_in_of_other_tests_is_what_they_ask_of_a_lease() -> None:
    async with open_memory() as storage:
        real = Node(storage, "a").lease
        asked_by_holdings: list[HoldingsTenure] = [real, Tenure("a")]
        asked_by_senders: list[SendersTenure] = [real, Tenure("a")]
    assert [one.node_id for one in asked_by_holdings] == ["a", "a"]
    assert [one.covers("b") for one in asked_by_senders] == [False, False]
