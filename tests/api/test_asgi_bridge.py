"""Answers of an ASGI application as bytes: framing, failures, and what is sent together."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import structlog.testing
import trio

from primeflowd.api.asgi_bridge import Address, Application, Event, Exchange
from primeflowd.api.http_request import Malformed, RequestReader
from primeflowd.api.known_heads import Head
from tests.api.wire import replies

Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]


class FakeWire:
    """A connection that has all of a body, and keeps what is sent. As client_connection.py's it
    says of an answer to HTTP/1.0 that it is the last."""

    client: Address = ("192.0.2.1", 1234)
    server: Address = ("192.0.2.2", 80)

    def __init__(self, head: Head, parts: list[bytes], error: Malformed | None = None) -> None:
        self.head = head
        self.parts = parts
        self.error = error
        self.sent: list[bytes] = []
        self.given_up = False

    async def body_part(self) -> tuple[bytes, bool]:
        await trio.lowlevel.checkpoint()
        if not self.parts and self.error is not None:
            raise self.error
        part = self.parts.pop(0) if self.parts else b""
        return part, bool(self.parts) or self.error is not None

    async def send(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.sent.append(data)

    def closes(self) -> bool:
        return not self.head.keep_alive

    def give_up(self) -> None:
        self.given_up = True


async def exchange(
    application: Application,
    start: bytes = b"GET /a%20b?c=%64 HTTP/1.1",
    parts: list[bytes] | None = None,
    error: Malformed | None = None,
) -> FakeWire:
    reader = RequestReader()
    reader.feed(start + b"\r\nHost: x\r\nA: b\r\n\r\n")
    assert reader.head is not None
    wire = FakeWire(reader.head, parts or [], error)
    await Exchange(wire, reader.head).run(application)
    return wire


def answering(status: int, fields: dict[bytes, bytes], *parts: bytes) -> Application:
    """An application that answers in these parts and a last, empty one."""

    async def application(_: Event, __: Receive, send: Send) -> None:
        headers = list(fields.items())
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    return application


async def test_an_answer_of_known_length_is_sent_at_once() -> None:
    """Head and body in one segment, as clients like it."""
    wire = await exchange(answering(200, {b"content-length": b"2", b"b": b"c"}, b"ok"))
    assert len(wire.sent) == 1
    [reply] = replies(wire.sent[0])
    assert (reply.status, reply.body, reply.headers["b"]) == (200, b"ok", "c")
    assert "connection" not in reply.headers
    assert not wire.given_up


async def test_an_answer_of_unknown_length_goes_in_chunks() -> None:
    """RFC 9112, 7.1. No chunk is empty but the last."""
    wire = await exchange(answering(200, {}, b"one", b"", b"x" * 20))
    head, _, body = b"".join(wire.sent).partition(b"\r\n\r\n")
    assert b"\r\ntransfer-encoding: chunked" in head
    assert b"content-length" not in head
    assert body == b"3\r\none\r\n14\r\n" + b"x" * 20 + b"\r\n0\r\n\r\n"


async def test_an_answer_of_unknown_length_in_http_1_0_ends_with_the_connection() -> None:
    """RFC 9112, 6.3: those clients know no chunks."""
    wire = await exchange(answering(200, {}, b"one", b"two"), b"GET / HTTP/1.0")
    head, _, body = b"".join(wire.sent).partition(b"\r\n\r\n")
    assert b"\r\nconnection: close" in head
    assert b"transfer-encoding" not in head
    assert body == b"onetwo"


@pytest.mark.parametrize(
    ("start", "status", "fields"),
    [
        (b"HEAD / HTTP/1.1", 200, {b"content-length": b"3"}),
        (b"HEAD / HTTP/1.1", 200, {}),
        (b"GET / HTTP/1.1", 204, {}),
        (b"GET / HTTP/1.1", 304, {}),
    ],
)
async def test_answers_without_a_body(
    start: bytes, status: int, fields: dict[bytes, bytes]
) -> None:
    """RFC 9110, 6.4.1: whatever the application says."""
    wire = await exchange(answering(status, fields, b"abc"), start)
    head, _, body = b"".join(wire.sent).partition(b"\r\n\r\n")
    assert body == b""
    assert (b"content-length: 3" in head) is bool(fields)
    assert b"chunked" not in head
    assert not wire.given_up


async def test_what_the_application_sees() -> None:
    """The target split and decoded, headers in lower case, and who is talking to whom."""
    scopes: list[Event] = []

    async def application(scope: Event, _: Receive, send: Send) -> None:
        scopes.append(scope)
        await answering(204, {})(scope, _, send)

    await exchange(application)
    [scope] = scopes
    assert scope["type"] == "http"
    assert (scope["method"], scope["http_version"], scope["scheme"]) == ("GET", "1.1", "http")
    assert (scope["path"], scope["raw_path"], scope["query_string"]) == (
        "/a b",
        b"/a%20b",
        b"c=%64",
    )
    assert scope["headers"] == [(b"host", b"x"), (b"a", b"b")]
    assert (scope["client"], scope["server"]) == (("192.0.2.1", 1234), ("192.0.2.2", 80))


async def test_the_body_comes_in_parts_and_then_nothing() -> None:
    """A client that hangs up is not reported: the exchange is cancelled."""
    events: list[Event] = []

    async def application(scope: Event, receive: Receive, send: Send) -> None:
        events.extend([await receive(), await receive()])
        with trio.move_on_after(0.01) as waiting:
            await receive()
        assert waiting.cancelled_caught
        await answering(204, {})(scope, receive, send)

    await exchange(application, parts=[b"a", b"b"])
    assert [(event["body"], event["more_body"]) for event in events] == [
        (b"a", True),
        (b"b", False),
    ]


async def test_a_malformed_body_is_answered_for_the_application() -> None:
    """2.5: it is told that its client has gone, and gives up."""

    async def application(_: Event, receive: Receive, __: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    wire = await exchange(application, parts=[b"a"], error=Malformed(431))
    [reply] = replies(b"".join(wire.sent))
    assert reply.status == 431


@pytest.mark.parametrize("raises", [True, False])
@pytest.mark.parametrize("start", [b"GET / HTTP/1.1", b"HEAD / HTTP/1.1"])
async def test_an_application_without_an_answer(raises: bool, start: bytes) -> None:
    """2.5: a 500 in an envelope; why is in the log."""

    async def application(_: Event, __: Receive, ___: Send) -> None:
        await trio.lowlevel.checkpoint()
        if raises:
            raise ExceptionGroup("from a nursery", [RuntimeError("a bug")])

    with structlog.testing.capture_logs() as logged:
        wire = await exchange(application, start)
    [reply] = replies(b"".join(wire.sent), [start.partition(b" ")[0]])
    assert reply.status == 500
    assert (reply.body == b"") is start.startswith(b"HEAD")
    assert [entry["event"] for entry in logged] == ["request_failed"] * raises


@pytest.mark.parametrize("fields", [{b"content-length": b"10"}, {}])
async def test_half_an_answer_costs_the_connection(fields: dict[bytes, bytes]) -> None:
    """2.5: nothing can be added to it any more."""

    async def application(scope: Event, receive: Receive, send: Send) -> None:
        async def send_half(event: Event) -> None:
            if event.get("more_body") is False:
                raise RuntimeError("a bug")
            await send(event)

        await answering(200, fields, b"12345")(scope, receive, send_half)

    with structlog.testing.capture_logs() as logged:
        wire = await exchange(application)
    assert wire.given_up
    assert b"12345" in b"".join(wire.sent)
    assert [entry["event"] for entry in logged] == ["request_failed"]


@pytest.mark.parametrize("length", [b"1", b"10"])
async def test_a_wrong_length_costs_the_connection(length: bytes) -> None:
    """Else the next answer would be taken for a part of this one, or a part of it for the next."""
    wire = await exchange(answering(200, {b"content-length": length}, b"12345"))
    assert wire.given_up


async def test_cancellation_passes() -> None:
    """It is the connection's, not the application's."""

    async def application(_: Any, __: Any, ___: Any) -> None:
        await trio.sleep_forever()

    with trio.move_on_after(0.01) as scope:
        await exchange(application)
    assert scope.cancelled_caught
