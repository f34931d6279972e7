"""The way in: what is admitted, and that a commit's consequences follow it, come what may."""

from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import wait_all_tasks_blocked

from primeflowd.builtin.memory import MemoryStorage
from primeflowd.config import Config, StorageSettings
from primeflowd.errors import Draining, Overloaded, StorageUnavailable, UniqueViolation
from primeflowd.events import Event, secret_rotated
from primeflowd.keyring import Keyring
from primeflowd.lifecycle import NewBatch, create_batch
from primeflowd.model import Batch
from primeflowd.redelivery import attempt_now, cancel_delivery
from primeflowd.signing_secrets import create_secret, update_secret
from primeflowd.unit import Unit
from tests.node import ACME, URL, Node, open_node

ENDED = NewBatch(callback_url=URL, status="succeeded")


def memory_of(node: Node) -> MemoryStorage:
    assert isinstance(node.storage, MemoryStorage)
    return node.storage


async def stored(node: Node) -> list[str]:
    return [delivery.id for delivery in await node.deliveries()]


def scheduled(node: Node) -> list[str]:
    return [delivery.id for delivery, _ in node.schedule.admitted]


# Admission


async def test_a_full_backlog_refuses_more() -> None:
    """2.5: 503 with a Retry-After; nothing is tried. When the backlog is gone it goes on."""
    config = Config(storage=StorageSettings(max_backlog=3))
    async with open_node(config=config) as node:
        storage = memory_of(node)
        storage.hold()
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(node.perform, create_batch, ACME, ENDED)
            await wait_all_tasks_blocked()
            assert storage.statistics().backlog == 3
            with trio.fail_after(5), pytest.raises(Overloaded) as refused:
                await node.perform(create_batch, ACME, ENDED)
            assert not isinstance(refused.value, Draining)
            assert refused.value.retry_after >= 1
            assert storage.statistics().backlog == 3
            storage.resume()
        await node.perform(create_batch, ACME, ENDED)
        assert len(await stored(node)) == 4


async def test_a_full_backlog_of_a_real_writer(tmp_path: Path) -> None:
    """2.5, 5.6: whoever got an answer is stored, whoever was refused is not."""
    config = Config(storage=StorageSettings(max_backlog=3))
    async with open_node(f"sqlite:///{tmp_path / 'p.db'}", config=config) as node:
        made: list[Batch] = []
        refused: list[Overloaded] = []

        async def request() -> None:
            try:
                made.append(await node.perform(create_batch, ACME, ENDED))
            except Overloaded as error:
                refused.append(error)

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(request)

        assert len(made) >= 3
        assert refused
        assert {d.batch_id for d in await node.deliveries()} == {batch.id for batch in made}


async def test_a_closed_intake_refuses_everything() -> None:
    """Section 8: while draining; what was admitted before is still committed."""
    async with open_node() as node:
        tried = False

        def operation(unit: Unit) -> None:
            nonlocal tried
            tried = True

        memory_of(node).hold()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.perform, create_batch, ACME, ENDED)
            await wait_all_tasks_blocked()
            node.intake.close()
            assert node.intake.closed
            memory_of(node).resume()
        with pytest.raises(Draining):
            await node.intake.perform(operation)
        assert not tried
        assert len(await stored(node)) == 1
        assert scheduled(node) == await stored(node)


# The commit and what follows it


async def test_the_commit_itself_schedules() -> None:
    """Section 8, 5.6: before the caller wakes; and not before the commit."""
    async with open_node() as node:
        storage = memory_of(node)
        answers: list[Batch] = []

        async def request() -> None:
            answers.append(await node.perform(create_batch, ACME, ENDED))

        storage.hold()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(request)
            await wait_all_tasks_blocked()
            assert (scheduled(node), await stored(node)) == ([], [])
            storage.resume()
            assert len(scheduled(node)) == 1
            assert answers == []
        assert [answer.payload for answer in answers] == [
            body for _, body in node.schedule.admitted
        ]


async def test_a_caller_that_is_cancelled_loses_nothing() -> None:
    """5.6: a client that hangs up while its write waits cancels only itself."""
    async with open_node() as node:
        storage = memory_of(node)
        storage.hold()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.perform, create_batch, ACME, ENDED)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert scheduled(node) == []
        storage.resume()
        assert len(scheduled(node)) == 1
        assert scheduled(node) == await stored(node)


@pytest.mark.parametrize("held", [False, True])
async def test_cancelled_at_every_await_memory(held: bool) -> None:
    """5.6: what is stored is scheduled and the other way round, wherever a caller is cancelled."""
    async with open_node() as node:
        storage = memory_of(node)
        for checkpoints in range(5):
            if held:
                storage.hold()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(node.perform, create_batch, ACME, ENDED)
                for _ in range(checkpoints):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
            if held:
                storage.resume()
            assert scheduled(node) == await stored(node)
        # Some were withdrawn, some went through: both cases were met.
        assert 0 < len(scheduled(node)) < 5


