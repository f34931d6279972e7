"""A node that sends nothing: a storage, an intake, and a schedule that keeps a record."""

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec

from primeflowd.builtin import memory, sqlite
from primeflowd.clock import Clock
from primeflowd.config import Config
from primeflowd.hookspecs import DeliveryFilter, Page, Storage, Tx
from primeflowd.instants import SECOND, Micros
from primeflowd.intake import Intake
from primeflowd.lifecycle import NewBatch, create_batch
from primeflowd.model import Batch, Delivery, FailureReason
from primeflowd.unit import Unit

T = TypeVar("T")

ACME = "acme"
GLOBEX = "globex"
NODE = "node-1"
URL = "https://example.com/hook"
START: Micros = 1_780_000_000 * SECOND


class HandClock:
    """A clock that a test sets; any thread may read it."""

    def __init__(self, instant: Micros = START) -> None:
        self.instant = instant

    def now(self) -> Micros:
        return self.instant


class Record:
    """A schedule that only remembers what it was told, and has room while `room` says so; it is cut
    off from storage where `cut_off` does."""

    node_id = NODE

    def __init__(self) -> None:
        self.room = True
        self.cut_off = False
        self.admitted: list[tuple[Delivery, bytes | None]] = []
        self.dropped: list[str] = []
        self.hastened: list[Delivery] = []

    def in_touch(self) -> bool:
        return not self.cut_off

    def node_for(self, destination: str) -> str | None:
        return NODE if self.room else None

    def admit(self, made: Iterable[tuple[Delivery, bytes | None]]) -> None:
        self.admitted += [one for one in made if one[0].claimed_by is not None]

    def drop(self, delivery_id: str) -> None:
        self.dropped.append(delivery_id)

    def hasten(self, delivery: Delivery) -> None:
        self.hastened.append(delivery)


class Node:
    """Operations as the API performs them, and what a test wants to know afterwards."""

    def __init__(self, storage: Storage, clock: Clock, config: Config) -> None:
        self.storage = storage
        self.clock = clock
        self.config = config
        self.schedule = Record()
        self.intake = Intake(storage, self.schedule, clock, config)

    async def perform(self, operation: Callable[..., T], *arguments: Any) -> T:
        """`operation(unit, *arguments)` in a transaction."""
        return await self.intake.perform(lambda unit: operation(unit, *arguments))

    async def read(self, function: Callable[[Tx], T]) -> T:
        return await self.storage.read(function)

    async def batch(self, batch_id: str, org_id: str = ACME) -> Batch:
        batch = await self.read(lambda tx: tx.batch(org_id, batch_id))
        assert batch is not None
        return batch

    async def delivery(self, delivery_id: str) -> Delivery:
        delivery = await self.read(lambda tx: tx.delivery(None, delivery_id))
        assert delivery is not None
        return delivery

    async def deliveries(self, batch_id: str | None = None, org_id: str = ACME) -> list[Delivery]:
        """Oldest first."""
        where = DeliveryFilter(batch_id=batch_id)
        return (await self.read(lambda tx: tx.deliveries(org_id, where, Page(1000))))[::-1]

    async def payload(self, batch_id: str) -> bytes | None:
        return (await self.batch(batch_id)).payload

    async def ended(self, org_id: str = ACME, url: str | None = URL, plan_id: str = "") -> Batch:
        """A batch that was born ended."""
        new = NewBatch(callback_url=url, status="succeeded", plan_id=plan_id)
        return await self.perform(create_batch, org_id, new)

    async def settle(
        self,
        delivery_id: str,
        reason: FailureReason | None = "timeout",
        at: Micros | None = None,
    ) -> None:
        """End a delivery as a sender does: failed, or succeeded where `reason` is None."""
        before = await self.delivery(delivery_id)

        def end(unit: Unit) -> None:
            now = unit.now if at is None else at
            after = msgspec.structs.replace(
                before,
                status="failed" if reason else "succeeded",
                failure_reason=reason,
                due_at=None,
                claimed_by=None,
                updated_at=now,
                completed_at=now,
            )
            unit.tx.update_delivery(after)

        await self.perform(end)


@asynccontextmanager
async def open_node(
    url: str = "memory://", clock: Clock | None = None, config: Config | None = None
) -> AsyncIterator[Node]:
    """A node on the built-in storage that `url` names."""
    config = config or Config()
    config = msgspec.structs.replace(
        config, storage=msgspec.structs.replace(config.storage, url=url)
    )
    opening = memory.open_storage(config, NODE) or sqlite.open_storage(config, NODE)
    assert opening is not None
    async with opening as storage:
        yield Node(storage, clock or HandClock(), config)
