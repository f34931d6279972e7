"""Reading requests without a socket: however they are cut, and whatever they are.

What servers answer to particular requests is in test_front_door_table.py.
"""

from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from primeflowd.api.http_request import Malformed, RequestReader
from primeflowd.api.known_heads import KnownHeads
from primeflowd.api.request_rules import MAX_HEAD
from tests.api import strict_reader

HEAD = b"POST /a HTTP/1.1\r\nHost: x\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"

TOKENS = [
    b"\r\n",
    b"\r",
    b"\n",
    b"\r\n\r\n",
    b" ",
    b"\t",
    b":",
    b",",
    b";",
    b"\x00",
    b"\x0b",
    b"\x7f",
    b"0",
    b"1",
    b"f",
    b"0\r\n\r\n",
    b"5\r\nhello\r\n",
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /smuggled HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
    b"Host: x\r\n",
    b"Content-Length: 5\r\n",
    b"Content-Length: 0\r\n",
    b"Content-Length : 5\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"Transfer-Encoding : chunked\r\n",
    b" chunked",
    b"Connection: close\r\n",
    b"Connection: upgrade\r\nUpgrade: h2c\r\n",
    b"Expect: 100-continue\r\n",
    b"HTTP/1.0",
    b"CONNECT x:1 HTTP/1.1\r\n",
]

REQUESTS = [
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    HEAD + b"Content-Length: 5\r\n\r\nhello",
    HEAD + b"Content-Length: 21\r\n\r\nGET / HTTP/1.1\r\nHost:",
    HEAD + CHUNKED + b"\r\n5\r\nhello\r\n0\r\n\r\n",
    HEAD + CHUNKED + b"\r\n4;a=b\r\n\r\n\r\n\r\n0\r\nA: b\r\n\r\n",
    HEAD + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 5\r\n\r\nhello",
    HEAD + CHUNKED + b"Connection: upgrade\r\nUpgrade: h2c\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"GET / HTTP/1.0\r\n\r\n",
]


class Read(NamedTuple):
    """What a reader made of a stream: whole requests, and the status of what was none."""

    requests: list[tuple[bytes, bytes, bytes]]
    refused: int | None


def read(*pieces: bytes, known: KnownHeads | None = None) -> Read:
    """Feed the pieces as a connection does that answers each request once it is complete."""
    reader = RequestReader(known)
    found: list[tuple[bytes, bytes, bytes]] = []
    body = b""
    try:
        for piece in pieces:
            reader.feed(piece)
            body += reader.take()
            while reader.head is not None and reader.ended:
                found.append((reader.head.method, reader.head.target, body))
                if not reader.head.keep_alive:
                    return Read(found, None)
                reader.next()
                body = reader.take()
    except Malformed as error:
        return Read(found, error.status)
    finally:
        reader.close()
    return Read(found, None)


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(stream) + 1) for place in places} | {0, len(stream)})
    return [stream[start:end] for start, end in pairwise(ends)]


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Some requests, and some damage to them."""
    stream = b"".join(draw(st.lists(st.sampled_from(REQUESTS), min_size=1, max_size=4)))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(stream)))
        end = min(len(stream), start + draw(st.sampled_from([0, 0, 0, 1, 2, 8])))
        stream = stream[:start] + draw(st.sampled_from([b"", *TOKENS])) + stream[end:]
    return stream


places = st.lists(st.integers(0, 10_000), max_size=12)


@settings(max_examples=1500)
@given(streams(), places)
@example(HEAD + CHUNKED + b"\r\n5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\nhello", [])
def test_no_request_is_seen_that_a_strict_reader_does_not_see(
    stream: bytes, places: list[int]
) -> None:
    """2.5: however it is cut. Such a request would be a smuggled one."""
    strict = strict_reader.requests(stream)
    seen = read(*cut(stream, places)).requests
    assert seen == [
        (each.method, b"/*" if each.target == b"*" else each.target, each.body)
        for each in strict[: len(seen)]
    ]


@settings(max_examples=500)
@given(streams(), places)
def test_cuts_change_nothing(stream: bytes, places: list[int]) -> None:
    """2.5: segments are the network's business."""
    assert read(*cut(stream, places)) == read(stream)


