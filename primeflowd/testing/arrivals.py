"""Requests as they arrived at a receiver: reading them from a connection, and writing them down."""

import base64
from collections import deque
from typing import TypeAlias

import httptools
import msgspec

from primeflowd.instants import Micros

Parts: TypeAlias = tuple[str, str, list[tuple[str, str]], bytes, bool]
"""method, target, headers, body, and whether the client keeps the connection."""


class Received(msgspec.Struct, frozen=True, kw_only=True):
    """A request as it arrived.

    Attributes:
        number, connection: counted from 1, over all and by connection accepted.
        headers: in order, names as they were spelled.
        arrived_at: when its last byte was there.
    """

    number: int
    connection: int
    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    arrived_at: Micros

    def header(self, name: str) -> str | None:
        """First value of the header `name`, in any case, or None."""
        return next((v for n, v in self.headers if n.lower() == name.lower()), None)

    def attempt(self) -> int:
        """Which attempt of its delivery this is; 1 if it does not say."""
        return int(self.header("Primeflow-Attempt") or 1)


def line(request: Received) -> bytes:
    """A request as one line of JSON; a body that is not UTF-8 is in `body_base64`."""
    fields = msgspec.to_builtins(request, builtin_types=(bytes,))
    try:
        fields["body"] = request.body.decode()
    except UnicodeDecodeError:
        fields["body_base64"] = base64.b64encode(fields.pop("body")).decode()
    return msgspec.json.encode(fields) + b"\n"


class RequestReader:
    """Reads the requests of one connection; pipelined ones too.

    Attributes:
        ready: requests that are complete, oldest first.
        head_complete: of the request after them, the head is there and not all of its body.
    """

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self.ready: deque[Parts] = deque()
        self.head_complete = False
        self._reset()

    def _reset(self) -> None:
        self._target = b""
        self._headers: list[tuple[str, str]] = []
        self._body: list[bytes] = []

    def feed(self, data: bytes | bytearray) -> None:
        self._parser.feed_data(data)

    def parts(self, *, keep_alive: bool) -> Parts:
        """The request as far as it was read."""
        method = self._parser.get_method().decode("latin-1")
        target = self._target.decode("latin-1")
        return method, target, self._headers, b"".join(self._body), keep_alive

    def on_message_begin(self) -> None:
        self.head_complete = False
        self._reset()

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers.append((name.decode("latin-1"), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        self.head_complete = True
        self._keep_alive = self._parser.should_keep_alive()

    def on_body(self, data: bytes) -> None:
        self._body.append(data)

    def on_message_complete(self) -> None:
        self.head_complete = False
        self.ready.append(self.parts(keep_alive=self._keep_alive))
