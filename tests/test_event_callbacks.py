"""Callbacks about events: coalesced, durable once storage is there, never about themselves."""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked

from primeflowd import events
from primeflowd.builtin.memory import MemoryStorage, open_memory
from primeflowd.clock import TrioClock
from primeflowd.config import Config, from_mapping
from primeflowd.errors import StorageUnavailable
from primeflowd.event_callbacks import EventCallbacks
from primeflowd.events import Event
from primeflowd.hookspecs import BatchFilter, DeliveryFilter, Page, Tx
from primeflowd.instants import SECOND
from primeflowd.model import Batch, Delivery, RetryPolicy
from primeflowd.testing.factories import make_delivery, make_policy, make_secret
from tests.node import open_node

URL = "https://ops.example/events"
OPS = "primeflowd"
BROKEN = StorageUnavailable("disk full")


class Desk:
    """Storage and the callbacks that are made in it, not running yet."""

    def __init__(self, storage: MemoryStorage, config: Config) -> None:
        self.storage = storage
        self.clock = TrioClock()
        self.made: list[Sequence[Delivery]] = []
        self.callbacks = EventCallbacks(
            storage, self.clock, config, lambda: "node-1", self.made.append
        )

    def fail(self, host: str = "a", count: int = 1, org_id: str = "acme") -> list[Delivery]:
        """So many deliveries to a host fail."""
        failed = [
            make_delivery(
                org_id=org_id,
                destination=f"https://{host}:443",
                status="failed",
                failure_reason="timeout",
                updated_at=self.clock.now(),
            )
            for _ in range(count)
        ]
        for delivery in failed:
            self.callbacks.tell(events.delivery_failed(delivery))
        return failed

    def turn(self, change: Any, host: str = "a", org_id: str = "acme") -> None:
        delivery = make_delivery(org_id=org_id, destination=f"https://{host}:443")
        self.callbacks.tell(events.destination_turned(delivery, change, self.clock.now()))

    async def batches(self) -> list[Batch]:
        """Those of events, oldest first."""
        page = Page(10_000)
        return (await self.storage.read(lambda tx: tx.batches(OPS, BatchFilter(), page)))[::-1]

    async def told(self) -> list[tuple[str, str | None, int]]:
        """Kind, subject and count of each callback, oldest first."""
        payloads = [json.loads(batch.payload or b"") for batch in await self.batches()]
        return [(one["event"], one["subject"], one["count"]) for one in payloads]

    async def deliveries(self) -> list[Delivery]:
        page = Page(10_000)
        return await self.storage.read(lambda tx: tx.deliveries(OPS, DeliveryFilter(), page))


@asynccontextmanager
async def open_desk(**settings: Any) -> AsyncIterator[Desk]:
    config = from_mapping({"events": {"url": URL, **settings}})
    async with open_memory() as storage:
        yield Desk(storage, config)


@asynccontextmanager
async def running(**settings: Any) -> AsyncIterator[Desk]:
    async with open_desk(**settings) as desk, trio.open_nursery() as nursery:
        nursery.start_soon(desk.callbacks.run)
        await wait_all_tasks_blocked()
        yield desk
        nursery.cancel_scope.cancel()


