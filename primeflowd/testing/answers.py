"""How a receiver answers: the script of an answer, and what of it goes over the wire.

Pure.
"""

from collections.abc import Iterable, Iterator, Sequence
from http import HTTPStatus
from typing import Final

import msgspec

_CHUNK: Final = 65_536
_ZEROS: Final = bytes(_CHUNK)
_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}


class Answer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one request is answered; by default at once, well, and keeping the connection.

    Attributes:
        headers: besides Content-Length or Transfer-Encoding.
        body_size: the body is so many zero bytes, made as they are sent, in place of `body`.
        chunked: the body is sent in chunks, without its length told beforehand.
        interim: how many `103 Early Hints` come first.
        endless_head: headers, for as long as the client takes them.
        raw: sent in place of a response; then the connection is closed.
        delay: seconds before the first byte.
        drip: seconds before each single byte; None sends what fits.
        cut: close the connection after so many bytes of the response.
        reset: close it with a RST, where it is closed.
        hang: where it would be closed for `cut` (by default before the first byte), say nothing
            more but keep it open until the client closes it.
        close: announce `Connection: close`, and do so.
    """

    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    body_size: int | None = None
    chunked: bool = False
    interim: int = 0
    endless_head: bool = False
    raw: bytes | None = None
    delay: float = 0
    drip: float | None = None
    cut: int | None = None
    reset: bool = False
    hang: bool = False
    close: bool = False


def read_script(text: str) -> tuple[Answer, ...]:
    """A script from JSON: one answer or an array of them; `body` and `raw` are plain text.

    Raises:
        ValueError: not JSON, or not answers.
    """
    decoded = msgspec.json.decode(text)
    answers = decoded if isinstance(decoded, list) else [decoded]
    for answer in answers:
        for name in ("body", "raw"):
            if isinstance(answer, dict) and isinstance(answer.get(name), str):
                answer[name] = answer[name].encode()
    return msgspec.convert(answers, tuple[Answer, ...])


def turn(script: Sequence[Answer], number: int) -> Answer:
    """The answer to the request of this number, counted from 1: the last for all that follow."""
    return script[min(number, len(script)) - 1]


def head(answer: Answer) -> bytes:
    """Status line and headers of a response, with the empty line after them."""
    lines = [f"HTTP/1.1 {answer.status} {_REASONS.get(answer.status, 'Scripted')}"]
    lines += [f"{name}: {value}" for name, value in answer.headers]
    if answer.chunked:
        lines.append("Transfer-Encoding: chunked")
    elif answer.status not in (204, 304):
        size = len(answer.body) if answer.body_size is None else answer.body_size
        lines.append(f"Content-Length: {size}")
    if answer.close:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "\r\n"]).encode("latin-1")


def _zeros(size: int) -> Iterator[bytes]:
    for start in range(0, size, _CHUNK):
        yield _ZEROS[: size - start]


def body(answer: Answer) -> Iterator[bytes]:
    """The body as it goes over the wire, in pieces."""
    pieces: Iterable[bytes] = (
        [answer.body] if answer.body_size is None else _zeros(answer.body_size)
    )
    if not answer.chunked:
        yield from pieces
        return
    for piece in pieces:
        if piece:
            yield b"%x\r\n%b\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"
