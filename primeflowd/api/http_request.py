"""Reading HTTP/1.1 requests off a connection, one after the other; bytes in, fields out, no I/O.

Guarantees: however the bytes are cut, the result is the same; the parser is never given a byte
beyond the end of the present request, so that where one ends is decided in one place and what
follows it stays raw until its turn; at most `MAX_HEAD` bytes of a head or of chunk framing are
taken, at most `MAX_HEADERS` fields, and of a body no more than was just fed.

A request whose head is known already (known_heads.py) and came in one piece needs no parser.

Fails with Malformed, after which the connection can only be closed.
"""

from typing import Final

import httptools

from primeflowd.api.known_heads import Fields, Head, KnownHeads
from primeflowd.api.request_rules import (
    MAX_HEAD,
    MAX_HEADERS,
    Grouped,
    grouped,
    origin_form,
    refusal,
)

# Bytes worth reading from a socket at once.
_LEAST_AT_ONCE: Final = 16_384
_MOST_AT_ONCE: Final = 262_144
_END: Final = b"\r\n\r\n"


class Malformed(Exception):
    """What came is no request that can be answered but by `status`."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class RequestReader:
    """The requests of one connection.

    `known` is shared by the connections of one server; without it each head is taken apart.

    Attributes:
        head: of the present request, None until it is complete.
        ended: the whole of the present request has been fed.
    """

    __slots__ = (
        "_begun",
        "_discarding",
        "_framing",
        "_headers",
        "_in_head",
        "_known",
        "_last_length",
        "_left",
        "_parser",
        "_parts",
        "_refused",
        "_rest",
        "_tail",
        "_target",
        "_unparsed",
        "_upgrading",
        "ended",
        "head",
    )

    def __init__(self, known: KnownHeads | None = None) -> None:
        self._known = known
        self._parser = httptools.HttpRequestParser(self)
        # Fed, but beyond the end of the present request.
        self._rest = b""
        # Of the body of the last request, as declared.
        self._last_length = 0
        self._start()

    def _start(self) -> None:
        self.head: Head | None = None
        self.ended = False
        self._in_head = True
        self._begun = False
        self._discarding = False
        self._unparsed = False
        self._upgrading = False
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._parts: list[bytes] = []
        # Bytes of the body that are still to come; None if it ends as its chunks say.
        self._left: int | None = None
        # Bytes of the head, or of chunk framing since the last byte of the body.
        self._framing = 0
        # The last bytes fed if no empty line ends with them: one may be cut anywhere.
        self._tail = b""
        self._refused: int | None = None

    def close(self) -> None:
        """Read no more. The parser holds our methods and we hold it: unbroken, this circle would
        keep every closed connection in memory until the garbage collector comes by."""
        del self._parser

    @property
    def idle(self) -> bool:
        """Nothing has come of a request that is still to be answered."""
        return self._discarding or (self._in_head and self._framing == 0)

    @property
    def left(self) -> int | None:
        """Bytes of the body still to come; None if that is not known."""
        return self._left

    @property
    def answers_head(self) -> bool:
        """The request is a HEAD, as far as can be told, be it malformed."""
        return self._parser.get_method() == b"HEAD"

    @property
    def wanted(self) -> int:
        """How many bytes to read next, at most: more than are likely to come, as a read that gives
        less than it may has emptied the socket. A client sends requests of much the same length."""
        return min((self._left or self._last_length) + _LEAST_AT_ONCE, _MOST_AT_ONCE)

    def feed(self, data: bytes) -> None:
        """Take the next bytes.

        Raises:
            Malformed: also if what is wrong comes after a request that is still to be discarded.
        """
        if self._rest:
            data = self._rest + data
        if self._known is not None and self._in_head and not self._framing and self._is_known(data):
            return
        view = memoryview(data)
        size = len(data)
        position = 0
        while position < size:
            if self.ended:
                if not self._discarding:
                    break
                self._start()
            left = self._left
            if left:
                end = min(position + left, size)
                self._left = left - (end - position)
                if self._unparsed:
                    self._take_body(view[position:end])
                else:
                    self._hand_over(view[position:end])
            else:
                end = self._framing_end(data, position)
                self._parse_framing(view[position:end])
            position = end
        if self.ended and self._discarding:
            self._start()
        self._rest = data[position:]

    def _is_known(self, data: bytes) -> bool:
        """Take the first request in `data` without the parser; False if its head is new, or cut.

        The parser never hears of it, nor of what of its body is still to come: for it the next
        request follows the last one it was given.
        """
        assert self._known is not None
        end = data.find(_END) + len(_END)
        head = self._known.get(data[:end])
        if head is None:
            return False
        assert head.content_length is not None
        body_end = end + head.content_length
        self.head = head
        self._in_head = False
        self._unparsed = True
        self._left = max(0, body_end - len(data))
        self._take_body(data[end:body_end])
        self._rest = data[body_end:]
        return True

    def _take_body(self, piece: memoryview | bytes) -> None:
        """Take a piece of a body without the parser; `_left` counts it already."""
        if piece and not self._discarding:
            self._parts.append(bytes(piece))
        self.ended = not self._left

    def take(self) -> bytes:
        """What was fed of the body since the last time."""
        parts = self._parts
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        return body

    def next(self) -> None:
        """Go on to the next request. What is to come of the body of this one is thrown away.

        Raises:
            Malformed: the next request is, as far as it has come.
        """
        if self.head is not None:
            self._last_length = self.head.content_length or 0
        if self.ended:
            rest, self._rest = self._rest, b""
            self._start()
            if rest:
                self.feed(rest)
        else:
            self.head = None
            self._parts.clear()
            self._discarding = True

    def _framing_end(self, data: bytes, position: int) -> int:
        """Where the piece from `position` ends that the parser may have next.

        A body of declared length ends where it was declared to; everything else that can end a
        request ends in an empty line. So cutting behind each of those (some will be in the middle
        of a chunk, which does no harm) never hands over two requests at once.
        """
        tail = self._tail
        self._tail = b""
        if tail and position == 0:
            found = (tail + data[:3]).find(_END)
            if found >= 0:
                return found + len(_END) - len(tail)
        found = data.find(_END, position)
        if found >= 0:
            return found + len(_END)
        size = len(data)
        self._tail = (tail + data[max(position, size - 3) :])[-3:]
        return size

    def _parse_framing(self, piece: memoryview) -> None:
        self._framing += len(piece)
        in_head = self._in_head
        if in_head and self._framing > MAX_HEAD:
            raise Malformed(431)
        self._hand_over(piece)
        if in_head is not self._in_head:
            if self._known is not None and self._framing == len(piece) and self.head is not None:
                self._known.remember(bytes(piece), self.head)
            self._framing = 0
        elif self._framing > MAX_HEAD:
            # Chunk extensions or trailers without end.
            raise Malformed(431)

    def _hand_over(self, piece: memoryview | bytes) -> None:
        try:
            self._parser.feed_data(piece)
        except httptools.HttpParserUpgrade:
            self._ignore_upgrade()
        except httptools.HttpParserError as error:
            raise Malformed(self._refused or 400) from error

    def _ignore_upgrade(self) -> None:
        """Go on after a head that asks for another protocol (RFC 9110 lets us ignore that).

        The parser takes what follows for that protocol. If it is a body, another parser is told
        to expect one that is framed in the same way.
        """
        self._upgrading = False
        if self.ended:
            return
        self._begun = False
        self._parser = httptools.HttpRequestParser(self)
        framing = b"transfer-encoding: chunked"
        if self._left is not None:
            framing = b"content-length: %d" % self._left
        self._hand_over(b"POST / HTTP/1.1\r\n%b\r\n\r\n" % framing)

    # What the parser calls.

    def on_message_begin(self) -> None:
        # Were we ever to disagree with the parser on where a request ends, then the connection
        # must not live.
        if self._begun:
            raise Malformed(400)
        self._begun = True

    def on_url(self, target: bytes) -> None:
        if self._in_head:
            self._target += target

    def on_header(self, name: bytes, value: bytes) -> None:
        # After the head come trailers.
        if not self._in_head:
            return
        if len(self._headers) >= MAX_HEADERS:
            self._refused = 431
            raise Malformed(431)
        self._headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        if not self._in_head:
            return
        parser = self._parser
        method = parser.get_method()
        version = parser.get_http_version()
        fields = grouped(self._headers)
        self._refused = refusal(method, version, fields)
        target = origin_form(self._target)
        if self._refused or target is None:
            raise Malformed(self._refused or 400)
        lengths = fields.get(b"content-length")
        content_length = int(lengths[0]) if lengths else None
        if b"transfer-encoding" not in fields:
            self._left = content_length or 0
        self._upgrading = parser.should_upgrade()
        self._in_head = False
        is_current = version == "1.1"
        self.head = Head(
            method,
            target,
            version,
            self._headers,
            fields,
            Fields(fields),
            content_length,
            # Nobody but us sees a difference between 1.0 with and without keep-alive.
            is_current and parser.should_keep_alive(),
            is_current and b"expect" in fields and _expects_continue(fields),
        )

    def on_body(self, data: bytes) -> None:
        self._framing = 0
        if not self._discarding:
            self._parts.append(data)

    def on_message_complete(self) -> None:
        # With an upgrade this comes before the body.
        self.ended = not self._upgrading or self._left == 0


def _expects_continue(fields: Grouped) -> bool:
    return any(value.strip().lower() == b"100-continue" for value in fields[b"expect"])
