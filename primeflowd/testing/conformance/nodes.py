"""Promises about nodes: whose leases last, what a lost one frees, and orders between them.

The storage's clock is a real one here, so the time to live of a lease is either over at once or far
away, and nothing sleeps.
"""

from operator import methodcaller

from msgspec.structs import replace

from primeflowd.hookspecs import Renewal, Tx
from primeflowd.instants import HOUR, SECOND, Micros
from primeflowd.model import Delivery
from primeflowd.testing.conformance.base import (
    NODE,
    OTHER_NODE,
    Conformance,
    delivery_of,
    store,
)
from primeflowd.testing.factories import NOW, make_delivery

THIRD_NODE = "node-3"

OVER: Micros = 1
"""Of a lease that has expired by the next transaction."""


class NodePromises(Conformance):
    async def test_clock_of_the_storage_goes_on(self) -> None:
        async with self.open() as storage:
            first = await storage.read(lambda tx: tx.now())
            second = await storage.write(lambda tx: tx.now())
            assert first <= second < first + 60 * SECOND

    async def test_leases_show_who_lives_the_eldest_first(self) -> None:
        async with self.open() as storage:
            assert await storage.read(lambda tx: tx.nodes()) == []
            # In an order that is not that of their names.
            for node_id in (OTHER_NODE, THIRD_NODE, NODE):
                await storage.write(methodcaller("begin_lease", node_id, HOUR))
            await storage.write(lambda tx: tx.begin_lease("node-4", OVER))
            assert await storage.read(lambda tx: tx.nodes()) == [OTHER_NODE, THIRD_NODE, NODE]

    async def test_renewing_tells_the_time_and_who_is_the_eldest(self) -> None:
        async with self.open() as storage:

            async def renew(node_id: str) -> Renewal | None:
                return await storage.write(lambda tx: tx.renew_lease(node_id, HOUR))

            for node_id in (OTHER_NODE, NODE):
                await storage.write(methodcaller("begin_lease", node_id, HOUR))
            before = await storage.read(lambda tx: tx.now())
            renewals = [await renew(node_id) for node_id in (NODE, OTHER_NODE)]
            after = await storage.read(lambda tx: tx.now())
            assert [each and each.is_eldest for each in renewals] == [False, True]
            assert all(each and before <= each.now <= after for each in renewals)

            assert await storage.write(lambda tx: tx.end_lease(OTHER_NODE)) == 0
            renewal = await renew(NODE)
            assert renewal is not None
            assert renewal.is_eldest
            # It comes back, younger than the one that stayed.
            await storage.write(lambda tx: tx.begin_lease(OTHER_NODE, HOUR))
            assert await storage.read(lambda tx: tx.nodes()) == [NODE, OTHER_NODE]

    async def test_renewed_lease_lasts_from_then_on(self) -> None:
        async with self.open() as storage:
            delivery = make_delivery(claimed_by=NODE)
            await store(storage, delivery)
            await storage.write(lambda tx: tx.begin_lease(NODE, HOUR))
            await storage.write(lambda tx: tx.renew_lease(NODE, HOUR))
            assert await storage.read(lambda tx: tx.nodes()) == [NODE]
            # Shorter, too: it is not the later of the two ends that counts.
            await storage.write(lambda tx: tx.renew_lease(NODE, OVER))
            assert await storage.read(lambda tx: tx.nodes()) == []
            assert await storage.write(lambda tx: tx.release_lost()) == 1

    async def test_expired_node_is_not_the_eldest(self) -> None:
        async with self.open() as storage:
            await storage.write(lambda tx: tx.begin_lease(OTHER_NODE, OVER))
            await storage.write(lambda tx: tx.begin_lease(NODE, HOUR))
            renewal = await storage.write(lambda tx: tx.renew_lease(NODE, HOUR))
            assert renewal is not None
            assert renewal.is_eldest

    async def test_lease_that_was_ended_cannot_be_renewed(self) -> None:
        """So its node learns that its claims are another's by now."""
        async with self.open() as storage:
            assert await storage.write(lambda tx: tx.renew_lease(NODE, HOUR)) is None
            for end in (methodcaller("end_lease", NODE), methodcaller("release_lost")):
                await storage.write(lambda tx: tx.begin_lease(NODE, OVER))
                await storage.write(end)
                assert await storage.write(lambda tx: tx.renew_lease(NODE, HOUR)) is None
                assert await storage.read(lambda tx: tx.nodes()) == []

    async def test_lease_that_nobody_ended_can_be_renewed_late(self) -> None:
        """Its node was cut off for a while, and nobody took its claims meanwhile."""
        async with self.open() as storage:
            delivery = make_delivery(claimed_by=NODE)
            await store(storage, delivery)
            await storage.write(lambda tx: tx.begin_lease(NODE, OVER))
            assert await storage.read(lambda tx: tx.nodes()) == []
            assert await storage.write(lambda tx: tx.renew_lease(NODE, HOUR)) is not None
            assert await storage.write(lambda tx: tx.release_lost()) == 0
            assert await storage.read(lambda tx: tx.nodes()) == [NODE]
            assert await delivery_of(storage, delivery.id) == delivery

    async def test_ending_a_lease_frees_its_claims(self) -> None:
        async with self.open() as storage:
            mine = [make_delivery(claimed_by=NODE) for _ in range(3)]
            theirs = make_delivery(claimed_by=OTHER_NODE)
            await store(storage, *mine, theirs, make_delivery())
            for node_id in (NODE, OTHER_NODE):
                await storage.write(methodcaller("begin_lease", node_id, HOUR))
            assert await storage.write(lambda tx: tx.end_lease(NODE)) == 3
            assert await storage.write(lambda tx: tx.end_lease(NODE)) == 0
            for delivery in mine:
                assert await delivery_of(storage, delivery.id) == replace(delivery, claimed_by=None)
            assert await delivery_of(storage, theirs.id) == theirs
            assert await storage.read(lambda tx: tx.nodes()) == [OTHER_NODE]

    async def test_release_lost(self) -> None:
        """5.6: the claims of those whose leases expired, and of those who never had one."""
        async with self.open() as storage:
            mine = make_delivery(claimed_by=NODE)
            expired = [make_delivery(claimed_by=OTHER_NODE) for _ in range(2)]
            unknown = [make_delivery(claimed_by=name) for name in (THIRD_NODE, "node-0")]
            ended = make_delivery(
                claimed_by=OTHER_NODE, status="failed", due_at=None, completed_at=NOW
            )
            free = make_delivery()
            lost = [*expired, *unknown, ended]
            await store(storage, mine, *lost, free)
            await storage.write(lambda tx: tx.begin_lease(NODE, HOUR))
            await storage.write(lambda tx: tx.begin_lease(OTHER_NODE, OVER))

            assert await storage.write(lambda tx: tx.release_lost()) == 5
            for delivery in lost:
                assert await delivery_of(storage, delivery.id) == replace(delivery, claimed_by=None)
            assert await delivery_of(storage, mine.id) == mine
            assert await delivery_of(storage, free.id) == free
            assert await storage.write(lambda tx: tx.release_lost()) == 0
            assert await storage.read(lambda tx: tx.nodes()) == [NODE]

    async def test_release_lost_sees_what_the_same_function_did(self) -> None:
        async with self.open() as storage:
            mine, theirs = (make_delivery(claimed_by=name) for name in (NODE, OTHER_NODE))

            def function(tx: Tx) -> int:
                tx.insert_delivery(mine)
                tx.insert_delivery(theirs)
                tx.begin_lease(NODE, HOUR)
                return tx.release_lost()

            assert await storage.write(function) == 1
            assert await delivery_of(storage, mine.id) == mine

    async def test_orders(self) -> None:
        """5.4: a node hears what a person ordered of the deliveries that it holds, once."""
        async with self.open() as storage:
            first, second, other = (make_delivery(claimed_by=NODE) for _ in range(3))
            await store(storage, first, second, other)

            def order(tx: Tx) -> None:
                tx.put_order(NODE, first.id)
                tx.put_order(NODE, second.id)
                tx.put_order(NODE, first.id)
                tx.put_order(OTHER_NODE, other.id)

            async def waiting(node_id: str) -> bool:
                return await storage.read(lambda tx: tx.has_orders(node_id))

            assert not await waiting(NODE)
            await storage.write(order)
            await storage.write(lambda tx: tx.put_order(NODE, second.id))
            assert await waiting(NODE)
            assert not await waiting(THIRD_NODE)
            hastened = replace(first, due_at=NOW - 7, updated_at=NOW + 1)
            await storage.write(lambda tx: tx.update_delivery(hastened))

            taken = await storage.write(lambda tx: tx.take_orders(NODE))
            assert sorted(taken, key=_id) == sorted([hastened, second], key=_id)
            assert not await waiting(NODE)
            assert await storage.write(lambda tx: tx.take_orders(NODE)) == []
            assert await waiting(OTHER_NODE)
            assert await storage.write(lambda tx: tx.take_orders(OTHER_NODE)) == [other]

    async def test_orders_of_a_delivery_that_is_just_made(self) -> None:
        async with self.open() as storage:
            delivery = make_delivery(claimed_by=NODE)

            def function(tx: Tx) -> list[Delivery]:
                tx.insert_delivery(delivery)
                tx.put_order(NODE, delivery.id)
                assert tx.has_orders(NODE)
                return tx.take_orders(NODE)

            assert await storage.write(function) == [delivery]

    async def test_orders_end_with_their_node(self) -> None:
        async with self.open() as storage:
            deliveries = {name: make_delivery() for name in (NODE, OTHER_NODE, THIRD_NODE)}
            await store(storage, *deliveries.values())
            for node_id, ttl in ((NODE, HOUR), (OTHER_NODE, OVER), (THIRD_NODE, HOUR)):
                await storage.write(methodcaller("begin_lease", node_id, ttl))
                await storage.write(methodcaller("put_order", node_id, deliveries[node_id].id))

            async def waiting() -> list[str]:
                def ask(tx: Tx) -> list[str]:
                    return [node_id for node_id in deliveries if tx.has_orders(node_id)]

                return await storage.read(ask)

            await storage.write(lambda tx: tx.release_lost())
            assert await waiting() == [NODE, THIRD_NODE]
            await storage.write(lambda tx: tx.end_lease(THIRD_NODE))
            assert await waiting() == [NODE]


def _id(delivery: Delivery) -> str:
    return delivery.id
