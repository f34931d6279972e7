"""Connections of the front door over a pair of sockets of which the test has both ends."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, cast

import trio
from trio.testing import wait_all_tasks_blocked

from primeflowd.api.client_connection import ClientConnection
from primeflowd.api.house import House
from primeflowd.builtin.memory import MemoryStorage
from primeflowd.ready_set import ReadySet
from tests.api.harness import Api
from tests.api.test_front_door import PERIOD, answer_from, post
from tests.api.wire import Reply, replies

BULK = b"/v1/batches/bulk"
ENDED = b'{"status":"succeeded","callback_url":"https://example.com/hook"}'


def storage(api: Api) -> MemoryStorage:
    assert isinstance(api.node.storage, MemoryStorage)
    return api.node.storage


def sized(body: bytes) -> bytes:
    return b"Content-Length: %d" % len(body)


async def introduce(api: Api, stream: trio.SocketStream) -> None:
    await stream.send_all(post(api, body=b"null"))
    assert (await answer_from(stream)).startswith(b"HTTP/1.1 400")
    await wait_all_tasks_blocked(0.001)


async def ask(stream: trio.SocketStream, sent: bytes) -> Reply:
    await stream.send_all(sent)
    [reply] = replies(await answer_from(stream))
    return reply


class Line(NamedTuple):
    """A connection without a door, of which we have both ends."""

    house: House
    connection: ClientConnection
    ours: socket.socket
    stream: trio.SocketStream
    serving: trio.CancelScope

    async def see_to(self) -> None:
        """What the front door does."""
        while True:
            await trio.sleep(PERIOD)
            for connection in list(self.house.connections):
                connection.watch(trio.current_time())


@asynccontextmanager
async def open_line(api: Api) -> AsyncIterator[Line]:
    """A key is known, and the task sleeps."""
    ready = ReadySet()
    house = House(cast("Any", api.app), api.app.gate, idle_timeout=60, readiness=ready)
    ours, theirs = socket.socketpair()
    connection = ClientConnection(ours, None, house)
    serving = trio.CancelScope()

    async def serve() -> None:
        with serving:
            await connection.run()

    stream = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
    async with trio.open_nursery() as nursery, stream:
        nursery.start_soon(ready.run)
        nursery.start_soon(serve, name="ClientConnection.run")
        line = Line(house, connection, ours, stream, serving)
        nursery.start_soon(line.see_to)
        await introduce(api, stream)
        with trio.fail_after(200):
            yield line
        nursery.cancel_scope.cancel()
    ready.close()
    assert ours.fileno() == -1
    assert not house.connections
