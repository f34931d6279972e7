from collections.abc import AsyncIterator

import pytest
import trio.testing

from tests.api.harness import Api, open_api
from tests.api.steps import Steps


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    """The API with default settings."""
    async with open_api() as api:
        yield api


@pytest.fixture
def clock(autojump_clock: trio.testing.MockClock) -> trio.testing.MockClock:
    """A clock that jumps when nothing has moved for longer than loopback takes."""
    autojump_clock.autojump_threshold = 0.02
    return autojump_clock


@pytest.fixture
async def steps() -> AsyncIterator[Steps]:
    """Those of the front door's connections."""
    steps = Steps()
    trio.lowlevel.add_instrument(steps)
    yield steps
    trio.lowlevel.remove_instrument(steps)
