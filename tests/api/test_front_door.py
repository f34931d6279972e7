"""The front door over real sockets: deadlines, hanging up, draining, and what it holds on to.

Time is Trio's and jumps while all sockets are quiet. What both servers answer to is in
test_front_door_table.py and test_server.py.
"""

import dataclasses
import gc
import json
import resource
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, cast

import msgspec
import pytest
import structlog.testing
import trio
import trio.testing

from primeflowd.api import front_door, server
from primeflowd.api.body import TIMEOUT
from primeflowd.api.client_connection import LINGERING, WRITING, ClientConnection
from primeflowd.api.conversation import CROWDED, SKIPPED, Conversation
from primeflowd.api.house import House
from primeflowd.api.http_request import RequestReader
from primeflowd.api.listener import GRACE
from primeflowd.config import Api as ApiSettings
from primeflowd.config import Config, TracingSettings
from primeflowd.hookspecs import BatchFilter, Page
from primeflowd.ready_set import TrioReadiness
from primeflowd.tracing import Tracing
from tests.api.harness import Api, open_api
from tests.api.wire import Address, converse, replies, rest_of, serving
from tests.network import open_files, resident_memory
from tests.node import ACME
from tests.spans import Sink

GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
IN_PLACE = b"/v1/batches"
BRIDGED = b"/v1/batches?bridged"
PERIOD = 1.0


@asynccontextmanager
async def open_door(api: Api, **options: Any) -> AsyncIterator[tuple[Address, trio.Event]]:
    async with serving(front_door.serve, api, within=100_000, **options) as served:
        yield served


@asynccontextmanager
async def connected(address: Address) -> AsyncIterator[trio.SocketStream]:
    async with await trio.open_tcp_stream(*address) as stream:
        yield stream


def post(api: Api, *fields: bytes, body: bytes = b"{}", target: bytes = IN_PLACE) -> bytes:
    """A request that is accepted, or its beginning."""
    lines = [
        b"POST " + target + b" HTTP/1.1",
        b"Host: x",
        b"X-Reevit-Key: " + api.key.encode(),
        b"Content-Type: application/json",
        *(fields or [b"Content-Length: %d" % len(body)]),
    ]
    return b"\r\n".join([*lines, b"", body])


class Stuck:
    """An intake that is slow: it says when it was asked, and goes on when it is told to."""

    def __init__(self, api: Api) -> None:
        self._intake = api.node.intake
        self.asked = trio.Event()
        self.go = trio.Event()
        self.cancelled = False

    async def perform(self, operation: Callable[..., Any]) -> Any:
        self.asked.set()
        try:
            await self.go.wait()
        except trio.Cancelled:
            self.cancelled = True
            raise
        return await self._intake.perform(operation)


def stick(api: Api) -> Stuck:
    stuck = Stuck(api)
    api.serve(api.services(intake=cast("Any", stuck)))
    return stuck


async def answer_from(stream: trio.SocketStream) -> bytes:
    """What comes at once."""
    with trio.fail_after(5):
        return bytes(await stream.receive_some())


async def batches(api: Api) -> int:
    found = await api.node.storage.read(lambda tx: tx.batches(ACME, BatchFilter(), Page(500)))
    return len(found)


# Deadlines


@pytest.mark.parametrize("first", [b"", b"GET /hea", GET, GET + b"GET", GET[:-2] + b"A: b"])
async def test_a_connection_without_a_request_is_closed(
    api: Api, clock: trio.testing.MockClock, first: bytes
) -> None:
    """Idle, or with a head that does not come to its end: without a word."""
    async with open_door(api) as (address, _), connected(address) as stream:
        started = trio.current_time()
        await stream.send_all(first)
        received = await rest_of(stream)
        assert [reply.status for reply in replies(received)] == [200] * (GET in first)
        assert 60 <= trio.current_time() - started <= 60 + 2 * PERIOD


async def test_a_head_that_drips_is_cut_off(api: Api, clock: trio.testing.MockClock) -> None:
    """The deadline is the head's, however often a byte comes."""
    async with open_door(api) as (address, _), connected(address) as stream:
        started = trio.current_time()
        await stream.send_all(b"GET / HTTP/1.1\r\nA: ")
        with pytest.raises(trio.BrokenResourceError):  # noqa: PT012 - one of many sends
            for _ in range(100):
                await stream.send_all(b"b")
                await trio.sleep(3)
        assert 60 <= trio.current_time() - started < 70


