"""One table of raw requests, asked of both servers, with the same answers expected (contract 2).

Behind each request comes a probe. A connection that was kept answers it, with 200; one that was
not has nothing behind its last answer. So the statuses of an entry also say how many requests the
server saw, which is all that smuggling is about. Where Hypercorn cannot be made to do the same,
the entry has its answers too, and why.
"""

import json
import re
from collections.abc import AsyncIterator
from typing import Any, NamedTuple, cast

import pytest
from pytest import param  # noqa: PT013 - the table is unreadable otherwise

from primeflowd.api.errors import TYPES
from tests.api.harness import Api, open_api
from tests.api.wire import SERVERS, Address, Reply, converse, replies, serving

PROBE = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
BATCH = b'{"plan_id":"gold"}'
ID = re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
PASSING = ("x-request-id", "date", "connection")


class Expected(NamedTuple):
    """The statuses of all answers, the probe's 200 included where the connection lives on."""

    statuses: tuple[int, ...]
    hypercorn: tuple[int, ...] | None = None
    because: str = ""
    probe: bytes = PROBE


def ok(*statuses: int) -> Expected:
    return Expected((*statuses, 200))


def last(*statuses: int) -> Expected:
    """The server closes, whatever follows."""
    return Expected(statuses)


def bye(*statuses: int) -> Expected:
    """The client announced that this is all."""
    return Expected(statuses, probe=b"")


def get(*lines: bytes, start: bytes = b"GET /healthz HTTP/1.1", host: bytes = b"Host: x") -> bytes:
    """A request without a body."""
    return b"\r\n".join([start, *([host] if host else []), *lines, b"", b""])


def post(
    *lines: bytes, body: bytes = BATCH, path: bytes = b"/v1/batches", version: bytes = b"1.1"
) -> bytes:
    """A request whose framing is among `lines`. KEY stands for an API key."""
    start = b"POST " + path + b" HTTP/" + version
    fixed = [b"Host: x", b"X-Reevit-Key: KEY", b"Content-Type: application/json"]
    return b"\r\n".join([start, *fixed, *lines, b"", body])


def sized(body: bytes = BATCH) -> bytes:
    return b"Content-Length: %d" % len(body)


CHUNKED = b"Transfer-Encoding: chunked"
IN_CHUNKS = b'5\r\n{"pla\r\nd\r\nn_id":"gold"}\r\n0\r\n\r\n'

LENIENT = "h11 takes a line feed alone for an end of line, as RFC 9112, 2.2, allows"
FOLDED = "h11 joins the fields before anybody can see that there were two"
TRAILER = "h11 drops the trailers unseen"