async def test_an_event_is_a_callback_like_any_other(autojump_clock: MockClock) -> None:
    """3.5, 4.5, 6.3: an ended batch with its delivery, policy and secret; due at once."""
    async with running() as desk:
        secret = make_secret(org_id=OPS, is_current=True, disabled_at=None)
        policy: RetryPolicy = make_policy(org_id=OPS, plan_id="delivery.failed", delays=("7s",))

        def prepare(tx: Tx) -> None:
            tx.put_secret(secret)
            tx.put_policy(policy)

        await desk.storage.write(prepare)
        await trio.sleep(5)
        (failed,) = desk.fail()
        await wait_all_tasks_blocked()
        now = desk.clock.now()
        (batch,), (delivery,) = await desk.batches(), await desk.deliveries()
        assert (batch.status, batch.plan_id, batch.callback_url) == (
            "succeeded",
            "delivery.failed",
            URL,
        )
        assert batch.created_at == batch.completed_at == batch.updated_at == now
        event = events.delivery_failed(failed)
        assert batch.payload == events.freeze(batch.id, "node-1", event, event.subject, 1, event.at)
        assert (delivery.batch_id, delivery.callback_url) == (batch.id, URL)
        assert (delivery.status, delivery.due_at, delivery.claimed_by) == ("pending", now, None)
        assert delivery.is_automatic
        assert delivery.delays == ("7s",)
        assert delivery.signing_secret_id == secret.id
        assert [len(made) for made in desk.made] == [1]


async def test_a_thousand_failures_make_two_callbacks(autojump_clock: MockClock) -> None:
    """The first at once, the others at the end of the interval, counted."""
    async with running(interval="30s") as desk:
        desk.fail(count=1)
        await trio.sleep(1)
        second, *_ = desk.fail(count=500)
        await trio.sleep(1)
        desk.fail(count=499)
        desk.fail("b")
        last_at = desk.clock.now()
        await trio.sleep(27.9)
        assert await desk.told() == [
            ("delivery.failed", "https://a:443", 1),
            ("delivery.failed", "https://b:443", 1),
        ]
        await trio.sleep(0.2)
        *_, batch = await desk.batches()
        payload = json.loads(batch.payload or b"")
        assert payload["count"] == 999
        assert payload["data"]["delivery_id"] == second.id
        assert payload["first_at"] == events.spelt(second.updated_at)
        assert payload["last_at"] == events.spelt(last_at)
        # Another interval begins with it; and when that is over, all is forgotten.
        desk.fail()
        await trio.sleep(29)
        assert len(await desk.told()) == 3
        await trio.sleep(2)
        assert (await desk.told())[3:] == [("delivery.failed", "https://a:443", 1)]
        await trio.sleep(100)
        desk.fail()
        await wait_all_tasks_blocked()
        assert len(await desk.told()) == 5


async def test_memory_is_bounded(autojump_clock: MockClock) -> None:
    """Beyond a thousand destinations at a time the events of a kind are counted together."""
    async with running() as desk:
        for number in range(1500):
            desk.fail(f"host-{number}")
            desk.turn("suspended", f"host-{number}")
        await wait_all_tasks_blocked()
        told = await desk.told()
        apart = [(kind, count) for kind, subject, count in told if subject is not None]
        assert apart == [("delivery.failed", 1), ("destination.suspended", 1)] * 500
        together = {kind: count for kind, subject, count in told if subject is None}
        assert together == {"delivery.failed": 1000, "destination.suspended": 1000}
        # Of the destinations that it has forgotten, no recovery is told.
        for number in (0, 1499):
            desk.turn("recovered", f"host-{number}")
        await trio.sleep(100)
        recovered = [one for one in await desk.told() if one[0] == "destination.recovered"]
        assert recovered == [("destination.recovered", None, 1)]


@pytest.mark.parametrize("change", ["suspended", "recovered"])
async def test_nothing_is_told_about_itself(change: Any, autojump_clock: MockClock) -> None:
    """No failed callback about an event makes another, nor its suspended destination."""
    async with running() as desk:
        desk.fail(org_id=OPS)
        desk.turn(change, org_id=OPS)
        delivery = make_delivery(org_id=OPS, signing_secret_id="old")
        desk.callbacks.tell(events.secret_disabled_in_use(delivery, None))
        secret = make_secret(org_id=OPS)
        desk.callbacks.tell(events.secret_rotated(secret, None, desk.clock.now()))
        await trio.sleep(200)
        assert await desk.told() == []
        # It knows nothing of that suspension, then.
        desk.turn("recovered")
        await trio.sleep(200)
        assert await desk.told() == []


