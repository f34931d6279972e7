"""A token bucket per key (contract 2.11)."""

from collections.abc import AsyncIterator

import msgspec
import pytest
import trio.testing

from primeflowd.api.errors import Rejected
from primeflowd.api.rate_limit import RateLimiter
from primeflowd.config import Api as ApiSettings
from primeflowd.config import Config
from tests.api.harness import Api, open_api, problem
from tests.node import START, HandClock


@pytest.fixture
async def limited() -> AsyncIterator[Api]:
    """An API that takes 2 requests a second, 4 at once."""
    settings = ApiSettings(rate_limit=2, rate_burst=4)
    async with open_api(msgspec.structs.replace(Config(), api=settings)) as api:
        yield api


async def test_off_by_default(api: Api) -> None:
    """2.11: no headers then."""
    response = await api.get("/v1/batches")
    assert not [name for name in response.headers if name.startswith("x-ratelimit")]


async def test_the_burst_then_429_then_the_rate(
    limited: Api, autojump_clock: trio.testing.MockClock
) -> None:
    """2.11: 429 with Retry-After when spent; after that long it goes on."""
    for left in (3, 2, 1, 0):
        response = await limited.get("/v1/batches")
        assert response.status_code == 200
        assert response.headers["x-ratelimit-limit"] == "4"
        assert response.headers["x-ratelimit-remaining"] == str(left)
    refused = await limited.get("/v1/batches")
    assert problem(refused) == (429, "rate_limited", "rate_limited")
    assert refused.headers["retry-after"] == "1"
    assert refused.headers["x-ratelimit-remaining"] == "0"
    assert refused.headers["x-ratelimit-reset"] == str(START // 1_000_000 + 2)
    await trio.sleep(0.5)
    assert (await limited.get("/v1/batches")).status_code == 200
    assert (await limited.get("/v1/batches")).status_code == 429
    await trio.sleep(60)
    assert (await limited.get("/v1/batches")).headers["x-ratelimit-remaining"] == "3"


async def test_every_answer_to_the_key_carries_the_headers(
    limited: Api, autojump_clock: trio.testing.MockClock
) -> None:
    """2.11: refusals too."""
    for response in (
        await limited.get("/v1/batches/x"),
        await limited.post("/v1/batches", content=b"{"),
        await limited.get("/v1/batches", key=limited.key, headers={"X-Org-Id": "globex"}),
    ):
        assert response.status_code >= 400
        assert response.headers["x-ratelimit-limit"] == "4"


async def test_keys_do_not_share_a_bucket(
    limited: Api, autojump_clock: trio.testing.MockClock
) -> None:
    """2.11: per key; what carries none is not counted."""
    _, other = await limited.make_key()
    for _ in range(5):
        response = await limited.get("/v1/batches")
    assert response.status_code == 429
    assert (await limited.get("/v1/batches", key=other)).status_code == 200
    assert (await limited.get("/healthz", key="")).status_code == 200


async def test_memory_is_bounded(autojump_clock: trio.testing.MockClock) -> None:
    """The bucket used least lately is forgotten, and starts full when it comes back."""
    limiter = RateLimiter(ApiSettings(rate_limit=0.001, rate_burst=1), HandClock(), buckets=2)
    for key in ("a", "b", "c"):
        limiter.take(key)
    with pytest.raises(Rejected):
        limiter.take("b")
    with pytest.raises(Rejected):
        limiter.take("c")
    limiter.take("a")
