"""Damaged requests in damaged segments, over real sockets.

Whatever comes, the front door neither fails nor hangs: it answers in whole responses or closes.
And it never acts on more requests than a strict reader finds in the same bytes, which is what
keeps a proxy in front of it and the front door of one mind (strict_reader.py). The reader alone
gets far more of this in test_http_request.py.
"""

import random
from functools import partial

import pytest
import structlog.testing
import trio

from primeflowd.api import front_door
from primeflowd.hookspecs import BatchFilter, Page, Tx
from primeflowd.model import Batch
from tests.api import strict_reader
from tests.api.harness import Api
from tests.api.test_http_request import TOKENS
from tests.api.wire import Address, converse, replies, serving
from tests.node import ACME

STREAMS = 1000
AT_ONCE = 20


def pool(key: bytes) -> list[bytes]:
    """Sound requests, most of which make a batch."""
    head = b"Host: x\r\nX-Reevit-Key: " + key + b"\r\nContent-Type: application/json\r\n"
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n"
    hidden = b"POST /v1/batches HTTP/1.1\r\n" + head + b"Content-Length: 2\r\n\r\n{}"
    nested = b'{"metadata":"%b"}' % hidden.replace(b"\r\n", b"\\r\\n")
    return [
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /healthz HTTP/1.0\r\n\r\n",
        hidden,
        b"POST /v1/batches?q HTTP/1.1\r\n" + head + b"Content-Length: 2\r\n\r\n{}",
        b"POST /v1/batches HTTP/1.1\r\n" + chunked + b"2\r\n{}\r\n0\r\n\r\n",
        b"POST /v1/batches?q HTTP/1.1\r\n" + chunked + b"1;a\r\n{\r\n1\r\n}\r\n0\r\nA: b\r\n\r\n",
        b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(hidden) + hidden,
        b"POST /v1/batches HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n%b"
        % (head, len(nested), nested),
        b"POST /v1/batches HTTP/1.1\r\n%bUpgrade: h2c\r\nConnection: upgrade\r\n"
        b"Content-Length: 2\r\n\r\n{}" % head,
    ]


def damaged(dice: random.Random, sound: list[bytes]) -> bytes:
    stream = b"".join(dice.choices(sound, k=dice.randint(1, 4)))
    for _ in range(dice.randint(0, 4)):
        start = dice.randint(0, len(stream))
        end = min(len(stream), start + dice.choice([0, 0, 0, 1, 2, 8, 40]))
        new = dice.choice([b"", *TOKENS, bytes([dice.randrange(256)]), stream[end : end + 9]])
        stream = stream[:start] + new + stream[end:]
    return stream


def in_pieces(dice: random.Random, stream: bytes) -> list[bytes]:
    places = sorted(dice.randint(0, len(stream)) for _ in range(dice.choice([0, 0, 1, 2, 6])))
    return [stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True) if b > a]


@pytest.mark.parametrize("seed", range(3))
async def test_damaged_requests(api: Api, seed: int) -> None:
    """2.5: as many answers and as many batches as there are requests, at most."""
    dice = random.Random(seed)
    sound = pool(api.key.encode())
    streams = [damaged(dice, sound) for _ in range(STREAMS)]
    pieces = [in_pieces(dice, stream) for stream in streams]
    with structlog.testing.capture_logs() as logged:
        async with serving(front_door.serve, api, within=60) as (address, _):
            limiter = trio.CapacityLimiter(AT_ONCE)
            async with trio.open_nursery() as nursery:
                for stream, parts in zip(streams, pieces, strict=True):
                    nursery.start_soon(_check, address, stream, parts, limiter)
            [alive] = replies(await converse(address, sound[1]))
    assert alive.status == 200
    posts = sum(
        request.method == b"POST" and b"/v1/batches" in request.target
        for stream in streams
        for request in strict_reader.requests(stream)
    )
    assert 300 < await _batches(api) <= posts
    assert {entry["event"] for entry in logged} <= {"answered", "malformed_request"}


async def _check(
    address: Address, stream: bytes, parts: list[bytes], limiter: trio.CapacityLimiter
) -> None:
    async with limiter:
        received = await converse(address, *parts, half_close=True)
    found = [reply.status for reply in replies(received)]
    seen = len(strict_reader.requests(stream))
    # One more for what is no request; it is the last, since nothing behind it can be understood.
    assert len(found) <= seen + 1, (stream, found)
    assert not set(found[seen:]) & {200, 201}, (stream, found)


async def _batches(api: Api) -> int:
    count = 0
    page = Page(500)
    while found := await api.node.storage.read(partial(_page, page)):
        count += len(found)
        page = Page(500, (found[-1].created_at, found[-1].id))
    return count


def _page(page: Page, tx: Tx) -> list[Batch]:
    return tx.batches(ACME, BatchFilter(), page)
