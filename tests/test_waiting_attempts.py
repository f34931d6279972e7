"""waiting_attempts.py: what becomes of attempts that wait, whatever it is they wait for."""

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from primeflowd.builtin.memory import MemoryStorage
from primeflowd.clock import SystemClock
from primeflowd.config import DeliverySettings
from primeflowd.errors import StorageUnavailable
from primeflowd.model import Delivery
from tests.network import pairs
from tests.sending import NODE, Answer, Line, open_line

# Everything here holds for attempts in tasks and for those without one.
pytestmark = pytest.mark.usefixtures("keeps")


async def test_no_attempt_while_storage_cannot_be_read(autojump_clock: MockClock) -> None:
    """Nothing was sent, so it is no attempt; it is made once storage is back."""
    async with open_line() as line, trio.open_nursery() as nursery:
        (delivery_id,) = await line.add(claimed_by=NODE)
        line.holdings.admit([(await line.delivery(delivery_id), None)])
        line.storage.fail_with = StorageUnavailable("the disk is gone")
        line.start(nursery)
        await trio.sleep(60)
        assert line.wire.sent == []
        assert line.senders.busy == 0
        line.storage.fail_with = None
        await trio.sleep(2)
        assert len(line.wire.sent) == 1
        assert (await line.delivery(delivery_id)).attempt_count == 1
        nursery.cancel_scope.cancel()


class _Stepping(MemoryStorage):
    """Runs `at(n)` before the storage call number `n`, which then waits a little."""

    def __init__(self) -> None:
        super().__init__(SystemClock())
        self.calls = 0
        self.at: dict[int, trio.CancelScope] = {}

    async def step(self) -> None:
        self.calls += 1
        if self.calls in self.at:
            self.at[self.calls].cancel()

    async def write(self, function: Any, on_commit: Any = None) -> Any:
        await self.step()
        return await super().write(function, on_commit)

    async def read(self, function: Any) -> Any:
        await self.step()
        return await super().read(function)


# What a sender awaits: reading the body (1), reading the secrets (2), sending, recording (3).
@pytest.mark.parametrize("moment", [1, 2, "send", 3])
@pytest.mark.parametrize("status", [200, 500])
async def test_cancelled_at_every_await(
    moment: int | str, status: int, autojump_clock: MockClock
) -> None:
    """5.6: afterwards the attempt is on record once, or is made again under its number."""
    storage = _Stepping()
    line = Line(storage, DeliverySettings())
    await line.secret()
    (delivery_id,) = await line.add(claimed_by=NODE, delays=("1s",), max_retries=1)
    line.holdings.admit([(await line.delivery(delivery_id), None)])
    storage.calls = 0

    def answer(_: object) -> Answer:
        if moment == "send":
            scope.cancel()
        return Answer(status)

    line.wire.answers["a"] = answer
    with trio.CancelScope() as scope:
        if isinstance(moment, int):
            storage.at = {moment: scope}
        await line.senders.run()
    assert scope.cancelled_caught
    assert line.senders.busy == 0
    sent = len(line.wire.sent)
    recorded = await line.attempts(delivery_id)
    assert len(recorded) == sent
    assert sent == (0 if moment in (1, 2) else 1)

    line.another("node-2")
    storage.at = {}
    await line.storage.write(lambda tx: tx.release_lost())
    line.wire.answers["a"] = Answer(200)
    async with trio.open_nursery() as nursery:
        line.start(nursery)
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    delivery = await line.delivery(delivery_id)
    attempts = await line.attempts(delivery_id)
    assert delivery.status == "succeeded"
    numbers = [
        int(dict(pairs(request.lines))["Primeflow-Attempt"]) for _, request in line.wire.sent
    ]
    assert [one.attempt_number for one in attempts] == numbers
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) == (1 if moment in (1, 2) or (moment, status) == (3, 200) else 2)
    assert delivery.interruptions == (moment == "send")


async def test_the_lease_is_looked_at_last(autojump_clock: MockClock) -> None:
    """What was put together may have to wait for the others of its group, or a connection."""
    async with open_line() as line:

        def lapse(_: Delivery, __: str) -> tuple[tuple[str, str], ...]:
            line.lease.lapsed = line.wire.sent != []
            return ()

        line.trace_headers = lapse
        line.another("node-2")
        async with trio.open_nursery() as nursery:
            line.start(nursery)
            for _ in range(2):
                (one,) = await line.submit()
                await trio.sleep(0.1)
            assert len(line.wire.sent) == 1
            line.lease.lapsed = False
            line.trace_headers = None
            await trio.sleep(0.5)
            assert (await line.attempts(one), line.senders.busy) == ([], 0)
            nursery.cancel_scope.cancel()


async def test_over_a_dead_connection_it_is_the_same_attempt(
    keeps: bool, autojump_clock: MockClock
) -> None:
    """5.5: it goes on in a task, counted once, at its place in the pool."""
    async with open_line(concurrency=4) as line, trio.open_nursery() as nursery:
        line.start(nursery)
        await line.submit()
        await trio.sleep(0.1)
        line.wire.dead = 3
        ids = await line.submit(count=10)
        await trio.sleep(0.5)
        assert line.wire.dead == (0 if keeps else 3)
        for delivery_id in ids:
            (attempt,) = await line.attempts(delivery_id)
            assert (attempt.attempt_number, attempt.status_code) == (1, 200)
            assert (await line.delivery(delivery_id)).status == "succeeded"
        assert len(line.wire.sent) == 11
        assert line.senders.busy == 0
        nursery.cancel_scope.cancel()
