"""Talking to the API over raw sockets, whichever server is behind them."""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, NamedTuple, Protocol

import trio

from primeflowd.api import front_door, server
from primeflowd.api.app import App
from tests.api.harness import Api

Address = tuple[str, int]


class Serve(Protocol):
    """How every server is started: see front_door.serve."""

    async def __call__(
        self,
        app: App,
        bind: Address,
        shutdown: trio.Event,
        *,
        idle_timeout: float = 60.0,
        reuse_port: bool = False,
        task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
    ) -> None: ...


SERVERS: dict[str, Serve] = {"hypercorn": server.serve, "lean": front_door.serve}


class Reply(NamedTuple):
    """One response: header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


@asynccontextmanager
async def serving(
    serve: Serve, api: Api, *, within: float = 30.0, **options: Any
) -> AsyncIterator[tuple[Address, trio.Event]]:
    """Where the API is served, and the event that ends it."""
    shutdown = trio.Event()
    async with trio.open_nursery() as nursery:
        starting = partial(serve, **options)
        [url] = await nursery.start(starting, api.app, ("127.0.0.1", 0), shutdown)
        host, port = url.removeprefix("http://").split(":")
        with trio.fail_after(within):
            yield (host, int(port)), shutdown
        shutdown.set()


async def converse(address: Address, *pieces: bytes, half_close: bool = False) -> bytes:
    """Send the pieces, each in a segment of its own, and read until the server closes.

    A server that has answered and closed does not want the rest: then sending stops.
    """
    stream = await trio.open_tcp_stream(*address)
    async with stream:
        try:
            for piece in pieces:
                await stream.send_all(piece)
                if len(pieces) > 1:
                    await trio.sleep(0.001)
            if half_close:
                await stream.send_eof()
        except trio.BrokenResourceError:
            pass
        return await rest_of(stream)


async def rest_of(stream: trio.SocketStream) -> bytes:
    """All that comes until the server closes or resets the connection."""
    received = b""
    try:
        async for part in stream:
            received += part
    except trio.BrokenResourceError:
        pass
    return received


def replies(received: bytes, methods: Sequence[bytes] = ()) -> list[Reply]:
    """The responses in a stream of bytes, in the strictest reading; 1xx are left out.

    Args:
        methods: of the requests in turn; those beyond are not HEAD.

    Raises:
        AssertionError: that is no sequence of whole responses.
    """
    found: list[Reply] = []
    while received:
        head, separator, received = received.partition(b"\r\n\r\n")
        assert separator, f"a head without end: {head[:200]!r}"
        first, *lines = head.decode("ascii").split("\r\n")
        version, status, _ = first.split(" ", 2)
        assert version == "HTTP/1.1"
        headers: dict[str, str] = {}
        for name, value in _fields(lines):
            assert name not in headers, f"{name} twice"
            headers[name] = value
        if status.startswith("1"):
            continue
        head_only = len(found) < len(methods) and methods[len(found)] == b"HEAD"
        body = b""
        if not head_only and status != "204":
            length = int(headers["content-length"])
            assert len(received) >= length, "a body cut short"
            body, received = received[:length], received[length:]
        found.append(Reply(int(status), headers, body))
    return found


def _fields(lines: list[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        name, separator, value = line.partition(": ")
        assert separator, line
        assert name.isprintable(), line
        yield name.lower(), value
