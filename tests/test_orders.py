"""Orders about deliveries that another node holds."""

import trio
from trio.testing import MockClock

from primeflowd.builtin.memory import MemoryStorage
from primeflowd.clock import SystemClock
from primeflowd.config import DeliverySettings
from primeflowd.instants import SECOND
from primeflowd.redelivery import attempt_now, cancel_delivery
from primeflowd.testing.factories import ORG
from tests.sending import NODE, Line, open_line


async def test_an_order_from_another_node_is_obeyed(autojump_clock: MockClock) -> None:
    """5.4: cancelled, or due at once, whichever node was asked."""
    async with open_line() as line, trio.open_nursery() as nursery:
        line.start(nursery)
        cancelled, hastened, left = await line.add(count=3, due_in=25)
        await trio.sleep(6)
        assert line.holdings.waiting() == 3
        here = line.holdings
        line.another("node-2")  # shares nothing with the first but storage
        await line.intake.perform(lambda unit: cancel_delivery(unit, ORG, cancelled))
        await line.intake.perform(lambda unit: attempt_now(unit, ORG, hastened))
        await trio.sleep(1.1)
        assert [one for one in (cancelled, hastened, left) if here.holds(one)] == [left]
        assert (await line.delivery(hastened)).status == "succeeded"
        assert len(line.wire.sent) == 1
        await trio.sleep(30)
        assert len(line.wire.sent) == 2
        assert await line.claims() == {}
        assert not await line.storage.read(lambda tx: tx.has_orders(NODE))
        nursery.cancel_scope.cancel()


class Shared(MemoryStorage):
    """Tells the nodes that use it when another may have left something for them."""

    def __init__(self) -> None:
        super().__init__(SystemClock())
        self.told = trio.Event()

    async def wait_for_others(self) -> None:
        await self.told.wait()
        self.told = trio.Event()


async def test_an_order_is_obeyed_at_once_where_nodes_tell_each_other(
    autojump_clock: MockClock,
) -> None:
    storage = Shared()
    line = Line(storage, DeliverySettings())
    async with trio.open_nursery() as nursery:
        line.start(nursery)
        (hastened,) = await line.add(due_in=25)
        await trio.sleep(6.3)
        line.another("node-2")
        await line.intake.perform(lambda unit: attempt_now(unit, ORG, hastened))
        storage.told.set()
        await trio.sleep(0.05)
        assert (await line.delivery(hastened)).status == "succeeded"
        nursery.cancel_scope.cancel()


async def test_no_order_is_given_for_what_nobody_else_holds(autojump_clock: MockClock) -> None:
    async with open_line() as line:
        unclaimed, own = await line.add(count=2, due_in=25)
        await line.storage.write(lambda tx: tx.claim(NODE, line.now() + 30 * SECOND, 1, 1, {}))
        await line.intake.perform(lambda unit: cancel_delivery(unit, ORG, unclaimed))
        await line.intake.perform(lambda unit: cancel_delivery(unit, ORG, own))
        assert not await line.storage.read(lambda tx: tx.has_orders(NODE))
