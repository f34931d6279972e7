"""Reading one HTTP/1.1 response within limits; bytes in, fields out, no I/O.

Guarantees: however the bytes are cut, the result is the same; at most `max_head` bytes of heads
(1xx responses included) and `max_body` bytes of body are kept; the status of a complete head
stands, whatever becomes of the body after it. Content codings are left as they are.
"""

from typing import Final

import httptools

CHUNK: Final = 16_384
"""Most bytes read from a socket at once."""


class BadResponse(ValueError):
    """What came is no HTTP response, or its head is over the limit."""


class ResponseReader:
    """Reads the responses of one connection, one after the other; `start()` begins each.

    Attributes:
        status: of the final response, None until its head is complete.
        headers: names in lower case, values as Latin-1, in the order received.
        body: the first bytes of it, up to the limit. As headers, it is of this response only once
            `feed` has returned True or `end` was called, and there is a status.
        received: bytes fed since `start()`.
        wanted: how many bytes to read next, at most. Exact for the head: its limit is never passed.
        keep_alive: the response arrived whole, within the limits and with nothing behind it, and
            the other side will answer another request on this connection.
    """

    __slots__ = (
        "_body_size",
        "_complete",
        "_fields",
        "_max_body",
        "_max_head",
        "_parser",
        "_parts",
        "_persistent",
        "_stray",
        "_wanted_first",
        "body",
        "headers",
        "keep_alive",
        "received",
        "status",
        "wanted",
    )

    def __init__(self, max_head: int, max_body: int) -> None:
        self._max_head = max_head
        self._max_body = max_body
        self._parser = httptools.HttpResponseParser(self)
        # RFC 9112, 2.2: a lone LF may end a line. Hand-made receivers send it, and as we pass
        # nothing on there is nobody whom a different reading could deceive.
        self._parser.set_dangerous_leniencies(lenient_optional_cr_before_lf=True)
        self._wanted_first = min(CHUNK, max_head)
        self.headers: tuple[tuple[str, str], ...] = ()
        self.body = b""
        self.start()

    def start(self) -> None:
        """Expect a new response; only after one that left `keep_alive` true, or at first."""
        self.status: int | None = None
        self.received = 0
        self.wanted = self._wanted_first
        self.keep_alive = False
        self._fields: list[tuple[str, str]] = []
        self._parts: list[bytes] = []
        self._body_size = 0
        self._complete = self._persistent = self._stray = False

    def close(self) -> None:
        """Read no more. The parser holds our methods and we hold it: unbroken, this circle would
        keep every closed connection in memory until the garbage collector comes by."""
        del self._parser

    def feed(self, data: bytes) -> bool:
        """Take the next bytes, at most `wanted`; True when no more are needed.

        Raises:
            BadResponse: only while the head is incomplete.
        """
        self.received += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if self.status is not None:
                self.end()
                return True
            if isinstance(error.__context__, BadResponse):
                raise error.__context__ from None
            raise BadResponse(f"the answer is not HTTP/1.1: {error}") from error
        if self.status is None:
            if self.received >= self._max_head:
                raise BadResponse(f"the head of the answer is over {self._max_head} bytes")
            self.wanted = min(CHUNK, self._max_head - self.received)
            return False
        # The framing of a chunked body (extensions, trailers, tiny chunks) is no part of the body
        # but could go on for ever; it may take as much as a head.
        if not (
            self._complete
            or self._body_size > self._max_body
            or self.received > 2 * self._max_head + self._max_body
        ):
            self.wanted = CHUNK
            return False
        self.end()
        if self._complete and self._persistent and not self._stray:
            self.keep_alive = self._body_size <= self._max_body
        return True

    def end(self) -> None:
        """No more will be fed; what came of it has to do."""
        self.headers = tuple(self._fields)
        self.body = b"".join(self._parts)

    # What the parser calls.

    def on_message_begin(self) -> None:
        # Bytes behind a response answer nothing that was asked: the connection is out of step.
        if self._complete:
            self._stray = True

    def on_header(self, name: bytes, value: bytes) -> None:
        # After the head come trailers, or the head of a stray response.
        if self.status is None:
            header = name.decode("latin-1").lower(), value.decode("latin-1").rstrip(" \t")
            self._fields.append(header)

    def on_headers_complete(self) -> None:
        if self.status is not None:
            return
        status = self._parser.get_status_code()
        if status >= 200:
            self.status = status
            # Asked here because the parser forgets it with the end of the message.
            self._persistent = self._parser.should_keep_alive()
            return
        self._fields.clear()
        if status < 100 or status == 101:
            raise BadResponse(f"unexpected status {status}")

    def on_body(self, data: bytes) -> None:
        room = self._max_body - self._body_size
        self._body_size += len(data)
        if room > 0 and not self._complete:
            self._parts.append(data[:room])

    def on_message_complete(self) -> None:
        if self.status is not None:
            self._complete = True