@pytest.mark.parametrize("target", [IN_PLACE, BRIDGED])
async def test_a_body_that_does_not_come_is_answered(
    api: Api, clock: trio.testing.MockClock, target: bytes
) -> None:
    """2.10: 408, and the connection is closed: nobody knows where the next request would begin."""
    async with open_door(api) as (address, _), connected(address) as stream:
        started = trio.current_time()
        head = post(api, b"Content-Length: 100000", body=b"{", target=target)
        await stream.send_all(head)
        [reply] = replies(await rest_of(stream))
        assert (reply.status, json.loads(reply.body)["code"]) == (408, "request_timeout")
        assert reply.headers["connection"] == "close"
        assert TIMEOUT <= trio.current_time() - started <= TIMEOUT + LINGERING + 2 * PERIOD


@pytest.mark.parametrize("in_place", [True, False])
async def test_a_client_that_does_not_read_is_dropped(
    api: Api, clock: trio.testing.MockClock, in_place: bool
) -> None:
    """Its answers wait for it, but not for ever, and no further request is read meanwhile."""
    if in_place:
        bulk = b'{"batches":[%b]}' % b",".join([b"{}"] * 1000)
        request = post(api, body=bulk, target=b"/v1/batches/bulk")
    else:
        made = await api.made("/v1/batches", {"metadata": {"a": "b" * 900_000}})
        lines = [
            b"GET /v1/batches/%b HTTP/1.1" % made["id"].encode(),
            b"Host: x",
            b"X-Reevit-Key: " + api.key.encode(),
        ]
        request = b"\r\n".join([*lines, b"", b""])
    async with open_door(api) as (address, _), connected(address) as stream:
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 50_000)
        started = trio.current_time()
        with trio.move_on_after(5):
            await stream.send_all(request * (5_000_000 // len(request)))
            pytest.fail("the server went on reading")
        before = resident_memory()
        await trio.sleep(WRITING + 2 * PERIOD)
        assert resident_memory() - before < 5_000_000
        received = await rest_of(stream)
        assert received.startswith(b"HTTP/1.1 200")
        assert trio.current_time() - started <= WRITING + 5 + 4 * PERIOD


async def test_a_client_that_reads_slowly_gets_all_of_it(
    api: Api, clock: trio.testing.MockClock
) -> None:
    """The deadline is for the next piece. (The framework gives each whole answer a minute.)"""
    made = await api.made("/v1/batches", {"metadata": {"a": "b" * 900_000}})
    request = f"GET /v1/batches/{made['id']} HTTP/1.1\r\nHost: x\r\nX-Reevit-Key: {api.key}\r\n\r\n"
    # More than the buffers on the way can hold.
    last = GET[:-2] + b"Connection: close\r\n\r\n"
    async with open_door(api) as (address, _), connected(address) as stream:
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 100_000)
        await stream.send_all(request.encode() * 8 + last)
        received = b""
        started = trio.current_time()
        while data := await stream.receive_some(400_000):
            received += data
            await trio.sleep(10)
        assert trio.current_time() - started > 3 * WRITING
    assert [reply.status for reply in replies(received)] == [200] * 9


# Hanging up


@pytest.mark.parametrize("target", [IN_PLACE, BRIDGED])
@pytest.mark.parametrize("reset", [False, True])
async def test_a_client_that_hangs_up_cancels_who_waits(
    api: Api, clock: trio.testing.MockClock, target: bytes, reset: bool
) -> None:
    """A stuck storage does not collect the requests of clients that have long gone."""
    stuck = stick(api)
    async with open_door(api) as (address, _):
        async with connected(address) as stream:
            await stream.send_all(post(api, target=target))
            await stuck.asked.wait()
            if reset:
                stream.socket.setsockopt(
                    socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00"
                )
        await trio.sleep(3 * PERIOD)
        assert stuck.cancelled


@pytest.mark.parametrize("target", [IN_PLACE, BRIDGED])
async def test_a_client_that_hangs_up_is_seen_in_its_trace(
    api: Api, clock: trio.testing.MockClock, target: bytes
) -> None:
    """As a request that came to nothing, as far as anybody knows."""
    stuck, sink = Stuck(api), Sink()
    tracing = Tracing(TracingSettings(), sink, api.clock)
    api.serve(dataclasses.replace(api.services(intake=cast("Any", stuck)), tracing=tracing))
    async with open_door(api) as (address, _):
        async with connected(address) as stream:
            await stream.send_all(post(api, target=target))
            await stuck.asked.wait()
        await trio.sleep(3 * PERIOD)
    [span] = sink.spans
    assert (span.name, span.failed) == ("POST /v1/batches", True)
    assert "http.response.status_code" not in span.attributes


async def test_what_is_committed_stays(api: Api) -> None:
    """5.6: a client that hangs up at once has its batch all the same."""
    async with open_door(api) as (address, _):
        async with connected(address) as stream:
            await stream.send_all(post(api))
        async with connected(address) as stream:
            await stream.send_all(GET)
            await answer_from(stream)
    assert await batches(api) == 1


@pytest.mark.parametrize("target", [IN_PLACE, BRIDGED])
async def test_whoever_half_closes_is_answered(
    api: Api, clock: trio.testing.MockClock, target: bytes
) -> None:
    """As `nc` does: the end of what it says is not the end of its interest."""
    stuck = stick(api)
    async with open_door(api) as (address, _), connected(address) as stream:
        await stream.send_all(post(api, target=target))
        await stream.send_eof()
        await stuck.asked.wait()
        # It has been seen once.
        await trio.sleep(1.5 * PERIOD)
        stuck.go.set()
        [reply] = replies(await rest_of(stream))
        assert reply.status == 201


@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        (b"", []),
        (b"GET", [400]),
        (GET, [200]),
        (GET + GET[:-1], [200, 400]),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n", [404]),
    ],
)
async def test_the_end_of_what_a_client_sends(api: Api, sent: bytes, statuses: list[int]) -> None:
    """Half a request is malformed; a refused one whose body never came has had its answer."""
    async with open_door(api) as (address, _):
        received = await converse(address, sent, half_close=True)
    assert [reply.status for reply in replies(received)] == statuses


