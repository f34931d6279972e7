"""Which requests are refused whatever they ask for. Pure; the same for both servers.

What a parser cannot know or lets through: methods and versions that nobody here speaks, a host
that names none, and above all framing that two readers could understand differently, which is how
requests are smuggled (RFC 9112, 11.2). In doubt a request is refused and its connection closed.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Final, TypeAlias

MAX_HEAD: Final = 16_384
"""Longest head of a request in bytes; also the longest trailer section of a chunked body."""

MAX_HEADERS: Final = 100

METHODS: Final = frozenset(
    (b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"TRACE", b"QUERY")
)
"""Those that exist, most of them used by no route. Case matters. CONNECT is not among them: there
is nothing to connect to."""

Grouped: TypeAlias = Mapping[bytes, list[bytes]]
"""The values of each header field, by its name in lower case."""

_VERSIONS: Final = ("1.1", "1.0")
_HOST: Final = re.compile(rb"[A-Za-z0-9\-._~!$&'()*+,;=%:\[\]]*")
# All that RFC 9110, 5.5, calls invalid; a tab is a space.
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


def grouped(headers: Iterable[tuple[bytes, bytes]]) -> dict[bytes, list[bytes]]:
    """Header fields by name; the names are in lower case already."""
    groups: dict[bytes, list[bytes]] = {}
    for name, value in headers:
        if name in groups:
            groups[name].append(value)
        else:
            groups[name] = [value]
    return groups


def refusal(method: bytes, version: str, headers: Grouped) -> int | None:
    """The status that a request with this head is refused with; None if it is not."""
    if method not in METHODS or version not in _VERSIONS:
        return 400
    hosts = headers.get(b"host", ())
    if len(hosts) != 1:
        if hosts or version == "1.1":
            return 400
    elif not _HOST.fullmatch(hosts[0]):
        return 400
    codings = headers.get(b"transfer-encoding")
    if codings is not None:
        if b"content-length" in headers:
            return 400
        if len(codings) != 1 or codings[0].lower() != b"chunked":
            return 501
    return None


def has_control_characters(headers: Grouped) -> bool:
    """Whether a value has one; some parsers look for no more than NUL."""
    return any(_CONTROL.search(value) for values in headers.values() for value in values)


def origin_form(target: bytes) -> bytes | None:
    """A request target as path and query; None for one that names no path (RFC 9112, 3.2).

    `*` and what it asks about (the server) has no path here either, but `OPTIONS *` is harmless:
    it becomes a path that nothing is at.
    """
    if target.startswith(b"/"):
        return target
    if target == b"*":
        return b"/*"
    scheme, separator, rest = target.partition(b"://")
    if not separator or scheme.lower() not in (b"http", b"https"):
        return None
    authority_end = min(
        (i for i in (rest.find(b"/"), rest.find(b"?")) if i >= 0), default=len(rest)
    )
    path = rest[authority_end:]
    return path if path.startswith(b"/") else b"/" + path