async def test_a_destination_that_stays_suspended_is_told_of_once(
    autojump_clock: MockClock,
) -> None:
    """Each failed probe suspends it again; that is no news. Its recovery says since when."""
    async with running() as desk:
        since = desk.clock.now()
        for _ in range(10):
            desk.turn("suspended")
            await trio.sleep(60)
        # Recovered is told whoever brings it to light.
        desk.callbacks.tell(events.destination_turned(make_delivery(), "suspended", 0))
        desk.turn("recovered")
        desk.turn("recovered")
        await trio.sleep(60)
        assert [one[::2] for one in await desk.told()] == [
            ("destination.suspended", 1),
            ("destination.suspended", 1),
            ("destination.recovered", 1),
        ]
        payload = json.loads((await desk.batches())[-1].payload or b"")
        assert payload["data"] == {
            "destination": "https://a:443",
            "suspended_at": events.spelt(since),
        }


async def test_only_what_is_asked_for(autojump_clock: MockClock) -> None:
    async with running(kinds=["destination.recovered"]) as desk:
        desk.fail()
        desk.turn("suspended")
        desk.turn("recovered")
        await trio.sleep(100)
        assert [kind for kind, *_ in await desk.told()] == ["destination.recovered"]


async def test_switched_off(autojump_clock: MockClock) -> None:
    """Without a URL nothing is kept, and nothing runs."""
    async with open_desk(url="") as desk:
        desk.fail(count=10)
        with trio.fail_after(1):
            await desk.callbacks.run()
            await desk.callbacks.flush()
        assert await desk.batches() == []


async def test_an_outage_delays_events_and_loses_none(autojump_clock: MockClock) -> None:
    """What happens meanwhile is counted; that storage was away is told once it is back."""
    async with running() as desk:
        desk.storage.fail_with = BROKEN
        with capture_logs() as logs:
            desk.fail()
            for _ in range(300):
                await trio.sleep(1)
                desk.fail()
        assert {entry["event"] for entry in logs} == {"events_delayed"}
        assert {entry["events"] for entry in logs} == {1}, "they piled up"
        desk.storage.fail_with = None
        desk.callbacks.tell(events.storage_recovered(0, desk.clock.now(), "disk full"))
        await trio.sleep(2)
        assert await desk.told() == [
            ("delivery.failed", "https://a:443", 1),
            ("delivery.failed", "https://a:443", 300),
            ("storage.recovered", None, 1),
        ]
        assert sum(map(len, desk.made)) == 3


class Doubtful:
    """A storage whose next commit happens and is reported as failed."""

    def __init__(self, storage: MemoryStorage) -> None:
        self._storage = storage
        self.doubts = 1
        self.read = storage.read

    async def write(self, function: Any, on_commit: Any = None) -> Any:
        if self.doubts:
            self.doubts -= 1
            await self._storage.write(function)
            raise BROKEN
        return await self._storage.write(function, on_commit)


async def test_a_commit_in_doubt_makes_no_second_callback(autojump_clock: MockClock) -> None:
    async with open_desk() as desk, trio.open_nursery() as nursery:
        doubtful: Any = Doubtful(desk.storage)
        config = from_mapping({"events": {"url": URL}})
        desk.callbacks = EventCallbacks(
            doubtful, desk.clock, config, lambda: "node-1", desk.made.append
        )
        nursery.start_soon(desk.callbacks.run)
        desk.fail()
        await trio.sleep(10)
        assert doubtful.doubts == 0
        assert len(await desk.told()) == len(await desk.deliveries()) == 1
        nursery.cancel_scope.cancel()