@pytest.mark.parametrize("target", [IN_PLACE, BRIDGED])
async def test_half_a_body(api: Api, target: bytes) -> None:
    """2.5: nothing of it is taken."""
    async with open_door(api) as (address, _):
        sent = post(api, b"Content-Length: 100", target=target)
        [reply] = replies(await converse(address, sent, half_close=True))
    assert (reply.status, json.loads(reply.body)["code"]) == (400, "malformed_request")
    assert reply.headers["connection"] == "close"
    assert await batches(api) == 0


# Keeping connections, and closing them


async def test_an_answer_can_be_the_last_while_more_is_asked(api: Api) -> None:
    """RFC 9112, 9.6: nothing behind `close` counts."""
    closing = GET[:-2] + b"Connection: close\r\n\r\n"
    async with open_door(api) as (address, _):
        assert len(replies(await converse(address, closing + GET + b"\x00"))) == 1


@pytest.mark.parametrize(
    ("size", "kept"), [(SKIPPED, True), (SKIPPED + 1, False), (5_000_000, False)]
)
@pytest.mark.parametrize("target", [b"/v1/batches", b"/nowhere"])
async def test_a_body_that_is_not_wanted(api: Api, target: bytes, size: int, kept: bool) -> None:
    """2.1: a refusal is not lost in a reset, and costs the connection only if the body is long."""
    head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (target, size)
    async with open_door(api) as (address, _), connected(address) as stream:
        await stream.send_all(head)
        answer = await answer_from(stream)
        assert answer.startswith(b"HTTP/1.1 40")
        assert (b"connection: close" in answer) is not kept
        await stream.send_all(b"x" * size + GET[:-2] + b"Connection: close\r\n\r\n")
        assert len(replies(await rest_of(stream))) == kept


async def test_the_farewell_has_an_end(api: Api, clock: trio.testing.MockClock) -> None:
    """A client that goes on sending behind its last request is soon cut off."""
    async with open_door(api) as (address, _), connected(address) as stream:
        await stream.send_all(b"\x00")
        assert len(replies(await rest_of(stream))) == 1
        started = trio.current_time()
        with pytest.raises(trio.BrokenResourceError):  # noqa: PT012 - one of many sends
            for _ in range(100):
                await stream.send_all(b"x")
                await trio.sleep(0.3)
        assert trio.current_time() - started <= LINGERING + 2 * PERIOD