@settings(max_examples=1000)
@given(streams(), places)
def test_known_heads_change_nothing(stream: bytes, places: list[int]) -> None:
    """2.5: whatever was seen before, and wherever a request that is known is cut."""
    known = KnownHeads()
    seen = read(stream)
    for request_bytes in (*REQUESTS, stream):
        read(request_bytes, known=known)
    assert read(stream, known=known) == seen
    assert read(*cut(stream, places), known=known) == seen


def test_a_head_is_known_while_it_lasts() -> None:
    """Whole, and of a request whose body has a declared length, however little of that came with
    it; the fields are taken once."""
    known = KnownHeads()
    for request_bytes in REQUESTS:
        heads = []
        body_at = request_bytes.find(b"\r\n\r\n") + 4
        for end in (len(request_bytes), len(request_bytes), body_at):
            reader = RequestReader(known)
            reader.feed(request_bytes[:end])
            heads.append(reader.head)
        is_plain = b"Content-Length" in request_bytes and b"Upgrade" not in request_bytes
        assert (heads[0] is heads[1] is heads[2]) == is_plain
    known.forget()
    reader = RequestReader(known)
    reader.feed(REQUESTS[1])
    assert reader.head == known.get(REQUESTS[1].removesuffix(b"hello"))


def test_the_memory_for_heads_is_bounded() -> None:
    known = KnownHeads()
    head = HEAD + b"A: %d\r\nContent-Length: 0\r\n\r\n"
    for number in range(300):
        read(head % number, known=known)
    assert known.get(head % 299) is not None
    assert sum(known.get(head % number) is not None for number in range(300)) <= 256
    long = HEAD + b"A: " + b"a" * 3_000 + b"\r\nContent-Length: 0\r\n\r\n"
    read(long, known=known)
    assert known.get(long) is None


@pytest.mark.parametrize("request_bytes", REQUESTS)
def test_every_cut(request_bytes: bytes) -> None:
    """2.5: byte by byte, and two requests cut anywhere."""
    whole = read(request_bytes)
    assert (len(whole.requests), whole.refused) == (1, None)
    assert read(*(bytes([byte]) for byte in request_bytes)) == whole
    twice = request_bytes * 2
    expected = read(twice)
    for place in range(len(twice)):
        assert read(twice[:place], twice[place:]) == expected


@given(st.binary(max_size=200))
def test_any_bytes(stream: bytes) -> None:
    """2.5: nothing but Malformed is raised."""
    read(stream)


def test_a_request_is_complete_with_its_last_byte() -> None:
    """It is not held back until more comes."""
    known = KnownHeads()
    for request_bytes in REQUESTS:
        for _ in range(2):
            reader = RequestReader(known)
            reader.feed(request_bytes[:-1])
            assert not reader.ended
            reader.feed(request_bytes[-1:])
            assert reader.ended


def test_what_follows_a_request_waits() -> None:
    """Not a byte of the next one is parsed before its turn, however wrong it is."""
    reader = RequestReader()
    reader.feed(REQUESTS[3] + b"\x00")
    assert reader.ended
    with pytest.raises(Malformed):
        reader.next()


@pytest.mark.parametrize("framing", [b"Content-Length: 100000\r\n", CHUNKED])
def test_a_body_is_not_collected(framing: bytes) -> None:
    """2.10: what nobody takes is what one read gave."""
    known = KnownHeads()
    read(HEAD + framing + b"\r\n", known=known)
    reader = RequestReader(known)
    body = b"x" * 99_999 if framing != CHUNKED else b"186a0\r\n" + b"x" * 99_999
    reader.feed(HEAD + framing + b"\r\n" + body)
    assert len(reader.take()) == 99_999
    assert reader.take() == b""
    assert not reader.ended


