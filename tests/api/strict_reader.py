"""A second reading of HTTP/1.1 requests, to hold the front door's against.

Written straight from RFC 9112 for whole streams: slow, strict and short, and sharing nothing with
http_request.py or its parser. Two leniencies of the RFC are in it, since the parser has them:
empty lines before a request (2.2), and several spaces in a request line (3).
"""

import re
from typing import NamedTuple

_LINE = re.compile(rb"(GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS|TRACE) +([!-~]+) +HTTP/1\.([01])")
_FIELD = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*?)[ \t]*")
_CHUNK = re.compile(rb"([0-9A-Fa-f]+)(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?")


class Request(NamedTuple):
    """A complete request; `last` if no other may follow it on its connection."""

    method: bytes
    target: bytes
    body: bytes
    last: bool


def requests(stream: bytes) -> list[Request]:
    """The requests in a stream, up to the first thing that is none."""
    found: list[Request] = []
    while stream:
        stream = stream.lstrip(b"\r\n")
        head, end, rest = stream.partition(b"\r\n\r\n")
        parsed = _head(head) if end else None
        if parsed is None:
            break
        method, target, version, fields = parsed
        framed = _body(fields, rest)
        if framed is None:
            break
        body, stream = framed
        tokens = b",".join(_all(fields, b"connection")).lower().split(b",")
        last = version == b"0" or b"close" in [token.strip() for token in tokens]
        found.append(Request(method, target, body, last))
        if last:
            break
    return found


def _head(head: bytes) -> tuple[bytes, bytes, bytes, list[tuple[bytes, bytes]]] | None:
    first, *lines = head.split(b"\r\n")
    start = _LINE.fullmatch(first)
    matches = [_FIELD.fullmatch(line) for line in lines]
    if start is None or None in matches:
        return None
    fields = [(match[1].lower(), match[2]) for match in matches if match]
    hosts = len(_all(fields, b"host"))
    if hosts > 1 or (hosts == 0 and start[3] == b"1"):
        return None
    return start[1], start[2], start[3], fields


def _body(fields: list[tuple[bytes, bytes]], rest: bytes) -> tuple[bytes, bytes] | None:
    """The body and what is behind it; None if it is not all there, or its framing is at fault."""
    lengths, codings = _all(fields, b"content-length"), _all(fields, b"transfer-encoding")
    if len(lengths) + len(codings) > 1:
        return None
    if codings:
        return _chunks(rest) if codings[0].lower() == b"chunked" else None
    if lengths and not re.fullmatch(rb"[0-9]+", lengths[0]):
        return None
    size = int(lengths[0]) if lengths else 0
    return (rest[:size], rest[size:]) if len(rest) >= size else None


def _chunks(rest: bytes) -> tuple[bytes, bytes] | None:
    body = b""
    while True:
        line, end, rest = rest.partition(b"\r\n")
        match = _CHUNK.fullmatch(line) if end else None
        if match is None:
            return None
        size = int(match[1], 16)
        if size == 0:
            break
        if rest[size : size + 2] != b"\r\n":
            return None
        body, rest = body + rest[:size], rest[size + 2 :]
    while True:
        line, end, rest = rest.partition(b"\r\n")
        if not end:
            return None
        if not line:
            return body, rest
        if _FIELD.fullmatch(line) is None:
            return None


def _all(fields: list[tuple[bytes, bytes]], name: bytes) -> list[bytes]:
    return [value for each, value in fields if each == name]