@pytest.mark.parametrize("target", [IN_PLACE, BRIDGED])
async def test_continue_is_said_to_whom_waits_for_it(api: Api, target: bytes) -> None:
    """RFC 9110, 10.1.1: once, and not before the request may go on."""
    fields = [b"Content-Length: 2", b"Expect: 100-Continue"]
    head = post(api, *fields, body=b"", target=target)
    async with open_door(api) as (address, _), connected(address) as stream:
        await stream.send_all(head)
        assert await answer_from(stream) == b"HTTP/1.1 100 Continue\r\n\r\n"
        await stream.send_all(b"{")
        await trio.testing.wait_all_tasks_blocked(0.01)
        await stream.send_all(b"}")
        assert (await answer_from(stream)).startswith(b"HTTP/1.1 201")
        refused = head.replace(b"pfk_", b"xyz_")
        if target == IN_PLACE:
            await stream.send_all(refused)
            # Whether a body follows is anybody's guess: the connection cannot go on.
            [reply] = replies(await rest_of(stream))
            assert (reply.status, reply.headers["connection"]) == (401, "close")


@pytest.mark.parametrize("chunked", [False, True])
async def test_too_large_a_body_that_came_with_its_head(chunked: bool) -> None:
    """2.10."""
    settings = ApiSettings(max_body=1024)
    body = b" " * 1025
    fields = [b"Content-Length: 1025"]
    if chunked:
        fields, body = [b"Transfer-Encoding: chunked"], b"401\r\n%b\r\n0\r\n\r\n" % body
    async with (
        open_api(msgspec.structs.replace(Config(), api=settings)) as api,
        open_door(api) as (address, _),
    ):
        sent = post(api, *fields, body=body) + GET[:-2] + b"Connection: close\r\n\r\n"
        found = replies(await converse(address, sent))
    assert [reply.status for reply in found] == [413, 200]


async def test_answers_come_in_the_order_of_requests(api: Api) -> None:
    """RFC 9112, 9.3.2: many at once, of all kinds, on one connection."""
    requests = [post(api), GET, post(api, target=BRIDGED), b"GET /no HTTP/1.1\r\nHost: x\r\n\r\n"]
    last = GET[:-2] + b"Connection: close\r\n\r\n"
    async with open_door(api) as (address, _):
        found = replies(await converse(address, b"".join(requests) * 200 + last))
    assert [reply.status for reply in found] == [201, 200, 201, 404] * 200 + [200]


async def test_whoever_sends_many_takes_turns(api: Api) -> None:
    """One connection full of requests does not hold up another."""
    flood = b"POST /v1/batches HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n" * 5_000
    async with open_door(api) as (address, _), connected(address) as busy:
        finished = False

        async def read_all() -> None:
            nonlocal finished
            received = 0
            while received < 5_000:
                received += (await busy.receive_some()).count(b"HTTP/1.1 401")
            finished = True

        async with trio.open_nursery() as nursery:
            nursery.start_soon(busy.send_all, flood)
            nursery.start_soon(read_all)
            async with connected(address) as other:
                for _ in range(10):
                    await other.send_all(GET)
                    assert (await answer_from(other)).startswith(b"HTTP/1.1 200")
            assert not finished


async def test_a_repeat_at_the_other_server_is_replayed(api: Api) -> None:
    """2.6: what came in by one door is known at the other."""
    request = post(api, b"Content-Length: 2", b"Idempotency-Key: one", b"Connection: close")
    found = []
    for serve in (front_door.serve, server.serve, front_door.serve):
        api.serve(api.services())
        async with serving(serve, api) as (address, _):
            found += replies(await converse(address, request))
    assert {(reply.status, reply.body) for reply in found} == {(201, found[0].body)}
    replayed = [reply.headers.get("idempotency-replayed") for reply in found]
    assert replayed == [None, "true", "true"]


async def test_limits_are_counted_together() -> None:
    """2.11: a key's requests, whichever way they take."""
    settings = ApiSettings(rate_limit=1.0, rate_burst=2)
    async with (
        open_api(msgspec.structs.replace(Config(), api=settings)) as api,
        open_door(api) as (address, _),
    ):
        last = post(api, b"Content-Length: 2", b"Connection: close")
        sent = post(api) + post(api, target=BRIDGED) + last
        found = replies(await converse(address, sent))
    assert [reply.status for reply in found] == [201, 201, 429]
    assert [reply.headers["x-ratelimit-remaining"] for reply in found] == ["1", "0", "0"]
    assert int(found[2].headers["retry-after"]) >= 1


