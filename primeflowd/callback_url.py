"""Callback URLs, taken apart once and strictly (contract 4.7).

Pure. The standard library's parser is not used: it silently drops tabs and line breaks, and what
one parser drops another may read as the end of a host. Here everything odd is refused, and what
is accepted is sent as it stands: no normalisation of path or query, no dot segments removed.

Only the spelling is judged. `http://0x7f.1/` and `http://2130706433/` are well-formed here; the
address they resolve to is for egress.py to refuse.
"""

import ipaddress
import re
import unicodedata
from functools import lru_cache
from typing import Final
from urllib.parse import quote

import idna
import msgspec
from msgspec.structs import replace

MAX_LENGTH: Final = 2048
"""Most characters a callback URL may have."""

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}
# Underscores are no part of a host name by the book, but of many a private DNS.
_HOST: Final = re.compile(r"[a-z0-9._-]+", re.ASCII)
# Nothing in it needs a second look: no user name, no brackets, a path, and of ASCII all that is
# printable but space, backslash and the beginning of a fragment.
_PLAIN: Final = re.compile(r"(https?://[A-Za-z0-9._:-]+)(/[!\"$-\[\]-~]*)")
_AUTHORITY_END: Final = re.compile(r"[/?]")
_BLANK_OR_CONTROL: Final = frozenset({"Cc", "Cs", "Zl", "Zp", "Zs"})
# Every printable ASCII character is left alone, "%" too: what is escaped already stays so.
_VERBATIM: Final = "".join(map(chr, range(0x21, 0x7F)))


class Target(msgspec.Struct, frozen=True, gc=False):
    """Where a callback goes, ready to be dialled and asked for.

    Attributes:
        host: lower case, IDNA form, without brackets; what is resolved.
        host_header: the host as the Host header has it: v6 in brackets, the port unless default.
        request_target: path and query, pure ASCII, never empty.
        destination: `scheme://host:port`, the key of everything kept per destination.
    """

    scheme: str
    host: str
    port: int
    host_header: str
    request_target: str
    destination: str


# Bounded well above the destinations of a busy daemon; a hostile set of URLs, each as long as it
# may be, fills it with some 20 MB.
@lru_cache(maxsize=2048)
def parse(url: str) -> Target:
    """Take `url` apart. Cached.

    Raises:
        ValueError: not a callback URL; the message tells its author why.
    """
    # Receivers give each batch a URL of its own, so that most are new, and nearly all are plain.
    plain = _PLAIN.fullmatch(url)
    if plain is not None and len(url) <= MAX_LENGTH:
        origin, request_target = plain.groups()
    else:
        origin, request_target = _split(url)
    return replace(_at_root(origin), request_target=request_target)


def destination_of(text: str) -> str:
    """The destination that `text` names, as `https://example.com:443` or `https://example.com`.

    Raises:
        ValueError: it names none, or more than that.
    """
    target = parse(text)
    if target.request_target != "/":
        raise ValueError("a destination has no path: scheme, host and port, as https://example.com")
    return target.destination


def _split(url: str) -> tuple[str, str]:
    """Origin, with its scheme in lower case, and request target of any URL that is one."""
    _check_characters(url)
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in _DEFAULT_PORTS:
        raise ValueError("the URL does not start with http:// or https://")
    if "#" in rest:
        raise ValueError("the URL has a fragment")
    end = _AUTHORITY_END.search(rest)
    split = end.start() if end else len(rest)
    origin, request_target = f"{scheme}://{rest[:split]}", rest[split:]
    if not request_target.startswith("/"):
        request_target = f"/{request_target}"
    if not url.isascii():
        request_target = quote(request_target, safe=_VERBATIM)
    return origin, request_target


# Apart from the whole: a busy receiver has one origin, and often an URL for each batch.
@lru_cache(maxsize=2048)
def _at_root(origin: str) -> Target:
    """What all URLs of an origin (scheme and authority) are but for their request targets."""
    scheme, _, authority = origin.partition("://")
    if "@" in authority:
        raise ValueError("the URL has a user name or password")
    host, port = _split_authority(authority, scheme)
    bracketed = f"[{host}]" if ":" in host else host
    return Target(
        scheme=scheme,
        host=host,
        port=port,
        host_header=bracketed if port == _DEFAULT_PORTS[scheme] else f"{bracketed}:{port}",
        request_target="/",
        # "example.com." is the same destination as "example.com", and shares its limits.
        destination=f"{scheme}://{bracketed.removesuffix('.')}:{port}",
    )


def _check_characters(url: str) -> None:
    if len(url) > MAX_LENGTH:
        raise ValueError(f"the URL is longer than {MAX_LENGTH} characters")
    if url.isascii() and url.isprintable() and " " not in url:
        odd = "\\" if "\\" in url else ""
    else:
        kind = unicodedata.category
        odd = next((c for c in url if c == "\\" or kind(c) in _BLANK_OR_CONTROL), "")
    if odd:
        raise ValueError(f"the URL has a character that does not belong in one: {odd!a}")


def _split_authority(authority: str, scheme: str) -> tuple[str, int]:
    if authority.startswith("["):
        literal, bracket, after = authority[1:].partition("]")
        if not bracket or (after and not after.startswith(":")):
            raise ValueError("the IPv6 address of the URL is not in brackets as it should be")
        return _ipv6(literal), _port(after[1:], scheme)
    host, _, port = authority.partition(":")
    return _host(host), _port(port, scheme)


def _host(host: str) -> str:
    if not host.isascii():
        try:
            host = idna.encode(host, uts46=True).decode("ascii")
        except UnicodeError as error:
            raise ValueError("the host of the URL is not a valid international name") from error
    host = host.lower()
    if not host.strip("."):
        raise ValueError("the URL has no host")
    if _HOST.fullmatch(host) is None:
        raise ValueError("the host of the URL has a character that no host name has")
    return host


def _ipv6(literal: str) -> str:
    # A zone id names an interface of this machine: nothing for a client to choose.
    if "%" in literal:
        raise ValueError("the IPv6 address of the URL has a zone id")
    try:
        return ipaddress.IPv6Address(literal).compressed
    except ValueError as error:
        raise ValueError("the URL has no valid IPv6 address between its brackets") from error


def _port(digits: str, scheme: str) -> int:
    if not digits:
        return _DEFAULT_PORTS[scheme]
    if not (digits.isascii() and digits.isdigit()) or not 1 <= int(digits) <= 65535:
        raise ValueError("the port of the URL is not a number from 1 to 65535")
    return int(digits)
