"""What people may ask of a delivery: again, not at all, or now (contract 4.8, 4.9, 5.4)."""

from pathlib import Path

import msgspec
import pytest
import trio

from primeflowd.errors import NotFound, StateRefused
from primeflowd.instants import HOUR, MINUTE, SECOND, rfc3339
from primeflowd.lifecycle import NewBatch, create_batch
from primeflowd.model import BatchStatus, Delivery, new_id
from primeflowd.redelivery import attempt_now, cancel_delivery, redeliver
from primeflowd.testing.factories import make_attempt
from primeflowd.unit import Unit
from tests.node import ACME, GLOBEX, NODE, START, URL, HandClock, Node, open_node


async def the_delivery(node: Node) -> Delivery:
    """The automatic delivery of a new ended batch."""
    [delivery] = await node.deliveries((await node.ended()).id)
    return delivery


async def waiting_retry(node: Node, claimed_by: str | None = NODE) -> Delivery:
    """A delivery with one failed attempt, due again in an hour."""
    delivery = await the_delivery(node)

    def failed(unit: Unit) -> Delivery:
        after = msgspec.structs.replace(
            delivery,
            attempt_count=1,
            failure_reason="http_status",
            due_at=unit.now + HOUR,
            claimed_by=claimed_by,
        )
        unit.tx.update_delivery(after)
        return after

    return await node.perform(failed)


# Redelivery


@pytest.mark.parametrize("status", ["queued", "running"])
async def test_redelivery_needs_an_ended_batch(status: BatchStatus) -> None:
    """4.8: `invalid_state`."""
    async with open_node() as node:
        new = NewBatch(callback_url=URL, status=status)
        batch = await node.perform(create_batch, ACME, new)
        with pytest.raises(StateRefused) as refused:
            await node.perform(redeliver, ACME, batch.id)
        assert refused.value.code == "invalid_state"
        assert refused.value.details == {"error_type": "invalid_state"}
        assert await node.deliveries(batch.id) == []


async def test_redelivery_needs_a_callback_url() -> None:
    """4.8: `missing_callback_url`."""
    async with open_node() as node:
        batch = await node.ended(url=None)
        with pytest.raises(StateRefused) as refused:
            await node.perform(redeliver, ACME, batch.id)
        assert refused.value.code == "missing_callback_url"
        assert refused.value.details == {"error_type": "missing_callback_url"}


async def test_redelivery_conflicts_with_a_delivery_in_flight() -> None:
    """4.8: `conflict`; the message names the delivery and its `next_attempt_at`."""
    async with open_node() as node:
        # A retry that waits for an hour is in flight just as well.
        for other in (await the_delivery(node), await waiting_retry(node)):
            with pytest.raises(StateRefused) as refused:
                await node.perform(redeliver, ACME, other.batch_id)
            assert other.due_at is not None
            due = rfc3339(other.due_at)
            assert refused.value.code == "conflict"
            assert refused.value.details == {
                "error_type": "conflict",
                "delivery_id": other.id,
                "next_attempt_at": due,
            }
            assert other.id in refused.value.message
            assert due in refused.value.message
            assert len(await node.deliveries(other.batch_id)) == 1


async def test_redelivery_of_nothing() -> None:
    """2.4: an id that is not there, and another org's batch."""
    async with open_node() as node:
        batch = await node.ended()
        await node.settle((await node.deliveries(batch.id))[0].id)
        for org_id, batch_id in [(ACME, new_id()), (GLOBEX, batch.id)]:
            with pytest.raises(NotFound):
                await node.perform(redeliver, org_id, batch_id)


@pytest.mark.parametrize("reason", [None, "timeout"])
async def test_a_redelivery_is_a_new_delivery_of_the_same_bytes(reason: str | None) -> None:
    """4.9, 4.5: also of a batch whose delivery succeeded."""
    clock = HandClock()
    async with open_node(clock=clock) as node:
        first = await the_delivery(node)
        await node.settle(first.id, "timeout" if reason else None)
        clock.instant += MINUTE
        second = await node.perform(redeliver, ACME, first.batch_id)
        now = START + MINUTE
        assert second == msgspec.structs.replace(
            first, id=second.id, is_automatic=False, due_at=now, created_at=now, updated_at=now
        )
        assert second.id != first.id
        assert (second.attempt_count, second.status) == (0, "pending")
        assert await node.delivery(second.id) == second
        assert [body for _, body in node.schedule.admitted] == [
            await node.payload(first.batch_id)
        ] * 2


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_of_concurrent_redeliveries_one_is_made(kind: str, tmp_path: Path) -> None:
    """4.8: of 20 concurrent requests one gets it and nineteen a conflict."""
    url = "memory://" if kind == "memory" else f"sqlite:///{tmp_path / 'p.db'}"
    async with open_node(url) as node:
        first = await the_delivery(node)
        await node.settle(first.id)
        made: list[Delivery] = []
        refused: list[tuple[str, str | None]] = []

        async def request() -> None:
            try:
                made.append(await node.perform(redeliver, ACME, first.batch_id))
            except StateRefused as error:
                refused.append((error.code, (error.details or {}).get("delivery_id")))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(request)

        assert len(made) == 1
        assert refused == [("conflict", made[0].id)] * 19
        assert [d.id for d in await node.deliveries(first.batch_id)] == [first.id, made[0].id]
        assert [d.id for d, _ in node.schedule.admitted] == [first.id, made[0].id]