async def test_a_drain_stores_what_was_only_counted(autojump_clock: MockClock) -> None:
    """Section 8: nothing is left for the time after the end; a write under way is not doubled."""
    async with open_desk() as desk:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.callbacks.run)
            await wait_all_tasks_blocked()
            desk.fail(count=1)
            await wait_all_tasks_blocked()
            desk.fail(count=5)
            desk.storage.hold()
            desk.fail("b")
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        desk.storage.resume()
        desk.fail("c")
        await desk.callbacks.flush()
        assert await desk.told() == [
            ("delivery.failed", "https://a:443", 1),
            ("delivery.failed", "https://b:443", 1),
            ("delivery.failed", "https://a:443", 5),
            ("delivery.failed", "https://c:443", 1),
        ]


async def test_a_drain_right_after_an_outage_stores_all(autojump_clock: MockClock) -> None:
    """What was being tried again goes first, then what was counted since."""
    async with open_desk() as desk:
        desk.storage.fail_with = BROKEN
        desk.fail()
        with trio.move_on_after(10):
            await desk.callbacks.run()
        desk.storage.fail_with = None
        desk.fail(count=2)
        await desk.callbacks.flush()
        assert await desk.told() == [
            ("delivery.failed", "https://a:443", 1),
            ("delivery.failed", "https://a:443", 2),
        ]


async def test_a_drain_without_storage_says_what_is_lost(autojump_clock: MockClock) -> None:
    async with open_desk() as desk:
        desk.fail(count=3)
        desk.storage.fail_with = BROKEN
        with capture_logs() as logs:
            await desk.callbacks.flush()
        (entry,) = logs
        assert (entry["event"], entry["error"]) == ("events_lost", "disk full")


@pytest.mark.parametrize(
    ("disabled_at", "told"), [(None, []), (1, ["secret.disabled_in_use"])], ids=["new", "disabled"]
)
async def test_a_secret_that_is_only_unknown_here_is_not_disabled(
    disabled_at: int | None, told: list[str], autojump_clock: MockClock
) -> None:
    """6.3: another node made it within the second for which this one goes by what it has read."""
    async with running() as desk:
        secret = make_secret(is_current=False, disabled_at=disabled_at)
        await desk.storage.write(lambda tx: tx.put_secret(secret))
        delivery = make_delivery(org_id=secret.org_id, signing_secret_id=secret.id)
        desk.callbacks.tell(events.secret_disabled_in_use(delivery, None))
        await trio.sleep(100)
        assert [kind for kind, *_ in await desk.told()] == told


@pytest.mark.parametrize("signed", [False, True])
async def test_a_missing_secret_is_pointed_out(signed: bool, autojump_clock: MockClock) -> None:
    """6.3: without one they go unsigned, which nobody wants for long."""
    async with open_desk() as desk, trio.open_nursery() as nursery:
        if signed:
            secret = make_secret(org_id=OPS, is_current=True, disabled_at=None)
            await desk.storage.write(lambda tx: tx.put_secret(secret))
        with capture_logs() as logs:
            nursery.start_soon(desk.callbacks.run)
            await wait_all_tasks_blocked()
        assert [entry["event"] for entry in logs] == ([] if signed else ["events_unsigned"])
        nursery.cancel_scope.cancel()


async def test_over_sqlite(tmp_path: Path) -> None:
    """4.8: many at once in one transaction; each is redelivered like any batch's callback."""
    config = msgspec.structs.replace(
        from_mapping({"events": {"url": URL}}), state_directory=str(tmp_path)
    )
    async with open_node(f"sqlite:///{tmp_path / 'p.db'}", config=config) as node:
        callbacks = EventCallbacks(
            node.storage, node.clock, config, lambda: "node-1", lambda _: None
        )
        for number in range(50):
            delivery = make_delivery(destination=f"https://{number}:443")
            callbacks.tell(events.delivery_failed(delivery))
        callbacks.tell(Event("storage.recovered", SECOND, None, None, {}))
        await callbacks.flush()
        made = await node.deliveries(org_id=OPS)
        assert len(made) == 51
        assert {delivery.status for delivery in made} == {"pending"}
        payload = await node.batch(made[0].batch_id, OPS)
        assert json.loads(payload.payload or b"")["event_id"] == made[0].batch_id
