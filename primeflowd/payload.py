"""The frozen payload of a callback, and the canonical form of the JSON in it. Pure.

Owns contract 4.2 to 4.4 and the checks of 2.10 that a JSON decoder leaves to us. What a client
sent as `metadata`, `output` and the like is never parsed into values, because values forget how a
number was spelt; it is rewritten as bytes, token by token. Fails with InvalidJson only.
"""

from array import array
from collections.abc import Iterable
from functools import lru_cache
from itertools import accumulate
from typing import Final

import msgspec

from primeflowd.instants import MILLISECOND, Micros, to_datetime
from primeflowd.model import Batch, BatchStatus, Item

MAX_DEPTH: Final = 100
"""Arrays and objects within each other; a document of one scalar has depth 0."""

_QUOTE: Final = b'"'
_NULL: Final = b"null"
# Brackets become the signed bytes +1 and -1, so that their running sum is the depth.
_AS_STEPS: Final = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_DEEPER: Final = b"\x01"
_NEITHER_STEP_NOR_QUOTE: Final = bytes(set(range(256)) - set(b'[{]}"'))

# Copies tokens as they are spelt, and builds no values.
_format: Final = msgspec.json.format
_string: Final = msgspec.json.Decoder(str)
_encode: Final = msgspec.json.Encoder().encode


class InvalidJson(ValueError):
    """The bytes are no JSON that primeflowd takes; the message says why."""


def check_document(body: bytes) -> None:
    """Check what msgspec does not: UTF-8 in parts that it skips, and the depth of nesting.

    Says nothing about the grammar. Call it before decoding: what it lets through, malformed or
    not, does not exhaust the decoder's stack.

    Raises:
        InvalidJson: not UTF-8, or nested deeper than MAX_DEPTH.
    """
    try:
        body.decode()
    except UnicodeDecodeError as error:
        raise InvalidJson(f"not UTF-8 at byte {error.start}") from error
    steps = _plain_quotes(body).translate(_AS_STEPS, _NEITHER_STEP_NOR_QUOTE)
    # Nearly every body has too few brackets to be too deep, however they are arranged.
    if steps.count(_DEEPER) > MAX_DEPTH and _depth(steps) > MAX_DEPTH:
        raise InvalidJson(f"nested deeper than {MAX_DEPTH}")


def canonical(document: bytes | msgspec.Raw) -> bytes:
    """One JSON value as compact UTF-8; order of keys and spelling of numbers stay (contract 4.4).

    No space outside strings. In strings only what must be is escaped: the quote, the backslash
    and control characters. Keys that occur twice stay twice.

    Args:
        document: passed check_document, by itself or as part of a whole that did. What a decoder
            made a Raw of is of the grammar already.

    Raises:
        InvalidJson: not one value of the grammar of RFC 8259, or a lone surrogate in an escape.
    """
    try:
        compact = _format(document, indent=-1)
        if b"\\" not in compact:
            return compact
        parts = _split(compact)
        parts[1::2] = [_unescaped(text) if b"\\" in text else text for text in parts[1::2]]
    except msgspec.DecodeError as error:
        raise InvalidJson(str(error)) from error
    return _QUOTE.join(parts)


def compacted(document: bytes) -> bytes | None:
    """A document in which every value is in canonical form, so that none needs to be rewritten by
    itself; None if that takes more than leaving out spaces, or the document is malformed.

    Args:
        document: passed check_document.
    """
    if b"\\" in document:
        return None
    try:
        return _format(document, indent=-1)
    except msgspec.DecodeError:
        return None


def freeze(
    *,
    batch_id: str,
    status: BatchStatus,
    output: bytes | None,
    metadata: bytes | None,
    created_at: Micros,
    completed_at: Micros,
) -> bytes:
    """The payload of an ended batch: the very bytes that are signed and sent (contract 4.2-4.5).

    `output` and `metadata` are canonical already, and are copied.
    """
    beginning, middle, end = _frame(status, created_at, completed_at)
    # JSON is never empty.
    return b"".join(
        (beginning, batch_id.encode(), middle, output or _NULL, end, metadata or _NULL, b"}")
    )


