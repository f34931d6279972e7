"""What the HTTP server answers by itself (contract 2.5, 2.7), over a raw socket, for both servers.

For one of them methods of Hypercorn are overridden that are not public. A newer Hypercorn that has
moved any of them fails here, and not at a client.
"""

import json
from collections.abc import AsyncIterator

import pytest
import structlog.testing
import trio
from hypothesis import given
from hypothesis import strategies as st
from quart.wrappers import Request

from primeflowd.api.request_rules import origin_form
from tests.api.harness import Api
from tests.api.wire import SERVERS, serving

KEY = b"X-Reevit-Key: "


@pytest.fixture(params=SERVERS)
async def address(request: pytest.FixtureRequest, api: Api) -> AsyncIterator[tuple[str, int]]:
    """Where the API is served."""
    async with serving(SERVERS[request.param], api) as (address, _):
        yield address


async def ask(address: tuple[str, int], request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send bytes, read until the server closes; the one answer that came."""
    with trio.fail_after(10):
        stream = await trio.open_tcp_stream(*address)
        await stream.send_all(request)
        received = b""
        async for part in stream:
            received += part
        await stream.aclose()
    head, _, body = received.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(status.split()[1]), headers, body


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"hello\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\n broken: y\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: \x00\r\n\r\n", 400),
        (b"GET /\xe4 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", 431),
        (b"GET ?a=b HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET ftp://x/ HTTP/1.1\r\nHost: x\r\n\r\n", 400),
        (b"GET http: HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    ],
    ids=lambda value: value[:40].decode("latin-1") if isinstance(value, bytes) else "",
)
async def test_malformed_http_gets_an_envelope(
    address: tuple[str, int], request_bytes: bytes, status: int
) -> None:
    """2.5, 2.7: never a bare status line."""
    answered, headers, body = await ask(address, request_bytes)
    assert answered == status
    assert headers["content-type"] == "application/json"
    assert headers["content-length"] == str(len(body))
    assert headers["connection"] == "close"
    assert len(headers["x-request-id"]) == 36
    envelope = json.loads(body)
    assert set(envelope) == {"error", "code", "message"}
    assert envelope["error"] == ("internal_error" if status >= 500 else "invalid_request")


async def test_a_malformed_chunk_in_a_body(api: Api, address: tuple[str, int]) -> None:
    """2.5: also when the application has begun with the request."""
    head = b"POST /v1/batches HTTP/1.1\r\nHost: x\r\n" + KEY + api.key.encode()
    head += b"\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    status, headers, body = await ask(address, head + b"zz\r\n")
    assert status == 400
    assert json.loads(body)["code"] == "malformed_request"
    assert headers["x-request-id"]


async def test_head_gets_no_body(address: tuple[str, int]) -> None:
    """RFC 9110: whatever the answer would be."""
    status, headers, body = await ask(address, b"HEAD ?x HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (status, body) == (400, b"")
    assert int(headers["content-length"]) > 0


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
async def test_an_application_that_gives_no_answer(
    api: Api, address: tuple[str, int], method: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """2.5: a 500 in an envelope even then; the traceback goes to the log."""

    class Broken(Request):
        def __init__(self, *_: object, **__: object) -> None:
            raise RuntimeError("a bug before any view")

    api.app.request_class = Broken  # type: ignore[assignment]
    request = method + b" / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    with structlog.testing.capture_logs() as logged:
        status, headers, body = await ask(address, request)
    assert status == 500
    assert headers["x-request-id"]
    if method == b"GET":
        assert json.loads(body)["error"] == "internal_error"
    else:
        assert body == b""
    assert "a bug before any view" in caplog.text + repr(logged)
    assert b"bug" not in body


@pytest.mark.parametrize(
    "headers",
    [
        b"Upgrade: websocket\r\nConnection: upgrade, close\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n",
        b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings, close\r\n"
        b"HTTP2-Settings: AAMAAABk\r\n",
    ],
)
async def test_upgrades_are_ignored(address: tuple[str, int], headers: bytes) -> None:
    """2.5: plain HTTP/1.1 is all there is."""
    status, _, body = await ask(
        address, b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n"
    )
    assert (status, json.loads(body)) == (200, {"status": "ok"})


async def test_http_2_with_prior_knowledge_is_refused(address: tuple[str, int]) -> None:
    """2.5."""
    status, headers, _ = await ask(address, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    assert status in (400, 404)
    assert headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("target", "status"),
    [
        (b"http://example.com/healthz", 200),
        (b"HTTP://example.com/healthz?x=http://y/", 200),
        (b"http://example.com", 404),
        (b"http://example.com?x", 404),
        (b"*", 404),
        (b"/healthz?x", 200),
        (b"/healthz/../v1", 404),
    ],
)
async def test_request_targets(address: tuple[str, int], target: bytes, status: int) -> None:
    """RFC 9112: the absolute form must be understood."""
    request = b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    assert (await ask(address, request))[0] == status


async def test_http_1_0(address: tuple[str, int]) -> None:
    """Old probes need no Host."""
    status, _, body = await ask(address, b"GET /healthz HTTP/1.0\r\n\r\n")
    assert (status, json.loads(body)) == (200, {"status": "ok"})


@given(st.binary(max_size=60))
def test_the_origin_form_is_a_path_or_nothing(target: bytes) -> None:
    """Whatever a client sends, the application sees a path."""
    form = origin_form(target)
    assert form is None or form.startswith(b"/")