# Cancellation


@pytest.mark.parametrize("claimed_by", [NODE, None])
async def test_cancelling_ends_a_delivery(claimed_by: str | None) -> None:
    """5.4, 5.1: `failed` with `cancelled`, no next attempt; a sender keeps the claim it has."""
    clock = HandClock()
    async with open_node(clock=clock) as node:
        waiting = await waiting_retry(node, claimed_by)
        clock.instant += SECOND
        ended = await node.perform(cancel_delivery, ACME, waiting.id)
        assert (ended.status, ended.failure_reason) == ("failed", "cancelled")
        assert ended.due_at is None
        assert ended.completed_at == ended.updated_at == START + SECOND
        assert ended.attempt_count == 1
        assert ended.claimed_by == claimed_by
        assert await node.delivery(waiting.id) == ended
        assert node.schedule.dropped == [waiting.id]
        # The way to a redelivery is free (4.8).
        assert not (await node.perform(redeliver, ACME, waiting.batch_id)).is_automatic


async def test_an_attempt_under_way_goes_on_record_after_the_cancellation() -> None:
    """5.4, 5.5: it was made, so it counts; but a success does not undo the order."""
    async with open_node() as node:
        delivery = await the_delivery(node)
        cancelled = await node.perform(cancel_delivery, ACME, delivery.id)
        attempt = make_attempt(org_id=ACME, delivery_id=delivery.id)
        after = msgspec.structs.replace(
            delivery, status="succeeded", attempt_count=1, due_at=None, claimed_by=None
        )
        fate = await node.storage.write(lambda tx: tx.record_attempt(NODE, attempt, after))
        assert fate == "ended"
        stored = await node.delivery(delivery.id)
        assert (stored.status, stored.failure_reason) == ("failed", "cancelled")
        assert (stored.attempt_count, stored.claimed_by) == (1, None)
        assert stored.completed_at == cancelled.completed_at
        assert await node.read(lambda tx: tx.attempts([delivery.id])) == {delivery.id: [attempt]}


# Attempt now


@pytest.mark.parametrize("claimed_by", [NODE, "node-2"])
async def test_attempt_now_makes_a_waiting_retry_due(claimed_by: str) -> None:
    """5.4: due at once; nothing else about it changes, and no retry is used up."""
    clock = HandClock()
    async with open_node(clock=clock) as node:
        waiting = await waiting_retry(node, claimed_by)
        clock.instant += SECOND
        hastened = await node.perform(attempt_now, ACME, waiting.id)
        now = START + SECOND
        assert hastened == msgspec.structs.replace(waiting, due_at=now, updated_at=now)
        assert await node.delivery(waiting.id) == hastened
        assert node.schedule.hastened == [hastened]


@pytest.mark.parametrize("room", [True, False])
async def test_attempt_now_claims_what_nobody_holds(room: bool) -> None:
    """5.4: a retry beyond the horizon is claimed by this node, if it has room for it."""
    async with open_node() as node:
        waiting = await waiting_retry(node, claimed_by=None)
        node.schedule.room = room
        hastened = await node.perform(attempt_now, ACME, waiting.id)
        assert hastened.claimed_by == (NODE if room else None)
        assert await node.delivery(waiting.id) == hastened


async def test_attempt_now_never_delays() -> None:
    """5.4: what is overdue keeps its place in the queue."""
    clock = HandClock()
    async with open_node(clock=clock) as node:
        delivery = await the_delivery(node)
        clock.instant += MINUTE
        assert (await node.perform(attempt_now, ACME, delivery.id)).due_at == START


@pytest.mark.parametrize("operation", [cancel_delivery, attempt_now])
@pytest.mark.parametrize("reason", [None, "timeout"])
async def test_an_ended_delivery_takes_no_orders(operation: object, reason: str | None) -> None:
    """5.1, 5.4: a terminal state never changes."""
    assert callable(operation)
    async with open_node() as node:
        delivery = await the_delivery(node)
        await node.settle(delivery.id, "timeout" if reason else None)
        ended = await node.delivery(delivery.id)
        with pytest.raises(StateRefused) as refused:
            await node.perform(operation, ACME, delivery.id)
        assert refused.value.code == "invalid_state"
        assert await node.delivery(delivery.id) == ended
        assert node.schedule.dropped == []
        assert node.schedule.hastened == []


@pytest.mark.parametrize("operation", [cancel_delivery, attempt_now])
async def test_another_org_s_delivery_is_not_there(operation: object) -> None:
    """2.4"""
    assert callable(operation)
    async with open_node() as node:
        delivery = await the_delivery(node)
        for org_id, delivery_id in [(GLOBEX, delivery.id), (ACME, new_id())]:
            with pytest.raises(NotFound):
                await node.perform(operation, org_id, delivery_id)
        assert await node.delivery(delivery.id) == delivery
