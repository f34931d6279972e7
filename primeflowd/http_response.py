"""Reading one HTTP/1.1 response within limits; bytes in, fields out, no I/O.

Guarantees: however the bytes are cut, the result is the same; at most `max_head` bytes of heads
(1xx responses included) and `max_body` bytes of body are kept; the status of a complete head
stands, whatever becomes of the body after it. Content codings are left as they are.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, Final

import httptools

CHUNK: Final = 16_384
"""Most bytes read from a socket at once."""


class BadResponse(ValueError):
    """What came is no HTTP response, or its head is over the limit."""


class Headers(Sequence[tuple[str, str]]):
    """The fields of a response's head: names in lower case, values as Latin-1, in the order
    received. They are read when somebody asks for them. For most answers nobody does: a success is
    told by its status, and to make text of all fields would cost half of what reading it does."""

    __slots__ = ("_fields", "_received")

    def __init__(self, received: bytes) -> None:
        """`received`: what a ResponseReader was fed, and has found a status in; with or without
        what came after the head."""
        self._received = received
        self._fields: tuple[tuple[str, str], ...] | None = None

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def __getitem__(self, index: Any) -> Any:
        return self._read()[index]

    def __repr__(self) -> str:
        return repr(self._read())

    def _read(self) -> tuple[tuple[str, str], ...]:
        if self._fields is None:
            self._fields = _FieldReader().read(self._received)
        return self._fields


class _FieldReader:
    """Reads the fields of a final response."""

    def __init__(self) -> None:
        self._fields: list[tuple[str, str]] = []
        self._complete = False

    def read(self, received: bytes) -> tuple[tuple[str, str], ...]:
        self._parser = _parser(self)
        # What is wrong behind the head has been seen to.
        with suppress(httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._parser.feed_data(received)
        # As ResponseReader.close.
        del self._parser
        return tuple(self._fields)

    def on_header(self, name: bytes, value: bytes) -> None:
        # After the head come trailers, or the head of a stray response.
        if not self._complete:
            header = name.decode("latin-1").lower(), value.decode("latin-1").rstrip(" \t")
            self._fields.append(header)

    def on_headers_complete(self) -> None:
        if self._complete:
            return
        if self._parser.get_status_code() >= 200:
            self._complete = True
        else:
            self._fields.clear()


class _Message:
    """A parser, and what it tells of the response that it reads; ready for one when it is made.

    Attributes:
        feed: takes the next bytes.
        status: of the final response, None until its head is complete.
        body: what `gather` has found of it.
        complete: it has arrived whole.
        sound: once complete, so is the parser: it can read another response, of any connection.
    """

    __slots__ = (
        "_parser",
        "_parts",
        "body",
        "complete",
        "feed",
        "on_body",
        "sound",
        "status",
    )

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        # The parser calls this, and the methods below that are named like it.
        self.on_body = self._parts.append
        self._parser = _parser(self)
        self.feed = self._parser.feed_data
        self.start()

    def start(self) -> None:
        """Expect another response."""
        self.status: int | None = None
        self.body = b""
        self.complete = self.sound = False

    def gather(self) -> None:
        """Add the parts that were fed last to the body."""
        self.body += b"".join(self._parts)
        self._parts.clear()

    def close(self) -> None:
        """Read no more. The parser holds our methods and we hold it: unbroken, this circle would
        stay in memory until the garbage collector comes by."""
        del self._parser, self.feed

    def on_message_begin(self) -> None:
        # Bytes behind a response answer nothing that was asked: the connection is out of step.
        if self.complete:
            self.sound = False

    def on_headers_complete(self) -> None:
        if self.status is not None:
            return
        status = self._parser.get_status_code()
        if status >= 200:
            self.status = status
            # Asked here because the parser forgets it with the end of the message.
            self.sound = self._parser.should_keep_alive()
        elif status < 100 or status == 101:
            raise BadResponse(f"unexpected status {status}")

    def on_message_complete(self) -> None:
        # Not that of a status below 200, nor that of a stray response.
        if self.status is not None and not self.complete:
            self.complete = True
            if self._parts:
                self.gather()


class Parsers:
    """The parsers of many connections, for one thread.

    A connection has one from the first bytes of a response to its end. Mostly that is one `feed`,
    and so they all use the same one, which is in the processor's caches: one for each, unused since
    its last response, would cost a third more, and a kilobyte for each idle connection.

    Attributes:
        idle: those not in use; at most as many as responses were under way at once.
    """

    def __init__(self) -> None:
        self.idle: list[_Message] = []


class ResponseReader:
    """Reads the responses of one connection, one after the other; `start()` begins each.

    Attributes:
        status: of the final response, None until its head is complete.
        headers: of that response, but for its trailers.
        body: the first bytes of it, up to the limit. As headers, it is of this response only once
            `feed` has returned True or `end` was called, and there is a status.
        received: bytes fed since `start()`.
        wanted: how many bytes to read next, at most. Exact for the head: its limit is never passed.
        keep_alive: the response arrived whole, within the limits and with nothing behind it, and
            the other side will answer another request on this connection.
    """

    __slots__ = (
        "_head",
        "_idle",
        "_max_body",
        "_max_head",
        "_message",
        "_wanted_first",
        "body",
        "headers",
        "keep_alive",
        "received",
        "status",
        "wanted",
    )

    def __init__(self, max_head: int, max_body: int, parsers: Parsers | None = None) -> None:
        """`parsers`: shared with other connections; None: its own."""
        self._max_head = max_head
        self._max_body = max_body
        self._idle = (parsers or Parsers()).idle
        self._message: _Message | None = None
        self._wanted_first = min(CHUNK, max_head)
        self.headers: Sequence[tuple[str, str]] = ()
        self.body = b""
        self.start()

    def start(self) -> None:
        """Expect a new response; only after one that left `keep_alive` true, or at first."""
        self.status: int | None = None
        self.received = 0
        self.wanted = self._wanted_first
        self.keep_alive = False
        # All that came until there was a status, see Headers.
        self._head = b""

    def close(self) -> None:
        """Read no more."""
        if self._message is not None:
            self._message.close()
            self._message = None

    def feed(self, data: bytes) -> bool:
        """Take the next bytes, at most `wanted`; True when no more are needed.

        Raises:
            BadResponse: only while the head is incomplete.
        """
        message = self._message
        if message is None:
            message = self._message = self._idle.pop() if self._idle else _Message()
        self.received += len(data)
        if self.status is None:
            self._head += data
        try:
            message.feed(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if message.status is None:
                if isinstance(error.__context__, BadResponse):
                    raise error.__context__ from None
                raise BadResponse(f"the answer is not HTTP/1.1: {error}") from error
            message.sound = False
            if not message.complete:
                message.gather()
        else:
            if not message.complete and self._needs_more(message):
                return False
        self.status = message.status
        self.end()
        return True

    def end(self) -> None:
        """No more will be fed; what came of it has to do."""
        message = self._message
        assert message is not None
        self.headers = Headers(self._head)
        self.body = message.body[: self._max_body]
        # Else it is of no use to anybody, nor is the connection, and is closed with it.
        if message.complete and message.sound:
            self.keep_alive = len(message.body) <= self._max_body
            self._message = None
            message.start()
            self._idle.append(message)

    def _needs_more(self, message: _Message) -> bool:
        self.status = message.status
        if self.status is None:
            if self.received >= self._max_head:
                raise BadResponse(f"the head of the answer is over {self._max_head} bytes")
            self.wanted = min(CHUNK, self._max_head - self.received)
            return True
        self.wanted = CHUNK
        message.gather()
        # The framing of a chunked body (extensions, trailers, tiny chunks) is no part of the body
        # but could go on for ever; it may take as much as a head.
        return (
            len(message.body) <= self._max_body
            and self.received <= 2 * self._max_head + self._max_body
        )


def _parser(protocol: object) -> httptools.HttpResponseParser:
    parser = httptools.HttpResponseParser(protocol)
    # RFC 9112, 2.2: a lone LF may end a line. Hand-made receivers send it, and as we pass nothing
    # on there is nobody whom a different reading could deceive.
    parser.set_dangerous_leniencies(lenient_optional_cr_before_lf=True)
    return parser