async def test_a_head_that_is_known_is_no_key(api: Api) -> None:
    """2.1: a key that is revoked here stops at once, whoever sent the same head before."""
    key, plain = await api.make_key()
    sent = post(api).replace(api.key.encode(), plain.encode())
    async with open_door(api) as (address, _), connected(address) as stream:
        statuses = []
        for _ in range(3):
            await stream.send_all(sent)
            [reply] = replies(await answer_from(stream))
            statuses.append(reply.status)
            if len(statuses) == 2:
                assert (await api.call("DELETE", f"/v1/keys/{key.id}")).status_code == 204
    assert statuses == [201, 201, 401]


async def test_the_request_id_is_the_clients(api: Api) -> None:
    """2.7: and on every line of the log about its request."""
    with structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]) as logged:
        async with open_door(api) as (address, _):
            sent = post(api, b"Content-Length: 1", b"X-Request-Id: mine", b"Connection: close")
            [reply] = replies(await converse(address, sent + b"{"))
    assert reply.headers["x-request-id"] == "mine"
    answered = [entry for entry in logged if entry["event"] == "answered"]
    assert [entry["request_id"] for entry in answered] == ["mine"]


# Draining


async def test_drain(api: Api, clock: trio.testing.MockClock) -> None:
    """8: no new connection, idle ones closed, what is under way answered as the last."""
    stuck = stick(api)
    async with open_door(api) as (address, shutdown), AsyncExitStack() as stack:
        idle, half, busy, bridged = [
            await stack.enter_async_context(connected(address)) for _ in range(4)
        ]
        await idle.send_all(GET)
        await answer_from(idle)
        await half.send_all(b"GET /heal")
        await busy.send_all(post(api) + GET)
        await bridged.send_all(post(api, target=BRIDGED))
        await stuck.asked.wait()
        await trio.testing.wait_all_tasks_blocked(0.01)
        asked = trio.current_time()
        shutdown.set()
        assert await rest_of(idle) == b""
        assert await rest_of(half) == b""
        assert trio.current_time() - asked < 0.1
        with pytest.raises(OSError, match="all attempts to connect"):
            await trio.open_tcp_stream(*address)
        await trio.sleep(GRACE / 2)
        stuck.go.set()
        for stream in (busy, bridged):
            [reply] = replies(await rest_of(stream))
            assert (reply.status, reply.headers["connection"]) == (201, "close")


async def test_a_request_that_has_come_is_not_dropped_by_a_drain(api: Api) -> None:
    """8: it was sent to a server that was there, though nobody has read it yet."""
    house = House(cast("Any", api.app), api.app.gate, idle_timeout=60)
    ours, theirs = socket.socketpair()
    connection = ClientConnection(ours, None, house)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        await trio.testing.wait_all_tasks_blocked()
        request = b"POST /v1/batches HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
        theirs.sendall(request)
        house.draining = True
        connection.watch(trio.current_time())
        await trio.testing.wait_all_tasks_blocked(0.01)
        with theirs:
            [reply] = replies(theirs.recv(10_000))
    assert (reply.status, reply.headers["connection"]) == (401, "close")


async def test_a_drain_has_an_end(api: Api, clock: trio.testing.MockClock) -> None:
    """8: what takes longer than the grace is cut off."""
    stuck = stick(api)
    async with AsyncExitStack() as stack:
        async with open_door(api) as (address, shutdown):
            streams = [await stack.enter_async_context(connected(address)) for _ in range(2)]
            await streams[0].send_all(post(api))
            await streams[1].send_all(post(api, target=BRIDGED))
            await stuck.asked.wait()
            await trio.testing.wait_all_tasks_blocked(0.01)
            started = trio.current_time()
            shutdown.set()
        assert GRACE <= trio.current_time() - started <= GRACE + 0.5
        for stream in streams:
            assert await rest_of(stream) == b""


# What it holds on to


async def test_there_is_room_for_so_many(api: Api, clock: trio.testing.MockClock) -> None:
    """Memory and files are bounded: those that say nothing make room for those that wait."""
    async with open_door(api, most_connections=3) as (address, _), AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(connected(address)) for _ in range(3)]
        await trio.sleep(0.5)
        async with connected(address) as late:
            started = trio.current_time()
            await late.send_all(GET)
            assert (await answer_from(late)).startswith(b"HTTP/1.1 200")
            assert trio.current_time() - started <= CROWDED + 2 * PERIOD
        for stream in silent:
            assert await rest_of(stream) == b""


