"""Promises about the queue: who may claim what, and whose records count."""

from collections import Counter
from operator import methodcaller
from random import Random

from msgspec.structs import replace

from primeflowd.hookspecs import Fate, Shape, Tx
from primeflowd.model import Delivery
from primeflowd.testing.conformance.base import (
    NODE,
    OTHER_NODE,
    Conformance,
    attempts_of,
    delivery_of,
    store,
)
from primeflowd.testing.factories import NOW, ORG, make_attempt, make_delivery

BUSY = "https://busy.example:443"
QUIET = "https://quiet.example:443"


def _ended(delivery: Delivery, **changes: object) -> Delivery:
    """After a first attempt that succeeded."""
    values: dict[str, object] = {
        "status": "succeeded",
        "attempt_count": 1,
        "due_at": None,
        "claimed_by": None,
        "updated_at": NOW + 7,
        "completed_at": NOW + 7,
    }
    return replace(delivery, **values | changes)


class QueuePromises(Conformance):
    async def test_claim_takes_what_is_due_earliest_first(self) -> None:
        async with self.open() as storage:
            late, early, at_until = (make_delivery(due_at=NOW + at) for at in (5, 1, 9))
            future = make_delivery(due_at=NOW + 10)
            taken = make_delivery(due_at=NOW, claimed_by=OTHER_NODE)
            over = _ended(make_delivery())
            await store(storage, late, early, at_until, future, taken, over)

            claimed = await storage.write(lambda tx: tx.claim(NODE, NOW + 9, 10, 10, {}))
            expected = [replace(d, claimed_by=NODE) for d in (early, late, at_until)]
            assert claimed == expected
            assert [await delivery_of(storage, d.id) for d in claimed] == expected
            assert await delivery_of(storage, taken.id) == taken
            assert await storage.write(lambda tx: tx.claim(OTHER_NODE, NOW + 9, 10, 10, {})) == []

    async def test_claim_limit(self) -> None:
        async with self.open() as storage:
            deliveries = [make_delivery(due_at=NOW + index) for index in range(5)]
            await store(storage, *reversed(deliveries))
            assert await storage.write(lambda tx: tx.claim(NODE, NOW + 9, 0, 10, {})) == []
            first = await storage.write(lambda tx: tx.claim(NODE, NOW + 9, 3, 10, {}))
            rest = await storage.write(lambda tx: tx.claim(NODE, NOW + 9, 3, 10, {}))
            assert [d.id for d in first + rest] == [d.id for d in deliveries]

    async def test_claim_sees_what_the_same_function_inserted(self) -> None:
        async with self.open() as storage:
            delivery = make_delivery()

            def function(tx: Tx) -> list[Delivery]:
                tx.insert_delivery(delivery)
                return tx.claim(NODE, NOW, 1, 1, {})

            assert await storage.write(function) == [replace(delivery, claimed_by=NODE)]

    async def test_claim_leaves_a_destination_its_share(self) -> None:
        async with self.open() as storage:
            busy = [make_delivery(destination=BUSY, due_at=NOW + index) for index in range(6)]
            quiet = make_delivery(destination=QUIET, due_at=NOW + 100)
            await store(storage, *busy, quiet)
            claimed = await storage.write(lambda tx: tx.claim(NODE, NOW + 100, 10, 4, {BUSY: 1}))
            assert [d.id for d in claimed] == [d.id for d in (*busy[:3], quiet)]
            held = {BUSY: 4, QUIET: 1}
            assert await storage.write(lambda tx: tx.claim(NODE, NOW + 100, 10, 4, held)) == []
            held = {BUSY: 3, QUIET: 0}
            claimed = await storage.write(lambda tx: tx.claim(NODE, NOW + 100, 10, 4, held))
            assert [d.id for d in claimed] == [busy[3].id]

    async def test_crowd_at_one_destination_hides_nobody(self) -> None:
        """A receiver that is down for a week, with thousands of retries due before the others'."""
        async with self.open() as storage:
            crowd = [make_delivery(destination=BUSY, due_at=NOW) for _ in range(3_000)]
            others = [
                make_delivery(destination=f"https://r{index % 7}.example:443", due_at=NOW + index)
                for index in range(1, 50)
            ]
            await store(storage, *crowd, *others, make_delivery(due_at=NOW + 1000))

            claimed = await storage.write(lambda tx: tx.claim(NODE, NOW + 500, 20, 4, {BUSY: 1}))
            crowd.sort(key=lambda delivery: delivery.id)
            # Three of the crowd, then of the others the earliest, four of each destination.
            expected = [d.id for d in (*crowd[:3], *others[:17])]
            assert [d.id for d in claimed] == expected

            held = dict(Counter(delivery.destination for delivery in claimed))
            rest = await storage.write(lambda tx: tx.claim(NODE, NOW + 500, 100, 4, held))
            assert [d.id for d in rest] == [crowd[3].id, *(d.id for d in others[17:28])]

    async def test_claim_takes_what_a_walk_of_the_queue_would(self) -> None:
        """Behind a crowd, with many destinations in any order and several rows to an instant."""
        async with self.open() as storage:
            random = Random(7)  # noqa: S311 -- the same walk every time
            crowd = [make_delivery(destination=BUSY, due_at=NOW) for _ in range(1_500)]
            others = [
                make_delivery(
                    destination=f"https://r{random.randrange(40)}.example:443",
                    due_at=NOW + random.randrange(60),
                )
                for _ in range(400)
            ]
            await store(storage, *crowd, *others)
            waiting = sorted([*crowd, *others], key=lambda d: (d.due_at or 0, d.id))
            held = Counter({BUSY: 2})
            for limit in (10, 1, 30, 7, 100):
                expected: list[str] = []
                for delivery in waiting:
                    if len(expected) < limit and held[delivery.destination] < 4:
                        held[delivery.destination] += 1
                        expected.append(delivery.id)
                before = dict(held - Counter(d.destination for d in waiting if d.id in expected))
                claimed = await storage.write(
                    methodcaller("claim", NODE, NOW + 1000, limit, 4, before)
                )
                assert [d.id for d in claimed] == expected
                waiting = [d for d in waiting if d.id not in expected]

    async def test_release(self) -> None:
        async with self.open() as storage:
            mine = [make_delivery(claimed_by=NODE) for _ in range(3)]
            theirs = make_delivery(claimed_by=OTHER_NODE)
            await store(storage, *mine, theirs, make_delivery())

            chosen = [mine[0].id, theirs.id, "no delivery"]
            assert await storage.write(lambda tx: tx.release(NODE, chosen)) == 1
            assert (await delivery_of(storage, mine[0].id)).claimed_by is None
            assert (await delivery_of(storage, theirs.id)).claimed_by == OTHER_NODE
            assert await storage.write(lambda tx: tx.release(NODE, [])) == 0
            assert await storage.write(lambda tx: tx.release(NODE, None)) == 2
            assert await storage.write(lambda tx: tx.release(NODE, None)) == 0
            claimed = await storage.write(lambda tx: tx.claim(OTHER_NODE, NOW, 10, 10, {}))
            assert {d.id for d in mine} < {d.id for d in claimed}

    async def test_claimed(self) -> None:
        """All that a node has, also what a person ended meanwhile; nothing of another's."""
        async with self.open() as storage:
            mine = make_delivery(claimed_by=NODE)
            ended = _ended(make_delivery(), claimed_by=NODE)
            await store(storage, mine, ended, make_delivery(claimed_by=OTHER_NODE), make_delivery())
            assert await storage.read(lambda tx: tx.claimed(NODE)) == {mine.id, ended.id}
            assert await storage.read(lambda tx: tx.claimed("node-3")) == set()

            def give_one_up_and_ask(tx: Tx) -> set[str]:
                tx.release(NODE, [mine.id])
                return tx.claimed(NODE)

            assert await storage.write(give_one_up_and_ask) == {ended.id}

    async def test_record_attempt_that_ends(self) -> None:
        async with self.open() as storage:
            delivery = make_delivery(claimed_by=NODE)
            after, attempt = _ended(delivery), make_attempt(delivery_id=delivery.id)
            await store(storage, delivery)
            fate = await storage.write(lambda tx: tx.record_attempt(NODE, attempt, after))
            assert fate == "recorded"
            assert await delivery_of(storage, delivery.id) == after
            assert await attempts_of(storage, delivery.id) == [attempt]
            assert await storage.read(lambda tx: tx.in_flight(ORG, delivery.batch_id)) is None

    async def test_record_attempt_of_a_delivery_that_is_just_made(self) -> None:
        async with self.open() as storage:
            delivery = make_delivery(claimed_by=NODE)
            after, attempt = _ended(delivery), make_attempt(delivery_id=delivery.id)

            def function(tx: Tx) -> Fate:
                tx.insert_delivery(delivery)
                return tx.record_attempt(NODE, attempt, after)

            assert await storage.write(function) == "recorded"
            assert await delivery_of(storage, delivery.id) == after
            assert await attempts_of(storage, delivery.id) == [attempt]

    async def test_record_attempt_that_will_be_retried(self) -> None:
        """3.6: a retry within the horizon stays claimed, a later one is free for any node."""
        async with self.open() as storage:
            delivery = make_delivery(claimed_by=NODE)
            await store(storage, delivery)
            for number, claimed_by in ((1, NODE), (2, None)):
                after = replace(
                    delivery,
                    failure_reason="timeout",
                    failure_detail="no answer",
                    attempt_count=number,
                    due_at=NOW + number,
                    claimed_by=claimed_by,
                    updated_at=NOW + number,
                )
                attempt = make_attempt(delivery_id=delivery.id, attempt_number=number)
                fate = await storage.write(methodcaller("record_attempt", NODE, attempt, after))
                assert fate == "recorded"
                assert await delivery_of(storage, delivery.id) == after
            assert len(await attempts_of(storage, delivery.id)) == 2
            claimed = await storage.write(lambda tx: tx.claim(OTHER_NODE, NOW + 2, 10, 10, {}))
            assert [d.id for d in claimed] == [delivery.id]

    async def test_record_without_the_claim_is_lost(self) -> None:
        """Write back only what you still own."""
        async with self.open() as storage:
            theirs = make_delivery(claimed_by=OTHER_NODE)
            nobodys = make_delivery()
            over = _ended(make_delivery())
            await store(storage, theirs, nobodys, over)
            for delivery in (theirs, nobodys, over, make_delivery()):
                attempt = make_attempt(delivery_id=delivery.id)
                fate = await storage.write(
                    methodcaller("record_attempt", NODE, attempt, _ended(delivery))
                )
                assert fate == "lost"
                assert await attempts_of(storage, delivery.id) == []
            for delivery in (theirs, nobodys, over):
                assert await delivery_of(storage, delivery.id) == delivery

    async def test_record_after_a_persons_order_keeps_that_end(self) -> None:
        """5.4: cancelled while it was being sent. The attempt was made, so it is on record."""
        async with self.open() as storage:
            delivery = make_delivery(claimed_by=NODE)
            cancelled = replace(
                delivery,
                status="failed",
                failure_reason="cancelled",
                failure_detail="by order",
                due_at=None,
                updated_at=NOW + 1,
                completed_at=NOW + 1,
            )
            await store(storage, delivery)
            await storage.write(lambda tx: tx.update_delivery(cancelled))
            attempt = make_attempt(delivery_id=delivery.id)
            after = _ended(delivery, interruptions=1)
            fate = await storage.write(lambda tx: tx.record_attempt(NODE, attempt, after))
            assert fate == "ended"
            assert await delivery_of(storage, delivery.id) == replace(
                cancelled,
                attempt_count=1,
                interruptions=1,
                claimed_by=None,
                updated_at=after.updated_at,
            )
            assert await attempts_of(storage, delivery.id) == [attempt]
            again = make_attempt(delivery_id=delivery.id, attempt_number=2)
            assert await storage.write(lambda tx: tx.record_attempt(NODE, again, after)) == "lost"

    async def test_shape_counts_what_waits_by_destination_and_time(self) -> None:
        """Claimed or not; an instant on an edge is after it; what has ended is not there."""
        async with self.open() as storage:
            edges = (NOW - 10, NOW)
            busy = [
                (NOW - 11, None),
                (NOW - 10, None),
                (NOW - 1, NODE),
                (NOW, NODE),
                (NOW + 5, None),
            ]
            waiting = [
                make_delivery(destination=BUSY, due_at=due, claimed_by=node) for due, node in busy
            ]
            quiet = make_delivery(destination=QUIET, due_at=NOW - 1, claimed_by=OTHER_NODE)
            theirs = make_delivery(destination=QUIET, due_at=NOW + 1, org_id="org-2")
            ended = _ended(make_delivery(destination=QUIET), claimed_by=NODE)
            assert await storage.read(methodcaller("shape", None, edges, 9)) == Shape(
                (), (0, 0, 0), 0
            )
            await store(storage, *waiting, quiet, theirs, ended)

            found = await storage.read(methodcaller("shape", None, edges, 9))
            rows = ((BUSY, (1, 2, 2)), (QUIET, (0, 1, 1)))
            assert found == Shape(rows, (1, 3, 3), 2)
            found = await storage.read(methodcaller("shape", ORG, edges, 9))
            assert found == Shape((rows[0], (QUIET, (0, 1, 0))), (1, 3, 2), 2)
            # The largest alone, in the total of all.
            assert await storage.read(methodcaller("shape", None, edges, 1)) == Shape(
                rows[:1], (1, 3, 3), 2
            )
            found = await storage.read(methodcaller("shape", "org-2", (), 9))
            assert found == Shape(((QUIET, (1,)),), (1,), 1)

    async def test_shape_of_equal_destinations_is_in_the_order_of_their_names(self) -> None:
        async with self.open() as storage:
            names = [f"https://{name}.example:443" for name in ("b", "a-1", "a", "c")]
            await store(storage, *(make_delivery(destination=name) for name in names))
            found = await storage.read(methodcaller("shape", None, (NOW,), 3))
            assert found == Shape(tuple((name, (0, 1)) for name in sorted(names)[:3]), (0, 4), 4)