@pytest.mark.parametrize("framing", [b"Content-Length: 100000\r\n", CHUNKED])
def test_the_rest_of_a_body_is_discarded(framing: bytes) -> None:
    """A refusal need not wait for the body, nor cost the connection."""
    known = KnownHeads()
    read(HEAD + framing + b"\r\n", known=known)
    reader = RequestReader(known)
    reader.feed(HEAD + framing + b"\r\n" + (b"" if framing != CHUNKED else b"186a0\r\n"))
    reader.next()
    assert reader.idle
    for _ in range(100):
        reader.feed(b"x" * 1000)
        assert reader.take() == b""
    assert reader.head is None
    reader.feed((b"" if framing != CHUNKED else b"\r\n0\r\n\r\n") + REQUESTS[0])
    assert reader.ended


def test_a_read_may_give_more_than_is_likely_to_come() -> None:
    """So that nobody has to look whether anything is left; within bounds."""
    reader = RequestReader()
    most = 0
    for length in (5, 40_000, 300_000, 5):
        reader.feed(HEAD + b"Content-Length: %d\r\n\r\n" % length)
        assert length < reader.wanted <= 262_144 or length == 300_000
        most = max(most, reader.wanted)
        reader.feed(b"x" * length)
        reader.next()
        assert reader.wanted == min(length + 16_384, 262_144)
    assert most == 262_144


@pytest.mark.parametrize(
    "start",
    [
        b"\r\n" * 100,
        b"GET /",
        b"GET / HTTP/1.1\r\nA: ",
        HEAD + CHUNKED + b"\r\n5;",
        HEAD + CHUNKED + b"\r\n0\r\nA: ",
    ],
)
@pytest.mark.parametrize("step", [1, 1000, 16_384])
def test_what_has_no_end_is_refused(start: bytes, step: int) -> None:
    """2.5: heads, chunk extensions and trailers have a limit, at whatever pace they come."""
    reader = RequestReader()
    reader.feed(start)
    more = (b"\r\n" if start.startswith(b"\r") else b"b") * step
    refused, fed = None, len(start)
    while refused is None and fed < 4 * MAX_HEAD:
        fed += len(more)
        try:
            reader.feed(more)
        except Malformed as error:
            refused = error.status
    assert refused == 431
    assert fed <= MAX_HEAD + len(more) + len(HEAD + CHUNKED) + 2


@pytest.mark.parametrize("step", [1000, 100_000])
@pytest.mark.parametrize(("size", "refused"), [(MAX_HEAD, None), (MAX_HEAD + 1, 431)])
def test_the_longest_head(step: int, size: int, refused: int | None) -> None:
    """2.5: to the byte."""
    start = b"GET / HTTP/1.1\r\nHost: x\r\nA: "
    head = start + b"b" * (size - len(start) - 4) + b"\r\n\r\n"
    seen = read(*(head[place : place + step] for place in range(0, len(head), step)))
    assert (len(seen.requests), seen.refused) == (refused is None, refused)


def test_the_fields_of_a_head() -> None:
    """2.1: names in lower case, values without the space around them, repeated ones in order."""
    reader = RequestReader()
    reader.feed(b"GET /a?b HTTP/1.1\r\nHOST: x\r\nA: \t b c \t\r\nB:\r\na:d\r\n\r\n")
    head = reader.head
    assert head is not None
    assert (head.method, head.target, head.version) == (b"GET", b"/a?b", "1.1")
    assert head.headers == [(b"host", b"x"), (b"a", b"b c"), (b"b", b""), (b"a", b"d")]
    assert head.fields == {b"host": [b"x"], b"a": [b"b c", b"d"], b"b": [b""]}


def test_a_body_in_tiny_chunks_has_no_such_limit() -> None:
    """Wasteful is not wrong."""
    body = b"1\r\nx\r\n" * 20_000
    seen = read(HEAD + CHUNKED + b"\r\n", body, b"0\r\n\r\n")
    assert seen == Read([(b"POST", b"/a", b"x" * 20_000)], None)
