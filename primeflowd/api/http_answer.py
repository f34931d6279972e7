"""Answers as bytes: status line, the header fields that every answer has, and the body.

Pure but for the time of day in `Date`, which is formatted once a second.
"""

import time
from collections.abc import Iterable
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import Final

from primeflowd.api import request_id
from primeflowd.api.answer import Answer

CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

_STATUS_LINES: Final = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}
_JSON: Final = b"content-type: application/json\r\n"
_REQUEST_ID: Final = request_id.HEADER.lower()


def encode(answer: Answer, chosen_id: str, *, close: bool, bodiless: bool = False) -> bytes:
    """A whole answer.

    Args:
        chosen_id: the request's id.
        close: it is the last one on this connection.
        bodiless: it answers a HEAD: all but the body.
    """
    fields = f"content-length: {len(answer.body)}\r\n{_REQUEST_ID}: {chosen_id}\r\n"
    for name, value in answer.headers:
        fields += f"{name.lower()}: {value}\r\n"
    return b"%b%b\r\n%b" % (
        _beginning(answer.status, close, _JSON, int(time.time())),
        fields.encode("latin-1"),
        b"" if bodiless else answer.body,
    )


def start(status: int, fields: bytes, *, close: bool) -> bytes:
    """The head of an answer. `fields`: complete lines, without Date and Connection."""
    return b"%b%b\r\n" % (_beginning(status, close, b"", int(time.time())), fields)


def lines(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Header fields as lines."""
    return b"".join([b"%b: %b\r\n" % field for field in fields])


# Answers of one second differ in little but their lengths and ids.
@lru_cache(maxsize=16)
def _beginning(status: int, close: bool, content_type: bytes, second: int) -> bytes:
    line = _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
    date = formatdate(second, usegmt=True).encode()
    closing = b"connection: close\r\n" if close else b""
    return b"%b%bdate: %b\r\n%b" % (line, content_type, date, closing)
