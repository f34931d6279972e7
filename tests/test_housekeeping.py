"""The chores: a failed storage is probed, last uses are written down."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from primeflowd.builtin.memory import MemoryStorage, open_memory
from primeflowd.builtin.signers import StandardWebhooks
from primeflowd.clock import TrioClock
from primeflowd.config import DefaultPolicy
from primeflowd.errors import StorageUnavailable
from primeflowd.events import Event, spelt
from primeflowd.hookspecs import Tx
from primeflowd.housekeeping import Housekeeping
from primeflowd.instants import SECOND, rfc3339
from primeflowd.keyring import Keyring
from primeflowd.model import SigningSecret
from primeflowd.signing import Signatures
from primeflowd.signing_secrets import create_secret
from primeflowd.testing.factories import ORG, make_delivery
from primeflowd.unit import Unit

KEYRING = Keyring(bytes(32))
BROKEN = StorageUnavailable("disk full")


class House:
    """A storage and its housekeeping."""

    def __init__(self, storage: MemoryStorage) -> None:
        self.storage = storage
        self.clock = TrioClock()
        self.signatures = Signatures(storage, KEYRING, [StandardWebhooks()], self.clock)
        self.events: list[Event] = []
        self.housekeeping = Housekeeping(storage, self.signatures, self.clock, self.events.append)

    async def break_down(self) -> None:
        """Storage fails, and a write has met it."""
        self.storage.fail_with = BROKEN
        with pytest.raises(StorageUnavailable):
            await self.storage.write(lambda tx: tx.put_note("x", "y"))
        assert not self.storage.statistics().healthy


@asynccontextmanager
async def running() -> AsyncIterator[House]:
    """A house whose chores are being done."""
    async with open_memory() as storage, trio.open_nursery() as nursery:
        house = House(storage)
        nursery.start_soon(house.housekeeping.run)
        yield house
        nursery.cancel_scope.cancel()


# The probe


async def test_a_healthy_storage_is_not_probed(autojump_clock: MockClock) -> None:
    """Section 8: an idle daemon writes nothing."""
    async with running() as house:
        await trio.sleep(500)
        assert house.storage.statistics().commits == 0
        assert await house.storage.read(lambda tx: tx.note("last_probe")) is None


async def test_a_storage_that_is_back_is_noticed(autojump_clock: MockClock) -> None:
    """Section 8: /readyz turns green again although nobody writes, because the probe does."""
    async with running() as house:
        await house.break_down()
        with capture_logs() as logs:
            await trio.sleep(3.5)
            assert not house.storage.statistics().healthy
            assert [entry["event"] for entry in logs] == ["storage_unavailable"] * 3
            house.storage.fail_with = None
            await trio.sleep(1)
            assert house.storage.statistics().healthy
            assert [entry["event"] for entry in logs[3:]] == ["storage_recovered"]
            (event,) = house.events
            # Noticed at the first look, a second in; seen through at the fourth.
            assert event.data == {
                "since": spelt(house.clock.now() - round(3.5 * SECOND)),
                "lasted_ms": 3000,
                "cause": "disk full",
            }
            assert logs[3]["lasted_ms"] == 3000
            commits = house.storage.statistics().commits
            await trio.sleep(30)
            assert len(logs) == 4
        assert commits == house.storage.statistics().commits == 1
        written = await house.storage.read(lambda tx: tx.note("last_probe"))
        assert written == rfc3339(house.clock.now() - round(30.5 * SECOND))


async def test_a_storage_that_somebody_else_found_well_is_told_of(
    autojump_clock: MockClock,
) -> None:
    """Between two looks it failed, and a lease was renewed: the log says that it is over."""
    async with running() as house:
        await trio.sleep(5.2)
        with capture_logs() as logs:
            await house.break_down()
            house.storage.fail_with = None
            await house.storage.write(lambda tx: tx.put_note("x", "y"))
            assert house.storage.statistics().healthy
            await trio.sleep(30)
        assert [entry["event"] for entry in logs] == ["storage_recovered"]
        assert [(event.data["lasted_ms"], event.data["cause"]) for event in house.events] == [
            (0, "disk full")
        ]
        assert await house.storage.read(lambda tx: tx.note("last_probe")) is None


# Last use


async def test_last_uses_are_written_down(autojump_clock: MockClock) -> None:
    """6.1: `last_used_at`, within a minute; also after a failure."""
    async with running() as house:

        def create(tx: Tx) -> SigningSecret:
            unit = Unit(tx, house.clock.now(), DefaultPolicy(), lambda destination: None)
            return create_secret(unit, KEYRING, ORG, None)[0]

        secret = await house.storage.write(create)
        assert secret.last_used_at is None
        used_at = house.clock.now()
        await house.signatures.sign(make_delivery(org_id=ORG), "attempt", b"{}")
        house.storage.fail_with = BROKEN
        await trio.sleep(61)
        house.storage.fail_with = None
        assert await house.storage.read(lambda tx: tx.secret(ORG, secret.id)) == secret
        await trio.sleep(60)
        expected = msgspec.structs.replace(secret, last_used_at=used_at)
        assert await house.storage.read(lambda tx: tx.secret(ORG, secret.id)) == expected
