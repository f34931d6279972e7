"""A Line at work, for tests of what is held and when it starts."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from primeflowd.destination import Held
from tests.sending import Line, open_line


@asynccontextmanager
async def running(**changes: Any) -> AsyncIterator[Line]:
    """All of it; `changes` are settings of `[delivery]`."""
    async with open_line(**changes) as line, trio.open_nursery() as nursery:
        line.start(nursery)
        yield line
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def scheduling(**changes: Any) -> AsyncIterator[Line]:
    """Without senders: what is due stays in the queues."""
    async with open_line(**changes) as line, trio.open_nursery() as nursery:
        nursery.start_soon(line.scheduler.run)
        yield line
        nursery.cancel_scope.cancel()


async def taken(line: Line) -> Held:
    """The next delivery, as a sender takes it."""
    held = await line.destinations.take()
    assert held is not None
    return held
