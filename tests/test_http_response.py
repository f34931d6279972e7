"""http_response.py: the same result however the bytes are cut, and nothing beyond the limits."""

import gc
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primeflowd.http_response import CHUNK, BadResponse, Parsers, ResponseReader

MAX_HEAD = 1024
MAX_BODY = 64


def read(data: bytes, cuts: list[int] | None = None) -> tuple[ResponseReader, bool]:
    """A reader that was fed `data`, cut as a socket might; whether it wants no more."""
    reader = ResponseReader(MAX_HEAD, MAX_BODY)
    position = 0
    done = False
    for cut in [*(cuts or []), len(data)]:
        while position < cut and not done:
            piece = data[position : min(cut, position + reader.wanted)]
            done = reader.feed(piece)
            position += len(piece)
    return reader, done


COMPLETE = [
    (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", True),
    (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", True),
    (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n", 304, b"", True),
    (b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n", 302, b"", True),
    (b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", 200, b"", True),
    (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", False),
    (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", False),
    (
        b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nok",
        *(200, b"ok", True),
    ),
    (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2;x=y\r\nok\r\n1\r\n!\r\n0\r\n\r\n",
        *(200, b"ok!", True),
    ),
    (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Trailer: t\r\n\r\n",
        *(200, b"", True),
    ),
    (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nX-Early: 1\r\n\r\n"
        b"HTTP/1.1 500 No\r\nContent-Length: 1\r\n\r\n!",
        *(500, b"!", True),
    ),
    (b"HTTP/1.1 599 Odd\r\nContent-Length: 0\r\n\r\n", 599, b"", True),
    (b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok", 200, b"ok", True),
]


@pytest.mark.parametrize(("data", "status", "body", "keep_alive"), COMPLETE)
def test_complete_responses(data: bytes, status: int, body: bytes, keep_alive: bool) -> None:
    """5.2: chunked, by length, without body, after 1xx, HTTP/1.0, lone LFs."""
    for cuts in ([], list(range(1, len(data)))):
        reader, done = read(data, cuts)
        assert done
        assert (reader.status, reader.body, reader.keep_alive) == (status, body, keep_alive)
        assert not {"x-early", "x-trailer"} & {name for name, _ in reader.headers}


@given(st.sampled_from(COMPLETE), st.lists(st.integers(0, 200)).map(sorted))
def test_cuts_make_no_difference(response: tuple[bytes, int, bytes, bool], cuts: list[int]) -> None:
    """A socket may cut a response anywhere."""
    data, *expected = response
    reader, done = read(data, [cut for cut in cuts if cut < len(data)])
    assert done
    assert [reader.status, reader.body, reader.keep_alive] == expected


def test_headers() -> None:
    """Names in lower case, values as Latin-1 without blanks around, in order, doubles kept."""
    reader, _ = read(
        b"HTTP/1.1 200 \xe9\r\nX-A:  1 \r\nx-a: \xe9\r\nEmpty:\r\nContent-Length: 0\r\n\r\n"
    )
    expected = (("x-a", "1"), ("x-a", "é"), ("empty", ""), ("content-length", "0"))
    assert tuple(reader.headers) == expected
    assert (len(reader.headers), reader.headers[1], repr(reader.headers)) == (
        *(4, ("x-a", "é")),
        repr(expected),
    )


@given(st.lists(st.integers(0, 90)).map(sorted))
def test_headers_of_the_final_response_alone(cuts: list[int]) -> None:
    """However it is cut: without those of 1xx responses, trailers and what comes behind."""
    reader, done = read(
        b"HTTP/1.1 103 Early Hints\r\nX-Early: 1\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nX-A: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"0\r\nX-Trailer: t\r\n\r\nHTTP/1.1 200 OK\r\nX-Stray: 1\r\n\r\n",
        cuts,
    )
    assert done
    assert tuple(reader.headers) == (("x-a", "1"), ("transfer-encoding", "chunked"))


@pytest.mark.parametrize(
    "data",
    [
        b"hello",
        b"\x16\x03\x01\x02\x00",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 1000 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 099 No\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nX : y\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: \x00\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"<html><body>502 Bad Gateway</body></html>",
    ],
)
def test_garbage(data: bytes) -> None:
    """5.3: what is not HTTP, or switches away from it, is a response error."""
    for cuts in ([], list(range(1, len(data)))):
        with pytest.raises(BadResponse):
            read(data, cuts)


def head_of(size: int) -> bytes:
    start, end = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX: ", b"\r\n\r\n"
    return start + b"x" * (size - len(start) - len(end)) + end


def test_head_limit_is_exact() -> None:
    """7: a head of exactly the limit is read, one byte more is refused."""
    reader, done = read(head_of(MAX_HEAD))
    assert done
    assert reader.status == 200
    with pytest.raises(BadResponse, match="over 1024 bytes"):
        read(head_of(MAX_HEAD + 1))


@pytest.mark.parametrize(
    "endless",
    [
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000,
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 5000,
        b"HTTP/1.1 200 OK\r\n" + b"y" * 5000,
        b"HTTP/1.1 200 " + b"y" * 5000,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 1000,
        b"\r\n" * 3000,
    ],
)
def test_head_limit_holds_against_every_kind_of_head(endless: bytes) -> None:
    """7: endless headers, names, values, reasons, 1xx responses and blank lines."""
    with pytest.raises(BadResponse, match="over 1024 bytes"):
        read(endless)


@pytest.mark.parametrize("chunked", [False, True])
def test_body_limit(chunked: bool) -> None:
    """5.5: a body of exactly the limit is whole; of a longer one the first bytes are kept."""

    def response(size: int) -> bytes:
        if chunked:
            framed = b"%x\r\n%b\r\n0\r\n\r\n" % (size, b"b" * size)
            return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + framed
        return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (size, b"b" * size)

    reader, done = read(response(MAX_BODY))
    assert done
    assert (reader.body, reader.keep_alive) == (b"b" * MAX_BODY, True)
    reader, done = read(response(MAX_BODY + 1), [len(response(MAX_BODY + 1)) - 6])
    assert reader.body == b"b" * MAX_BODY
    # Not a byte more is asked for once it is over.
    data = response(1000)
    reader, done = read(data, list(range(1, len(data))))
    assert done
    assert reader.received <= data.index(b"\r\n\r\n") + 4 + 5 + MAX_BODY + 1
    assert reader.body == b"b" * MAX_BODY
    # Big ones are not read to their end only to save a connection.
    reader, done = read(response(10 * CHUNK))
    assert done
    assert reader.received <= 2 * CHUNK
    assert (reader.body, reader.keep_alive) == (b"b" * MAX_BODY, False)


def test_body_limit_within_one_read() -> None:
    """5.5: chunks beyond the limit add nothing, though they came along with the first ones."""
    chunks = b"".join(b"a\r\n%b\r\n" % (b"%d" % n * 10) for n in range(10))
    reader, _ = read(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
    assert reader.body == b"".join(b"%d" % n * 10 for n in range(10))[:MAX_BODY]


@pytest.mark.parametrize(
    "endless",
    [
        b"1;" + b"x" * 100_000,  # a chunk extension
        b"0\r\n" + b"X: y\r\n" * 20_000,  # trailers
        b"0\r\nX: " + b"y" * 100_000,  # one trailer
    ],
)
def test_framing_of_a_body_is_limited_too(endless: bytes) -> None:
    """7: what is around the body cannot go on for ever either; the status stands."""
    reader, done = read(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + endless)
    assert done
    assert reader.received <= 2 * MAX_HEAD + MAX_BODY + CHUNK
    assert (reader.status, reader.keep_alive) == (200, False)
    kept = [each for each in gc.get_referents(reader) if isinstance(each, bytes)]
    assert sum(map(len, kept)) <= MAX_HEAD + MAX_BODY


def test_broken_body_leaves_the_status() -> None:
    """5.2: a 2xx whose body breaks off is a 2xx."""
    reader, done = read(b"HTTP/1.1 201 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\nzz\r\n")
    assert done
    assert (reader.status, reader.body, reader.keep_alive) == (201, b"ok", False)


def test_body_until_close() -> None:
    """Without a length the body goes on until the connection closes."""
    reader, done = read(b"HTTP/1.1 200 OK\r\n\r\nabc")
    assert not done
    reader.end()
    assert (reader.status, reader.body, reader.keep_alive) == (200, b"abc", False)


@pytest.mark.parametrize(
    "stray", [b"H", b"HTTP/1.1 200 OK\r\nX: y\r\nContent-Length: 2\r\n\r\nno", b"oops"]
)
def test_bytes_behind_a_response_spoil_the_connection(stray: bytes) -> None:
    """An answer to nothing must never be taken for the answer to the next request."""
    reader, done = read(b"HTTP/1.1 204 No Content\r\n\r\n" + stray)
    assert done
    assert (reader.status, reader.body, reader.keep_alive) == (204, b"", False)
    assert tuple(reader.headers) == ()


def test_one_reader_for_many_responses() -> None:
    """Nothing of a response is left when the next one begins; not its trailers either."""
    reader = ResponseReader(MAX_HEAD, MAX_BODY)
    for data, status, body, keep_alive in COMPLETE * 2:
        if not keep_alive:
            continue
        reader.start()
        assert (reader.status, reader.received, reader.keep_alive) == (None, 0, False)
        assert reader.feed(data)
        assert (reader.status, reader.body, reader.keep_alive) == (status, body, True)
        assert reader.received == len(data)
    assert "x-trailer" not in {name for name, _ in reader.headers}


@given(
    st.lists(st.sampled_from([response for response in COMPLETE if response[3]]), max_size=6),
    st.lists(st.booleans(), min_size=6, max_size=6),
)
def test_what_came_before_makes_no_difference(
    responses: list[tuple[bytes, int, bytes, bool]], cut: list[bool]
) -> None:
    """A reader that has read others says what a new one says."""
    reader = ResponseReader(MAX_HEAD, MAX_BODY)
    for (data, *_), in_two in zip(responses, cut, strict=False):
        reader.start()
        assert (reader.status, reader.received, reader.keep_alive) == (None, 0, False)
        if in_two:
            assert not reader.feed(data[:20])
        assert reader.feed(data[20:] if in_two else data)
        fresh, _ = read(data)
        assert tuple(reader.headers) == tuple(fresh.headers)
        for name in ("status", "body", "received", "keep_alive"):
            assert getattr(reader, name) == getattr(fresh, name), name


@given(
    st.lists(st.lists(st.sampled_from(COMPLETE), min_size=1, max_size=3), min_size=3, max_size=3),
    st.lists(st.integers(0, 2), max_size=60),
)
def test_responses_of_other_connections_make_no_difference(
    responses: list[list[tuple[bytes, int, bytes, bool]]], turns: list[int]
) -> None:
    """Readers that share parsers say what each says with its own, however their pieces mix; also
    beside garbage, answers to nothing, and answers that break off."""
    parsers = Parsers()
    readers = [ResponseReader(MAX_HEAD, MAX_BODY, parsers) for _ in responses]
    odd = [b"hello", b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nxstray", b"HTTP/1.1 100 C"]

    def read_piecewise(
        reader: ResponseReader, to_come: list[tuple[bytes, int, bytes, bool]]
    ) -> Iterator[None]:
        for data, status, body, keep_alive in to_come:
            reader.start()
            middle = len(data) // 2
            assert not reader.feed(data[:middle])
            yield
            assert reader.feed(data[middle:])
            assert (reader.status, reader.body, reader.keep_alive) == (status, body, keep_alive)
            fresh, _ = read(data)
            assert tuple(reader.headers) == tuple(fresh.headers)
            if not keep_alive:
                return
            yield

    going = [read_piecewise(*each) for each in zip(readers, responses, strict=True)]
    for turn in [*turns, *[0, 1, 2] * 6]:
        next(going[turn], None)
        one = ResponseReader(MAX_HEAD, MAX_BODY, parsers)
        with suppress(BadResponse):
            one.feed(odd[turn])
        one.close()
    assert all(next(each, "over") == "over" for each in going)


def test_one_parser_serves_all_that_come_whole() -> None:
    """A connection holds a parser only while a response comes in."""
    parsers = Parsers()
    readers = [ResponseReader(MAX_HEAD, MAX_BODY, parsers) for _ in range(5)]
    for reader in readers * 2:
        reader.start()
        assert reader.feed(COMPLETE[0][0])
    assert len(parsers.idle) == 1
    readers[0].start()
    assert not readers[0].feed(COMPLETE[0][0][:5])
    assert not parsers.idle


@pytest.mark.parametrize("data", [b"HTTP/1.1 200 OK\r\n", b"oops", COMPLETE[5][0], COMPLETE[0][0]])
def test_closed_connections_leave_memory_at_once(data: bytes) -> None:
    """Not when the garbage collector comes by."""
    parsers = Parsers()
    reader = ResponseReader(MAX_HEAD, MAX_BODY, parsers)
    gc.collect()
    gc.disable()
    try:
        with suppress(BadResponse):
            reader.feed(data)
        reader.close()
        del reader
        assert gc.collect() == 0
    finally:
        gc.enable()


@given(st.binary(max_size=300), st.lists(st.integers(0, 300)).map(sorted))
def test_no_bytes_do_harm(data: bytes, cuts: list[int]) -> None:
    """Whatever comes: a status, nothing yet, or BadResponse."""
    for start in (
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    ):
        try:
            reader, _ = read(start + data, [cut for cut in cuts if cut < len(data)])
        except BadResponse:
            pass
        else:
            assert len(reader.body) <= MAX_BODY
