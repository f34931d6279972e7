"""The head of a request, from its header lines to the bytes on the wire.

Header lines are text here, each with the line break that ends it: what we set ourselves is put
together in one go, and what others chose comes in by `header_lines`, which checks it. So every
header is checked where it comes from, and only there.

Pure.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

import msgspec

from primeflowd.callback_url import Target
from primeflowd.durations import Duration

OWN_HEADERS: Final = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "expect", "trailer", "upgrade"}
)
"""In lower case, those of the exchange itself: from elsewhere they could disagree with what is
sent."""

# Leaves what is printable as it is, and nothing else.
_MASK: Final = bytes(code if 0x20 <= code < 0x7F else ord("?") for code in range(256))
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class Request(msgspec.Struct, frozen=True, gc=False):
    """A POST to make. `lines` are its header lines but for Host and Content-Length. `timeout` is
    its own, where it has one."""

    target: Target
    lines: str
    body: bytes
    timeout: Duration | None = None


def header_lines(headers: Iterable[tuple[str, str]]) -> str:
    """These headers as they go over the wire.

    Raises:
        ValueError: one could not be sent without changing the message around it. The message
            names it, but not its value.
    """
    lines = ""
    for name, value in headers:
        _check_name(name)
        if not is_value(value):
            raise ValueError(f"the value of the header {name} is not printable ASCII")
        lines += f"{name}: {value}\r\n"
    return lines


def with_others(lines: str, headers: Iterable[tuple[str, str]]) -> str:
    """`lines`, and those of `headers` of which they have none by that name.

    Raises:
        ValueError: as header_lines.
    """
    taken = {line.partition(":")[0].lower() for line in lines.splitlines()}
    return lines + header_lines(each for each in headers if each[0].lower() not in taken)


def is_name(text: str) -> bool:
    """Whether a header can have this name, by HTTP's rules for one."""
    return _TOKEN.fullmatch(text) is not None


def is_value(text: str) -> bool:
    """Whether a header can have this value, by ours: printable ASCII."""
    if not text.isascii():
        return False
    # In half the time that isprintable() takes, which looks up each character.
    encoded = text.encode()
    return encoded.translate(_MASK) == encoded


def encode(request: Request) -> bytes:
    """The request as it goes over the wire.

    Raises:
        ValueError: it is not ASCII, though it was to be.
    """
    target, body = request.target, request.body
    head = (
        f"POST {target.request_target} HTTP/1.1\r\nHost: {target.host_header}\r\n"
        f"Content-Length: {len(body)}\r\n{request.lines}\r\n"
    )
    return head.encode("ascii") + body


# The names are few and always the same.
@lru_cache(maxsize=256)
def _check_name(name: str) -> None:
    if not is_name(name):
        raise ValueError(f"{name!a} is no name for a header")
    if name.lower() in OWN_HEADERS:
        raise ValueError(f"the header {name} is the transport's own")