TABLE = [
    # Plain requests.
    param(get(), ok(200), id="get"),
    param(get() * 3, ok(200, 200, 200), id="pipelined"),
    param(post(sized(), body=BATCH), ok(201), id="post"),
    param(post(sized(), body=BATCH) * 3, ok(201, 201, 201), id="posts-pipelined"),
    param(post(sized()) + get() + post(sized()), ok(201, 200, 201), id="both-pipelined"),
    param(get() + b"x\r\n\r\n", last(200, 400), id="pipelined-garbage"),
    param(get(b"Connection: close"), bye(200), id="close"),
    param(get(b"Connection: keep-alive, Close"), bye(200), id="close-in-a-list"),
    param(post(sized(), b"Connection: close"), bye(201), id="post-close"),
    param(get(start=b"GET /nowhere HTTP/1.1"), ok(404), id="nowhere"),
    param(get(start=b"HEAD /healthz HTTP/1.1"), ok(200), id="head"),
    param(get(start=b"HEAD /v1/batches HTTP/1.1"), ok(401), id="head-refused"),
    param(get(start=b"OPTIONS /v1/batches HTTP/1.1"), ok(204), id="options"),
    param(get(start=b"DELETE /v1/batches HTTP/1.1"), ok(405), id="method-not-allowed"),
    param(get(start=b"TRACE /v1/batches HTTP/1.1"), ok(405), id="trace"),
    param(get(start=b"QUERY /v1/batches HTTP/1.1"), ok(405), id="query-method"),
    param(get(start=b"GET /v1/batches HTTP/1.1"), ok(401), id="no-key"),
    param(get(start=b"GET /healthz HTTP/1.0", host=b""), bye(200), id="http-1.0"),
    param(
        get(b"Connection: keep-alive", start=b"GET /healthz HTTP/1.0"),
        bye(200),
        id="http-1.0-keep-alive",
    ),
    param(post(sized(), version=b"1.0"), bye(201), id="http-1.0-post"),
    # The routes that the front door answers itself, spelt in all ways.
    param(post(sized(), path=b"/v1/batches?x=%20"), ok(201), id="query"),
    param(post(sized(), path=b"/v1/batche%73"), ok(201), id="percent-encoded"),
    param(post(sized(), path=b"http://x/v1/batches"), ok(201), id="post-absolute-form"),
    param(post(sized(), path=b"/v1/batches/"), ok(404), id="slash"),
    param(post(sized(), path=b"//v1/batches"), ok(201), id="two-slashes"),
    param(post(sized(b"{}"), body=b"{}", path=b"/v1/batches/bulk"), ok(400), id="bulk-empty"),
    param(
        post(sized(b'{"batches":[{}]}'), body=b'{"batches":[{}]}', path=b"/v1/batches/bulk"),
        ok(200),
        id="bulk",
    ),
    param(post(sized(b"{"), body=b"{"), ok(400), id="not-json"),
    param(post(sized(b'{"x":1}'), body=b'{"x":1}'), ok(400), id="unknown-field"),
    param(post(sized()).replace(b"application/json", b"text/plain"), ok(415), id="not-json-type"),
    param(post(sized()).replace(b"KEY", b"pfk_" + b"0" * 40), ok(401), id="wrong-key"),
    param(post(sized(), b"Authorization: Bearer x"), ok(401), id="two-keys"),
    param(post(sized(), b"X-Org-Id: other"), ok(403), id="wrong-org"),
    param(post(sized(), b"X-Org-Id: acme", b"X-Organization-Id: b"), ok(400), id="two-orgs"),
    param(post(sized(), b"Idempotency-Key: a", b"Idempotency-Key: b"), ok(400), id="two-idem"),
    param(post(sized(), b"Idempotency-Key: a") * 2, ok(201, 201), id="idempotent"),
    # Framing.
    param(post(body=b""), ok(400), id="no-framing"),
    param(post(b"Content-Length: 0", body=b""), ok(400), id="empty"),
    param(post(b"Content-Length: 00018"), ok(201), id="length-with-zeros"),
    param(post(b"Content-Length: 18 \t"), ok(201), id="length-with-space-behind"),
    param(post(b"Content-Length: +18"), last(400), id="length-with-sign"),
    param(post(b"Content-Length: -1"), last(400), id="length-negative"),
    param(post(b"Content-Length: 0x12"), last(400), id="length-hexadecimal"),
    param(post(b"Content-Length: 1_8"), last(400), id="length-underscore"),
    param(post(b"Content-Length: 1 8"), last(400), id="length-two-numbers"),
    param(post(b"Content-Length: 18.0"), last(400), id="length-fraction"),
    param(post(b"Content-Length: " + b"9" * 30), last(400), id="length-endless"),
    param(post(b"Content-Length: \xb2"), last(400), id="length-superscript"),
    param(post(b"Content-Length:"), last(400), id="length-empty"),
    param(post(b"Content-Length: 18", b"Content-Length: 17"), last(400), id="lengths-differ"),
    param(
        post(b"Content-Length: 18", b"Content-Length: 18"),
        Expected((400,), (201, 200), FOLDED),
        id="length-twice",
    ),
    param(post(b"Content-Length: 18, 18"), Expected((400,), (201, 200), FOLDED), id="length-list"),
    param(post(b"Content-Length: 18, 17"), last(400), id="length-list-differs"),
    param(post(b"Content-Length : 18"), last(400), id="space-before-colon"),
    param(post(b"Content-Length\t: 18"), last(400), id="tab-before-colon"),
    param(post(b"Content-Length\x00: 18"), last(400), id="nul-in-a-name"),
    param(post(b"Content_Length: 18", b"Content-Length: 18"), ok(201), id="underscore"),
    param(post(sized(), CHUNKED), last(400), id="length-and-chunked"),
    param(post(CHUNKED, sized(), body=IN_CHUNKS), last(400), id="chunked-and-length"),
    param(post(CHUNKED, body=IN_CHUNKS), ok(201), id="chunked"),
    param(post(CHUNKED, body=IN_CHUNKS) * 2, ok(201, 201), id="chunked-pipelined"),
    param(post(b"transfer-encoding: CHUNKED", body=IN_CHUNKS), ok(201), id="chunked-upper-case"),
    param(
        post(CHUNKED, body=IN_CHUNKS.replace(b"0\r\n", b"0\r\nA: b\r\nC: d\r\n")),
        ok(201),
        id="trailers",
    ),
    param(
        post(CHUNKED, body=IN_CHUNKS.replace(b"0\r\n", b"0\r\nContent-Length: 3\r\n")),
        Expected((400,), (201, 200), TRAILER),
        id="length-in-trailers",
    ),
    param(
        post(CHUNKED, body=IN_CHUNKS.replace(b"0\r\n", b"0\r\nA b\r\n")),
        last(400),
        id="malformed-trailers",
    ),
    param(post(CHUNKED, body=IN_CHUNKS.replace(b"5\r", b"5;a=b\r")), ok(201), id="extension"),
    param(post(CHUNKED, body=IN_CHUNKS.replace(b"5\r", b"05\r")), ok(201), id="chunk-size-zeros"),
    param(post(CHUNKED, body=IN_CHUNKS.replace(b"5\r", b"0x5\r")), last(400), id="chunk-size-0x"),
    param(post(CHUNKED, body=IN_CHUNKS.replace(b"5\r", b"-5\r")), last(400), id="chunk-size-minus"),
    param(post(CHUNKED, body=IN_CHUNKS.replace(b"5\r", b"+5\r")), last(400), id="chunk-size-plus"),
    param(post(CHUNKED, body=IN_CHUNKS.replace(b"5\r", b"zz\r")), last(400), id="chunk-size-zz"),
    param(
        post(CHUNKED, body=IN_CHUNKS.replace(b"5\r", b"f" * 30 + b"\r")),
        last(400),
        id="chunk-size-endless",
    ),
    param(post(CHUNKED, body=IN_CHUNKS.replace(b"pla\r", b"plan\r")), last(400), id="chunk-long"),
    param(post(CHUNKED, body=IN_CHUNKS.replace(b"pla\r", b"pl\r")), last(400), id="chunk-short"),
    param(
        post(CHUNKED, body=IN_CHUNKS.replace(b"5\r\n", b"5\n")),
        last(400),
        id="chunk-line-feed",
    ),
    param(post(CHUNKED, body=IN_CHUNKS, version=b"1.0"), bye(201), id="chunked-http-1.0"),
    param(post(b"Transfer-Encoding: gzip", body=IN_CHUNKS), last(501), id="gzip"),
    param(post(b"Transfer-Encoding: identity"), last(501), id="identity"),
    param(post(b"Transfer-Encoding: xchunked", body=IN_CHUNKS), last(501), id="xchunked"),
    param(post(b"Transfer-Encoding: gzip, chunked", body=IN_CHUNKS), last(501), id="gzip-chunked"),
    param(
        post(b"Transfer-Encoding: chunked, identity", body=IN_CHUNKS),
        Expected((400,), (501,), "the parser sees the framing at fault, h11 an unknown coding"),
        id="chunked-identity",
    ),
    param(
        post(b"Transfer-Encoding: chunked, chunked", body=IN_CHUNKS),
        Expected((400,), (501,), "as above"),
        id="chunked-chunked",
    ),
    param(
        post(CHUNKED, CHUNKED, body=IN_CHUNKS),
        Expected((400,), (501,), "as above"),
        id="chunked-x2",
    ),
    param(
        post(CHUNKED, b"Transfer-Encoding: identity", body=IN_CHUNKS),
        Expected((400,), (501,), "as above"),
        id="chunked-then-identity",
    ),
    param(
        post(b"Transfer-Encoding:", body=IN_CHUNKS),
        Expected((400,), (501,), "as above"),
        id="coding-empty",
    ),
    param(post(b"Transfer-Encoding: \x0bchunked", body=IN_CHUNKS), last(400), id="coding-control"),
    param(
        post(b" Transfer-Encoding: chunked", sized()),
        Expected((400,), (415, 200), "h11 unfolds the line, into the content type before it"),
        id="coding-behind-space",
    ),
    # Heads.
    param(b"hello\r\n\r\n", last(400), id="no-request"),
    param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", last(400), id="tls"),
    param(b"GET /healthz\r\n\r\n", last(400), id="http-0.9"),
    param(get(start=b"GET /healthz HTTP/0.9"), last(400), id="version-0.9"),
    param(get(start=b"GET /healthz HTTP/1.2"), last(400), id="version-1.2"),
    param(get(start=b"GET /healthz HTTP/2.0"), last(400), id="version-2.0"),
    param(get(start=b"GET /healthz HTTP/1.1 "), last(400), id="space-behind-version"),
    param(get(start=b"GET /healthz http/1.1"), last(400), id="version-lower-case"),
    param(get(start=b"GET /healthz ICE/1.0"), last(400), id="other-protocol"),
    param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", last(400), id="http-2-with-prior-knowledge"),
    param(
        get(start=b"GET  /healthz HTTP/1.1"),
        Expected((200, 200), (400,), "the parser splits at spaces, as RFC 9112, 3, allows"),
        id="two-spaces",
    ),
    param(get(start=b"GET\t/healthz HTTP/1.1"), last(400), id="tab-behind-method"),
    param(get(start=b"GET /heal thz HTTP/1.1"), last(400), id="space-in-target"),
    param(get(start=b"GET /heal\x00thz HTTP/1.1"), last(400), id="nul-in-target"),
    param(get(start=b"GET /\xe4 HTTP/1.1"), last(400), id="latin-1-in-target"),
    param(get(start=b"get /healthz HTTP/1.1"), last(400), id="method-lower-case"),
    param(get(start=b"FOO /healthz HTTP/1.1"), last(400), id="method-unknown"),
    param(get(start=b"PROPFIND /healthz HTTP/1.1"), last(400), id="method-of-webdav"),
    param(get(start=b"G\x00T /healthz HTTP/1.1"), last(400), id="nul-in-method"),
    param(get(start=b" GET /healthz HTTP/1.1"), last(400), id="space-before-method"),
    param(
        b"\r\n" + get(),
        Expected((200, 200), (400,), "h11 does not skip an empty line, as RFC 9112, 2.2, asks"),
        id="empty-line-first",
    ),
    param(get(host=b""), last(400), id="no-host"),
    param(get(b"Host: x"), last(400), id="host-twice"),
    param(get(b"Host: y", start=b"GET /healthz HTTP/1.0"), last(400), id="host-twice-http-1.0"),
    param(get(host=b"Host:"), ok(200), id="host-empty"),
    param(get(host=b"Host: a b"), last(400), id="host-with-space"),
    param(get(host=b"Host: x/y"), last(400), id="host-with-path"),
    param(get(host=b"Host: user@x"), last(400), id="host-with-user"),
    param(get(host=b"Host: [::1]:80"), ok(200), id="host-v6"),
    param(get(b"no colon"), last(400), id="no-colon"),
    param(get(b": x"), last(400), id="no-name"),
    param(get(b"A b: c"), last(400), id="space-in-name"),
    param(get(b"A(b): c"), last(400), id="bracket-in-name"),
    param(get(b"A: \x00"), last(400), id="nul"),
    param(get(b"A: b\x01c"), last(400), id="control"),
    param(get(b"A: b\x7f"), last(400), id="delete"),
    param(get(b"A: b\x0bc"), last(400), id="vertical-tab"),
    param(get(b"A: b\rc"), last(400), id="carriage-return"),
    param(get(b"A: \xe4\xc3\xa4"), ok(200), id="obs-text"),
    param(get(b"A:", b"B: \t c \t"), ok(200), id="white-space"),
    param(get(b"A: b\nC: d"), Expected((400,), (200, 200), LENIENT), id="line-feed"),
    param(
        get().replace(b"\r\n", b"\n"), Expected((400,), (200, 200), LENIENT), id="line-feeds-only"
    ),
    param(get()[:-2] + b"\n", Expected((400,), (200, 200), LENIENT), id="line-feed-at-the-end"),
    param(
        get(b"A: b", b" c"),
        Expected((400,), (200, 200), "h11 unfolds; RFC 9112, 5.2, leaves the choice"),
        id="obs-fold",
    ),
    param(get(b" c", host=b""), last(400), id="space-behind-start-line"),
    param(get(b"A: " + b"b" * 15_000), ok(200), id="head-long"),
    param(get(b"A: " + b"b" * 70_000), last(431), id="head-too-long"),
    param(get(start=b"GET /" + b"b" * 70_000 + b" HTTP/1.1"), last(431), id="target-too-long"),
    param(get(*[b"A: b"] * 99), ok(200), id="headers-100"),
    param(get(*[b"A: b"] * 100), last(431), id="headers-101"),
    # Request targets.
    param(get(start=b"GET http://example.com/healthz HTTP/1.1"), ok(200), id="absolute-form"),
    param(get(start=b"GET HTTP://x/healthz?a=http://y/ HTTP/1.1"), ok(200), id="absolute-query"),
    param(get(start=b"GET http://example.com HTTP/1.1"), ok(404), id="absolute-no-path"),
    param(get(start=b"GET http://example.com?x HTTP/1.1"), ok(404), id="absolute-query-only"),
    param(get(start=b"GET ftp://x/ HTTP/1.1"), last(400), id="absolute-ftp"),
    param(get(start=b"GET http: HTTP/1.1"), last(400), id="scheme-only"),
    param(get(start=b"GET ?a=b HTTP/1.1"), last(400), id="query-only"),
    param(get(start=b"GET healthz HTTP/1.1"), last(400), id="no-slash"),
    param(get(start=b"GET x:80 HTTP/1.1"), last(400), id="authority-form"),
    param(get(start=b"CONNECT x:80 HTTP/1.1"), last(400), id="connect"),
    param(get(start=b"CONNECT /healthz HTTP/1.1"), last(400), id="connect-path"),
    param(get(start=b"OPTIONS * HTTP/1.1"), ok(404), id="asterisk-form"),
    param(get(start=b"GET /healthz/../v1 HTTP/1.1"), ok(404), id="dots"),
    param(get(start=b"GET /healthz#x HTTP/1.1"), ok(404), id="fragment"),
    param(get(start=b"GET /%2e%2e/%00%ff HTTP/1.1"), ok(404), id="percent-encoded-nonsense"),
    # Upgrades are ignored.
    param(
        get(b"Upgrade: websocket", b"Connection: upgrade", b"Sec-WebSocket-Version: 13"),
        ok(200),
        id="websocket",
    ),
    param(
        get(b"Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings", b"HTTP2-Settings: AAMA"),
        ok(200),
        id="h2c",
    ),
    param(post(sized(), b"Upgrade: h2c", b"Connection: Upgrade"), ok(201), id="h2c-with-body"),
    param(
        post(CHUNKED, b"Upgrade: h2c", b"Connection: Upgrade", body=IN_CHUNKS),
        ok(201),
        id="h2c-with-chunks",
    ),
    # 100-continue, for those who do not wait for it.
    param(post(sized(), b"Expect: 100-continue"), ok(201), id="expect"),
    param(post(sized(), b"Expect: 100-continue", version=b"1.0"), bye(201), id="expect-http-1.0"),
    param(post(sized(), b"Expect: something"), ok(201), id="expect-something"),
    param(get(b"Expect: 100-continue"), ok(200), id="expect-without-body"),
]


