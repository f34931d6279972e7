"""connection.py: one exchange over one socket, driven byte by byte from the other end."""

import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from primeflowd.connection import Connection, NetworkFailure, describe
from primeflowd.http_response import ResponseReader
from primeflowd.ready_set import ReadySet
from tests.network import Authority

REQUEST = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n{}"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
MAX_BODY = 64


def loopback() -> tuple[socket.socket, trio.SocketStream]:
    """A TCP connection within this process; a pair of Unix sockets knows no RST."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    ours.setblocking(False)
    theirs.setblocking(False)
    return ours, trio.SocketStream(trio.socket.from_stdlib_socket(theirs))


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[Connection, trio.SocketStream]]:
    ours, theirs = loopback()
    connection = Connection(ours, "127.0.0.1:80", ResponseReader(1024, MAX_BODY))
    async with theirs:
        try:
            yield connection, theirs
        finally:
            connection.close()


def reset(stream: trio.SocketStream) -> None:
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


async def read_request(stream: trio.SocketStream, size: int = len(REQUEST)) -> bytes:
    data = bytearray()
    while len(data) < size:
        data += await stream.receive_some()
    return bytes(data)


async def failure_of(connection: Connection, request: bytes = REQUEST) -> NetworkFailure:
    with pytest.raises(NetworkFailure) as caught:
        await connection.exchange(request)
    assert not connection.reusable
    return caught.value


async def test_exchanges_one_after_the_other(nursery: trio.Nursery) -> None:
    """The request goes out as it is; the connection serves again."""
    async with pair() as (connection, theirs):
        for n in range(3):
            nursery.start_soon(connection.exchange, REQUEST)
            assert await read_request(theirs) == REQUEST
            await theirs.send_all(OK.replace(b"ok", b"%02d" % n))
            await trio.testing.wait_all_tasks_blocked()
            assert connection.response.status == 200
            assert connection.response.body == b"%02d" % n
            assert connection.reusable
            assert not connection.is_stale()


@pytest.mark.parametrize("large", [False, True])
async def test_closed_without_an_answer(large: bool) -> None:
    """5.3: no byte came: connection_error, and `received` is 0, so a kept one may be replaced."""
    async with pair() as (connection, theirs):
        await theirs.aclose()
        failure = await failure_of(connection, REQUEST + bytes(10_000_000 if large else 0))
        assert failure.reason == "connection_error"
        assert failure.address == "127.0.0.1:80"
        assert connection.response.received == 0


@pytest.mark.parametrize("large", [False, True])
async def test_reset_without_an_answer(large: bool) -> None:
    """5.3: a RST before the answer is a connection error."""
    async with pair() as (connection, theirs):
        reset(theirs)
        failure = await failure_of(connection, REQUEST + bytes(10_000_000 if large else 0))
        assert failure.reason == "connection_error"
        assert connection.response.received == 0


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_broken_in_the_head(how: str) -> None:
    """5.3: part of a head is no answer, but not silence either: response_error."""
    async with pair() as (connection, theirs):
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def server() -> None:
                await read_request(theirs)
                await theirs.send_all(OK[:20])
                await trio.testing.wait_all_tasks_blocked()
                if how == "reset":
                    reset(theirs)
                else:
                    await theirs.aclose()

            failure = await failure_of(connection)
        assert failure.reason == "response_error"
        assert "in the middle of the head" in failure.message
        assert connection.response.received == 20


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_broken_in_the_body(nursery: trio.Nursery, how: str) -> None:
    """5.2: once the head is there the status stands, and what came of the body is kept."""
    async with pair() as (connection, theirs):
        nursery.start_soon(connection.exchange, REQUEST)
        await read_request(theirs)
        await theirs.send_all(OK[:-1])
        await trio.testing.wait_all_tasks_blocked()
        if how == "reset":
            reset(theirs)
        else:
            await theirs.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert connection.response.status == 200
        assert connection.response.body == b"o"
        assert not connection.reusable


async def test_not_http() -> None:
    """5.3: garbage is a response error."""
    async with pair() as (connection, theirs):
        await theirs.send_all(b"220 mail.test ESMTP\r\n")
        failure = await failure_of(connection)
        assert failure.reason == "response_error"


async def test_early_answer_to_a_large_request() -> None:
    """A receiver that refuses a large body and never reads it is heard all the same."""
    async with pair() as (connection, theirs):
        await theirs.send_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
        with trio.fail_after(5):
            await connection.exchange(REQUEST + bytes(50_000_000))
        assert connection.response.status == 413
        # What was left unsent would be read as the next request.
        assert not connection.reusable


async def test_answer_before_a_reset() -> None:
    """What the receiver said before it slammed the door counts."""
    async with pair() as (connection, theirs):
        await theirs.send_all(OK)
        await theirs.aclose()
        await connection.exchange(REQUEST)
        assert connection.response.status == 200


@pytest.mark.parametrize("size", [1, 1_000_000, 20_000_000])
async def test_large_requests_arrive_whole(nursery: trio.Nursery, size: int) -> None:
    """What the socket does not take at once follows, in order."""
    body = bytes(n % 251 for n in range(1000)) * (size // 1000 + 1)
    async with pair() as (connection, theirs):
        nursery.start_soon(connection.exchange, REQUEST + body)
        assert await read_request(theirs, len(REQUEST) + len(body)) == REQUEST + body
        await theirs.send_all(OK)
        await trio.testing.wait_all_tasks_blocked()
        assert connection.response.status == 200
        assert connection.reusable


async def test_drip(nursery: trio.Nursery) -> None:
    """A response that comes byte by byte is read byte by byte."""
    async with pair() as (connection, theirs):
        nursery.start_soon(connection.exchange, REQUEST)
        for n in range(len(OK)):
            assert connection.response.status == (200 if n >= len(OK) - 2 else None)
            await theirs.send_all(OK[n : n + 1])
            await trio.testing.wait_all_tasks_blocked()
        assert connection.response.body == b"ok"
        assert connection.reusable


@pytest.mark.parametrize("sent", [0, 10, len(OK) - 1])
@pytest.mark.parametrize("size", [0, 10_000_000])
async def test_cancelled(sent: int, size: int) -> None:
    """Cancelled while it sends or reads, a connection is not fit for another exchange."""
    async with pair() as (connection, theirs):
        await theirs.send_all(OK[:sent])
        with trio.move_on_after(0.05) as scope:
            await connection.exchange(REQUEST + bytes(size))
        assert scope.cancelled_caught
        assert not connection.reusable


async def test_stale() -> None:
    """A close, a RST or unasked bytes show before the connection is used."""
    async with pair() as (connection, theirs):
        assert not connection.is_stale()
        await theirs.send_all(b"H")
        assert connection.is_stale()
    async with pair() as (connection, theirs):
        await theirs.aclose()
        assert connection.is_stale()
    async with pair() as (connection, theirs):
        reset(theirs)
        assert connection.is_stale()


@asynccontextmanager
async def tls_pair(
    path: Path, maximum: ssl.TLSVersion
) -> AsyncIterator[tuple[Connection, trio.SSLStream[trio.SocketStream]]]:
    authority = Authority(path)
    ours, transport = loopback()
    context = ssl.create_default_context(cafile=str(authority.ca_file))
    context.maximum_version = maximum
    client = context.wrap_socket(ours, server_hostname="h", do_handshake_on_connect=False)
    stream = trio.SSLStream(transport, authority.server("h"), server_side=True)

    async def handshake() -> None:
        while True:
            try:
                return client.do_handshake()
            except ssl.SSLWantReadError:
                await trio.lowlevel.wait_readable(client)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.do_handshake)
        await handshake()
    connection = Connection(client, "127.0.0.1:443", ResponseReader(1024, 1_000_000))
    try:
        yield connection, stream
    finally:
        connection.close()
        await trio.aclose_forcefully(stream)


versions = pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])


@versions
async def test_tls_exchanges(
    nursery: trio.Nursery, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    """Over TLS the same: large both ways, reused, and staleness noticed by close_notify."""
    body = bytes(n % 251 for n in range(1000)) * 1000
    answer = OK.replace(b"2\r\n\r\nok", b"%d\r\n\r\n%b" % (len(body), body))
    async with tls_pair(tmp_path, version) as (connection, theirs):
        for _ in range(3):
            nursery.start_soon(connection.exchange, REQUEST + body)
            received = b""
            while len(received) < len(REQUEST + body):
                received += await theirs.receive_some()
            assert received == REQUEST + body
            await theirs.send_all(answer)
            await trio.testing.wait_all_tasks_blocked()
            assert connection.response.body == body
            assert connection.reusable
            # Session tickets that lie unread are no reason to think ill of it.
            assert not connection.is_stale()
        with trio.move_on_after(0.05):
            await theirs.aclose()
        assert connection.is_stale()


@versions
async def test_tls_record_larger_than_a_read(
    nursery: trio.Nursery, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    """What OpenSSL holds of a record makes no socket readable, and must be asked for."""
    answer = OK.replace(b"2\r\n\r\nok", b"5000\r\n\r\n" + bytes(5000))
    async with tls_pair(tmp_path, version) as (connection, theirs):
        assert connection.response.wanted < len(answer)
        nursery.start_soon(connection.exchange, REQUEST)
        await theirs.receive_some()
        await theirs.send_all(answer)
        await trio.testing.wait_all_tasks_blocked()
        assert connection.response.body == bytes(5000)
        assert connection.reusable


@versions
async def test_tls_cut_without_goodbye(
    nursery: trio.Nursery, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    """A TLS connection cut in the body leaves the status; between exchanges it is stale."""
    async with tls_pair(tmp_path, version) as (connection, theirs):
        nursery.start_soon(connection.exchange, REQUEST)
        await theirs.receive_some()
        await theirs.send_all(OK[:-1])
        await theirs.transport_stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert connection.response.status == 200
        assert connection.response.body == b"o"
        assert connection.is_stale()


async def test_tls_garbage(tmp_path: Path) -> None:
    """5.3: a TLS stream that goes wrong is a TLS error."""
    async with tls_pair(tmp_path, ssl.TLSVersion.TLSv1_3) as (connection, theirs):
        await theirs.transport_stream.send_all(b"HTTP/1.1 200 OK\r\n\r\n")
        failure = await failure_of(connection)
        assert failure.reason == "tls_error"
        assert ".c:" not in failure.message


async def test_nobody_is_told_of_one_that_was_closed_meanwhile(nursery: trio.Nursery) -> None:
    """Two answers were read together; what follows from either closes both connections."""
    ready = ReadySet()
    connections: list[Connection] = []
    told: list[NetworkFailure | None] = []
    ends = [socket.socketpair() for _ in range(2)]

    def close_all(failure: NetworkFailure | None) -> None:
        told.append(failure)
        for connection in connections:
            connection.close()

    for ours, theirs in ends:
        ours.setblocking(False)
        connection = Connection(ours, "127.0.0.1:80", ResponseReader(1024, MAX_BODY), ready)
        connections.append(connection)
        assert connection.begin(REQUEST, close_all) is None
        theirs.send(OK)
    nursery.start_soon(ready.run)
    await trio.testing.wait_all_tasks_blocked()
    assert told == [None]
    ready.close()
    for _, theirs in ends:
        theirs.close()


def test_describe() -> None:
    """Words for people: no numbers, no names of OpenSSL's sources."""
    assert describe(ConnectionResetError(104, "Connection reset by peer")) == (
        "Connection reset by peer"
    )
    assert describe(OSError()) == "OSError"
