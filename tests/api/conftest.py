from collections.abc import AsyncIterator

import pytest

from tests.api.harness import Api, open_api


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    """The API with default settings."""
    async with open_api() as api:
        yield api