@pytest.fixture(params=SERVERS)
async def server(request: pytest.FixtureRequest, api: Api) -> AsyncIterator[tuple[str, Address]]:
    """A server's name and where it is."""
    async with serving(SERVERS[request.param], api) as (address, _):
        yield request.param, address


@pytest.mark.parametrize(("sent", "expected"), TABLE)
async def test_table(
    api: Api, server: tuple[str, Address], sent: bytes, expected: Expected
) -> None:
    """2.5, 2.7: as many answers as requests, an envelope for each that fails, and no more."""
    name, address = server
    received = await converse(address, sent.replace(b"KEY", api.key.encode()) + expected.probe)
    found = replies(received, [sent.partition(b" ")[0]])
    statuses = expected.statuses
    if name == "hypercorn" and expected.hypercorn is not None:
        assert expected.because
        statuses = expected.hypercorn
    assert tuple(reply.status for reply in found) == statuses
    for index, reply in enumerate(found):
        check_reply(reply, bodiless=sent.startswith(b"HEAD") and index == 0)
    assert found[-1].headers.get("connection") == "close"


def check_reply(reply: Reply, *, bodiless: bool = False) -> None:
    """What every answer has (contract 2.5, 2.7)."""
    assert 1 <= len(reply.headers["x-request-id"]) <= 128
    assert reply.headers["date"].endswith(" GMT")
    if reply.status == 204 or bodiless:
        assert reply.body == b""
        return
    assert reply.headers["content-type"] == "application/json"
    content: Any = json.loads(reply.body)
    if reply.status >= 400:
        assert set(content) - {"details"} == {"error", "code", "message"}
        assert content["error"] == (TYPES.get(reply.status) or TYPES[reply.status // 100 * 100])


SAME = [entry for entry in TABLE if cast("Expected", entry.values[1]).hypercorn is None]


async def test_both_servers_say_the_same() -> None:
    """2.5: a client can tell them apart by nothing but how clearly they say that they close."""
    said = []
    for serve in SERVERS.values():
        async with open_api() as api, serving(serve, api) as (address, _):
            said.append([await _conversation(address, api, *entry.values) for entry in SAME])
    for entry, hypercorn, lean in zip(SAME, *said, strict=True):
        assert lean == hypercorn, entry.id


async def _conversation(
    address: Address, api: Api, sent: Any, expected: Any
) -> list[tuple[int, dict[str, str], bytes]]:
    """The answers to an entry of the table, without what no two answers have in common."""
    received = await converse(address, sent.replace(b"KEY", api.key.encode()) + expected.probe)
    return [
        (
            reply.status,
            {name: text for name, text in reply.headers.items() if name not in PASSING},
            ID.sub(b"ID", reply.body),
        )
        for reply in replies(received, [sent.partition(b" ")[0]])
    ]