async def test_cancelled_at_every_await_sqlite(tmp_path: Path) -> None:
    """5.6: the same with a writer in a thread of its own."""
    async with open_node(f"sqlite:///{tmp_path / 'p.db'}") as node:
        for checkpoints in range(40):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(node.perform, create_batch, ACME, ENDED)
                for _ in range(checkpoints):
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()
        # Behind all that is queued.
        last = await node.perform(create_batch, ACME, ENDED)
        assert sorted(scheduled(node)) == sorted(await stored(node))
        assert (await node.deliveries(last.id))[0].id in scheduled(node)


async def test_an_operation_that_raises_has_no_consequences() -> None:
    """4.6: nothing is stored, nothing scheduled, and the error is the caller's."""

    class Failure(Exception):
        pass

    async with open_node() as node:
        first = await node.ended()
        [delivery] = await node.deliveries(first.id)
        node.schedule.admitted.clear()

        def operation(unit: Unit) -> None:
            create_batch(unit, ACME, ENDED)
            attempt_now(unit, ACME, delivery.id)
            cancel_delivery(unit, ACME, delivery.id)
            assert unit.made
            assert unit.hastened
            assert unit.dropped
            raise Failure

        with pytest.raises(Failure):
            await node.intake.perform(operation)
        assert await node.deliveries() == [delivery]
        schedule = node.schedule
        assert (schedule.admitted, schedule.dropped, schedule.hastened) == ([], [], [])


async def test_nothing_is_scheduled_when_storage_fails() -> None:
    """2.5, 5.6: the caller learns it, and may try again."""
    async with open_node() as node:
        memory_of(node).fail_with = StorageUnavailable("disk full")
        with pytest.raises(StorageUnavailable):
            await node.perform(create_batch, ACME, ENDED)
        assert scheduled(node) == []
        memory_of(node).fail_with = None
        await node.perform(create_batch, ACME, ENDED)
        assert scheduled(node) == await stored(node)
        assert node.intake.accepted == 1


async def test_only_the_last_run_of_an_operation_counts() -> None:
    """Storage may run it again: what the first run made was undone, and is not scheduled."""
    async with open_node() as node:
        runs: list[Batch] = []

        def operation(unit: Unit) -> Batch:
            runs.append(create_batch(unit, ACME, ENDED))
            if len(runs) == 1:
                raise UniqueViolation("somebody was faster")
            return runs[-1]

        batch = await node.intake.perform(operation)
        assert len(runs) == 2
        assert batch == runs[1]
        assert [d.batch_id for d, _ in node.schedule.admitted] == [batch.id]
        assert scheduled(node) == await stored(node)
        assert node.intake.accepted == 1


async def test_what_nobody_claimed_is_not_admitted() -> None:
    """Storage is the queue: without room here, the delivery waits there, due and unclaimed."""
    async with open_node() as node:
        node.schedule.room = False
        await node.perform(create_batch, ACME, ENDED)
        [delivery] = await node.deliveries()
        assert delivery.claimed_by is None
        assert delivery.due_at == node.clock.now()
        assert scheduled(node) == []
        assert node.intake.accepted == 1


async def test_orders_are_passed_on() -> None:
    """5.4: whom to drop and whom to hasten."""
    async with open_node() as node:
        [first] = await node.deliveries((await node.ended()).id)
        [second] = await node.deliveries((await node.ended()).id)
        await node.perform(cancel_delivery, ACME, first.id)
        hastened = await node.perform(attempt_now, ACME, second.id)
        assert node.schedule.dropped == [first.id]
        assert node.schedule.hastened == [hastened]
        assert (node.intake.accepted, node.intake.cancelled) == (2, 1)


# Events


async def test_a_rotation_is_told_of_by_its_commit() -> None:
    """6.1: once it is durable, and not again by what changes nothing; logged, too."""
    async with open_node() as node:
        told: list[Event] = []
        node.intake.on_event = told.append
        keyring = Keyring(bytes(32))
        first, _ = await node.perform(create_secret, keyring, ACME, None)
        second, _ = await node.perform(create_secret, keyring, ACME, None)
        assert told == []
        storage = memory_of(node)
        storage.fail_with = StorageUnavailable("disk full")
        with capture_logs() as logs:
            with pytest.raises(StorageUnavailable):
                await node.perform(update_secret, ACME, second.id, "new", True)
            assert told == []
            storage.fail_with = None
            for _ in range(2):
                await node.perform(update_secret, ACME, second.id, "new", True)
        assert told == [secret_rotated(second, first, node.clock.now())]
        assert told[0].data == {
            "org_id": ACME,
            "secret_id": second.id,
            "key_prefix": second.key_prefix,
            "former_secret_id": first.id,
        }
        (entry,) = logs
        assert entry == {"event": "secret_rotated", "log_level": "info", **told[0].data}