async def test_no_more_files(api: Api) -> None:
    """It waits for one to be closed, and says so; it does not end, nor spin."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with structlog.testing.capture_logs() as logged:
        async with open_door(api) as (address, _), connected(address) as stream:
            await trio.testing.wait_all_tasks_blocked(0.01)
            with socket.socket() as waiting:
                lowest = waiting.fileno()
                resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, hard))
                try:
                    waiting.connect(address)
                    await trio.sleep(0.25)
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                await trio.sleep(0.15)
                waiting.sendall(GET)
                await trio.sleep(0.05)
                assert waiting.recv(100).startswith(b"HTTP/1.1 200")
            await stream.send_all(GET)
            assert (await answer_from(stream)).startswith(b"HTTP/1.1 200")
    refused = [entry for entry in logged if entry["event"] == "cannot_accept"]
    assert 1 <= len(refused) <= 5


async def test_nothing_is_left_open(api: Api, clock: trio.testing.MockClock) -> None:
    """Cancelled in every phase of a connection, it closes all of them."""
    made = await api.made("/v1/batches", {"metadata": {"a": "b" * 900_000}})
    large = f"GET /v1/batches/{made['id']} HTTP/1.1\r\nHost: x\r\nX-Reevit-Key: {api.key}\r\n\r\n"
    phases = [
        b"",
        b"GET /he",
        GET,
        post(api),
        post(api, target=BRIDGED),
        post(api, b"Content-Length: 100000"),
        post(api, b"Content-Length: 100000", target=BRIDGED),
        post(api, b"Transfer-Encoding: chunked", body=b"5\r\n"),
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n",
        large.encode() * 20,
        b"\x00",
        GET[:-2] + b"Connection: close\r\n\r\n",
    ]
    stuck = stick(api)
    before = open_files()
    for _ in range(2):
        async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
            shutdown = trio.Event()
            [url] = await nursery.start(front_door.serve, api.app, ("127.0.0.1", 0), shutdown)
            host, port = url.removeprefix("http://").split(":")
            for sent in phases:
                stream = await stack.enter_async_context(connected((host, int(port))))
                with trio.move_on_after(0.1):
                    await stream.send_all(sent)
            await stuck.asked.wait()
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert open_files() >= before + 2 * (len(phases) - 2)
            nursery.cancel_scope.cancel()
    assert open_files() == before


async def test_connections_leave_nothing_behind(api: Api) -> None:
    """Neither files nor, without the collector's help, memory."""
    sent = post(api) + GET[:-2] + b"Connection: close\r\n\r\n"
    async with open_door(api) as (address, _):
        await converse(address, sent)
        await trio.testing.wait_all_tasks_blocked(0.01)
        gc.collect()
        gc.disable()
        try:
            before = open_files()
            for _ in range(20):
                await converse(address, sent)
                await converse(address, b"\x00")
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert open_files() == before
            kinds = (ClientConnection, Conversation, RequestReader)
            assert not [each for each in gc.get_objects() if isinstance(each, kinds)]
        finally:
            gc.enable()


async def test_idle_connections_are_cheap(api: Api) -> None:
    """A thousand of them, each after a request."""
    async with open_door(api) as (address, _):
        clients = []
        try:
            for _ in range(1000):
                client = socket.create_connection(address)
                clients.append(client)
                client.sendall(GET)
                if len(clients) == 100:
                    await trio.sleep(0.1)
                    before = resident_memory()
                await trio.lowlevel.checkpoint()
            await trio.sleep(0.5)
            each = (resident_memory() - before) / 900
            for client in clients:
                assert client.recv(10_000).startswith(b"HTTP/1.1 200")
        finally:
            for client in clients:
                client.close()
    assert each < 30_000


async def test_a_bug_costs_one_connection(api: Api) -> None:
    """A client that finds one must not end the daemon."""

    class Broken(TrioReadiness):
        async def wait_readable(self, descriptor: int) -> None:
            raise RuntimeError

    house = House(cast("Any", api.app), api.app.gate, idle_timeout=60, readiness=Broken())
    ours, theirs = socket.socketpair()
    with structlog.testing.capture_logs() as logged, theirs:
        await ClientConnection(ours, None, house).run()
        assert theirs.recv(1) == b""
    assert [entry["event"] for entry in logged] == ["connection_failed"]
    assert ours.fileno() == -1