# A batch that comes ended was created and completed at one instant, as were all that came with it.
@lru_cache(maxsize=8)
def _frame(
    status: BatchStatus, created_at: Micros, completed_at: Micros
) -> tuple[bytes, bytes, bytes]:
    """What stands before a payload's batch id, between that and its output, and before its
    metadata."""
    event = status.encode()
    # A client's `completed_at` may lie before our `created_at`.
    duration = completed_at - created_at if completed_at > created_at else 0
    return (
        b'{"event":"batch.%b","batch_id":"' % event,
        b'","status":"%b","output":' % event,
        b',"duration_ms":%d,"created_at":"%b","completed_at":"%b","metadata":'
        % (duration // MILLISECOND, _spelt(created_at), _spelt(completed_at)),
    )


# Before the output, but for the batch's id and twice its status; and what comes after it.
_UP_TO_OUTPUT: Final = len(b'{"event":"batch.","batch_id":"","status":"","output":')
_AFTER_OUTPUT: Final = b',"duration_ms":'


class _Frozen(msgspec.Struct, gc=False):
    """What of a payload a batch has for itself, too."""

    output: msgspec.Raw
    metadata: msgspec.Raw


_frozen: Final = msgspec.json.Decoder(_Frozen)


def repeats(batch: Batch) -> bool:
    """Whether `carried` finds the batch's output and metadata in its payload again, if it has one.

    So it is with what `freeze` made. Costs a fraction of a microsecond: it is on the way of every
    callback.
    """
    frozen, output = batch.payload, batch.output
    if frozen is None or output == _NULL:
        return False
    output = output or _NULL
    at = _UP_TO_OUTPUT + len(batch.id) + 2 * len(batch.status)
    return (
        frozen.startswith(output, at)
        and frozen.startswith(_AFTER_OUTPUT, at + len(output))
        and frozen.endswith(b'"metadata":%b}' % (batch.metadata or _NULL))
    )


def carried(frozen: bytes) -> tuple[bytes | None, bytes | None]:
    """The output and the metadata in a payload; None for null, and where there is none."""
    try:
        parts = _frozen.decode(frozen)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None, None
    output, metadata = bytes(parts.output), bytes(parts.metadata)
    return None if output == _NULL else output, None if metadata == _NULL else metadata


def _spelt(instant: Micros) -> bytes:
    return to_datetime(instant).isoformat().encode()


def items_output(
    items: Iterable[Item], succeeded: int, failed: int, cancelled: int, total: int
) -> bytes:
    """The `output` of a batch whose items were reported, in canonical form (contract 4.2)."""
    return b'{"items":[%b],"succeeded":%d,"failed":%d,"cancelled":%d,"total":%d}' % (
        b",".join(map(_item, items)),
        succeeded,
        failed,
        cancelled,
        total,
    )


def _item(item: Item) -> bytes:
    return (b'{"sequence_index":%d,"client_ref":%b,"status_code":"%b","output":%b,"error":%b}') % (
        item.sequence_index,
        _encode(item.client_ref),
        item.status.encode(),
        item.output or _NULL,
        item.error or _NULL,
    )


def _split(document: bytes) -> list[bytes]:
    """What lies before, in, between and after the strings: those at the odd indexes, unquoted."""
    return _plain_quotes(document).split(_QUOTE)


def _plain_quotes(document: bytes) -> bytes:
    r"""The same document, in which every quote opens or closes a string.

    Escaped quotes and backslashes are spelt as code points. Backslashes first: in `\\"` it is the
    backslash that is escaped, and the quote ends the string.
    """
    if b"\\" not in document:
        return document
    return document.replace(b"\\\\", b"\\u005c").replace(b'\\"', b"\\u0022")


def _unescaped(text: bytes) -> bytes:
    """The inside of a string, with the fewest escapes."""
    return _encode(_string.decode(b'"%b"' % text))[1:-1]


def _depth(steps: bytes) -> int:
    """Depth of nesting, in time linear in the length. `steps`: brackets as such, and quotes."""
    # Quotes side by side have no bracket between them. Where that is the end of one string and the
    # beginning of the next, what becomes one string of both still has all that was in them.
    outside_strings = b"".join(steps.replace(b'""', b"").split(_QUOTE)[::2])
    return max(accumulate(array("b", outside_strings)), default=0)
