"""The way in: what is admitted, and that a commit's consequences follow it, come what may."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import outcome
import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import wait_all_tasks_blocked

from primeflowd.builtin.memory import MemoryStorage
from primeflowd.config import Config, StorageSettings
from primeflowd.errors import Draining, Overloaded, StorageUnavailable, UniqueViolation
from primeflowd.events import Event, secret_rotated
from primeflowd.hookspecs import Tx
from primeflowd.intake import Intake
from primeflowd.keyring import Keyring
from primeflowd.lifecycle import NewBatch, create_batch
from primeflowd.model import Batch, Delivery
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


# Without a task that waits


class Pool:
    """Senders that only remember what they were told, and what was scheduled by then."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.told: list[tuple[str, int]] = []

    def gather(self) -> None:
        self.note("gather")

    def begin(self) -> None:
        self.note("begin")

    def note(self, what: str) -> None:
        self.told.append((what, len(self._node.schedule.admitted)))


class Client:
    """Submits, and keeps what it was told of it; in the pool's notes, too."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.pool = node.intake.pool = Pool(node)
        self.results: list[outcome.Maybe[Any]] = []
        self._told = trio.Event()

    def submit(self, operation: Callable[[Unit], Any]) -> None:
        self._node.intake.submit(operation, self._ended)

    def create(self) -> None:
        self.submit(lambda unit: create_batch(unit, ACME, ENDED))

    async def told(self, count: int = 1) -> list[outcome.Maybe[Any]]:
        """Wait until so many have ended."""
        with trio.fail_after(30):
            while len(self.results) < count:
                await self._told.wait()
        return self.results

    def _ended(self, result: outcome.Maybe[Any]) -> None:
        self.pool.note("end")
        self.results.append(result)
        self._told.set()
        self._told = trio.Event()


@pytest.mark.parametrize("why", ["closed", "cut off", "backlog"])
async def test_what_may_not_be_submitted_is_not_tried(why: str) -> None:
    """2.5, section 8: raised where it is submitted; nobody is told of it later."""
    config = Config(storage=StorageSettings(max_backlog=1))
    async with open_node(config=config) as node:
        client, storage = Client(node), memory_of(node)
        refusals: dict[str, type[Exception]] = {
            "closed": Draining,
            "cut off": StorageUnavailable,
            "backlog": Overloaded,
        }
        first = 0
        match why:
            case "closed":
                node.intake.close()
            case "cut off":
                node.schedule.cut_off = True
            case "backlog":
                storage.hold()
                client.create()
                first = 1
        with pytest.raises(refusals[why]) as refused:
            client.create()
        assert type(refused.value) is refusals[why]
        assert storage.statistics().backlog == first
        storage.resume()
        await wait_all_tasks_blocked()
        assert len(client.results) == first
        assert len(await stored(node)) == len(scheduled(node)) == first


async def test_what_a_commit_made_is_scheduled_and_begun_before_anybody_is_told() -> None:
    """5.6: and nothing of it before the commit."""
    async with open_node() as node:
        client, storage = Client(node), memory_of(node)
        storage.hold()
        client.create()
        await wait_all_tasks_blocked()
        assert client.pool.told == []
        assert (scheduled(node), await stored(node)) == ([], [])
        storage.resume()
        assert client.pool.told == [("gather", 0), ("begin", 1), ("end", 1)]
        (result,) = client.results
        batch = result.unwrap()
        assert [body for _, body in node.schedule.admitted] == [batch.payload]
        assert scheduled(node) == await stored(node)
        assert node.intake.accepted == 1


async def test_what_shares_a_commit_is_begun_together(tmp_path: Path) -> None:
    """Also what others wait for in their tasks: the senders look at all of it once."""
    async with open_node(f"sqlite:///{tmp_path / 'p.db'}") as node:
        client, before = Client(node), node.storage.statistics().commits
        token = trio.lowlevel.current_trio_token()
        busy, go = trio.Event(), threading.Event()

        def keep_busy(_: Tx) -> None:
            token.run_sync_soon(busy.set)
            go.wait()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.storage.write, keep_busy)
            await busy.wait()
            try:
                client.create()
                nursery.start_soon(node.perform, create_batch, ACME, ENDED)
                await wait_all_tasks_blocked()
                client.create()
            finally:
                go.set()
            await client.told(2)
        assert node.storage.statistics().commits == before + 2
        assert client.pool.told == [
            ("gather", 0),
            ("gather", 2),
            ("begin", 3),
            ("end", 3),
            ("begin", 3),
            ("end", 3),
        ]
        assert sorted(scheduled(node)) == sorted(await stored(node))


async def test_submitted_where_nobody_sends() -> None:
    """A node without senders of its own to tell: what is due is found all the same."""
    async with open_node() as node:
        client = Client(node)
        node.intake.pool = None
        client.create()
        await client.told()
        assert client.pool.told == [("end", 1)]
        assert scheduled(node) == await stored(node)


async def test_submitted_and_run_again_only_the_last_run_counts() -> None:
    """As of those that a task waits for."""
    async with open_node() as node:
        client = Client(node)
        runs: list[Batch] = []

        def operation(unit: Unit) -> Batch:
            runs.append(create_batch(unit, ACME, ENDED))
            if len(runs) == 1:
                raise UniqueViolation("somebody was faster")
            return runs[-1]

        client.submit(operation)
        (result,) = await client.told()
        assert len(runs) == 2
        assert result == outcome.Value(runs[1])
        assert [d.batch_id for d, _ in node.schedule.admitted] == [runs[1].id]
        assert scheduled(node) == await stored(node)
        assert node.intake.accepted == 1


@pytest.mark.parametrize("why", ["operation", "storage"])
async def test_submitted_and_failed_has_no_consequences(why: str) -> None:
    """4.6, 2.5: but that it is told; and the senders have nothing to look for."""

    class Failure(Exception):
        pass

    async with open_node() as node:
        client, storage = Client(node), memory_of(node)

        def operation(unit: Unit) -> None:
            create_batch(unit, ACME, ENDED)
            raise Failure

        if why == "operation":
            client.submit(operation)
        else:
            storage.fail_with = StorageUnavailable("disk full")
            client.create()
        (result,) = await client.told()
        assert isinstance(result, outcome.Error)
        assert isinstance(result.error, Failure if why == "operation" else StorageUnavailable)
        storage.fail_with = None
        assert "gather" not in dict(client.pool.told)
        assert scheduled(node) == await stored(node) == []
        assert node.intake.accepted == 0


async def test_submitted_and_its_orders_and_events_are_passed_on() -> None:
    """5.4, 6.1: by its commit, before whoever asked is told."""
    async with open_node() as node:
        events: list[Event] = []
        node.intake.on_event = events.append
        keyring = Keyring(bytes(32))
        await node.perform(create_secret, keyring, ACME, None)
        second, _ = await node.perform(create_secret, keyring, ACME, None)
        [first] = await node.deliveries((await node.ended()).id)
        client = Client(node)
        client.submit(lambda unit: update_secret(unit, ACME, second.id, "new", True))
        client.submit(lambda unit: attempt_now(unit, ACME, first.id))
        client.submit(lambda unit: cancel_delivery(unit, ACME, first.id))
        results = await client.told(3)
        assert [event.kind for event in events] == ["secret.rotated"]
        assert [d.id for d in node.schedule.hastened] == node.schedule.dropped == [first.id]
        assert all(isinstance(result, outcome.Value) for result in results)
        assert node.intake.cancelled == 1


async def test_submitted_is_followed() -> None:
    """Who follows what is made is asked where it is submitted, and told by the commit."""
    asked: list[str] = []
    followed: list[Delivery] = []

    def follow() -> Callable[[Sequence[Delivery]], None]:
        asked.append("asked")
        return followed.extend

    async with open_node() as node:
        node.intake = Intake(node.storage, node.schedule, node.clock, node.config, follow)
        client, storage = Client(node), memory_of(node)
        storage.hold()
        client.create()
        assert (asked, followed) == (["asked"], [])
        storage.resume()
        assert [delivery.id for delivery in followed] == await stored(node)


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
