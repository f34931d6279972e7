"""Lists, page by page (contract 2.9): `limit`, the opaque `cursor`, and how a page is put together.

A cursor names the last row that was shown, not a position, so rows added meanwhile move nothing.
Pages are bounded in bytes too: one of rows with large payloads holds fewer rows than `limit`, and
its `next` goes on from there.

Fails with InvalidRequest (`invalid_limit`, `invalid_cursor`).
"""

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from primeflowd.api.call import Call, canonical_uuid
from primeflowd.errors import InvalidRequest
from primeflowd.hookspecs import Page
from primeflowd.instants import Micros

R = TypeVar("R")
P = TypeVar("P")

DEFAULT_LIMIT: Final = 50
MAX_LIMIT: Final = 500
# Rows are fetched so many at a time, so that a page of huge rows is noticed before it is in memory.
_CHUNK: Final = 64
_PAGE_BYTES: Final = 8 * 1024 * 1024
_MAX_INTEGER: Final = 2**63 - 1


def requested_page(call: Call) -> Page:
    """The stretch of a newest-first list that a request asks for."""
    cursor = call.query("cursor")
    return Page(_limit(call), None if cursor is None else _decode(cursor))


def requested_index(call: Call) -> tuple[int, int | None]:
    """As `requested_page`, for a list in the order of an index: limit, and the last index seen."""
    cursor = call.query("cursor")
    return _limit(call), None if cursor is None else _decode_index(cursor)


def encode(created_at: Micros, row_id: str) -> str:
    """The cursor that goes on after this row."""
    return _wrap(f"{created_at}.{row_id}")


def encode_index(index: int) -> str:
    """The cursor that goes on after the row with this index."""
    return _wrap(str(index))


def gather(
    fetch: Callable[[int, P | None], Sequence[R]],
    position_of: Callable[[R], P],
    weigh: Callable[[R], int],
    limit: int,
    start: P | None,
) -> tuple[list[R], bool]:
    """The rows of a page, and whether there are more after them.

    Args:
        fetch: at most so many rows after that position.
        weigh: about how many bytes a row takes in memory.
    """
    rows: list[R] = []
    weight = 0
    while True:
        # One more than asked for tells whether there is a next page.
        wanted = min(_CHUNK, limit + 1 - len(rows))
        chunk = fetch(wanted, start)
        for row in chunk:
            if len(rows) == limit or (rows and weight >= _PAGE_BYTES):
                return rows, True
            rows.append(row)
            weight += weigh(row)
        if len(chunk) < wanted:
            return rows, False
        start = position_of(chunk[-1])


def slice_page(
    rows: Sequence[R], position_of: Callable[[R], tuple[Micros, str]], page: Page
) -> tuple[list[R], str | None]:
    """A page of a list that is at hand whole, newest first; and the cursor of the next, if any."""
    rest = [row for row in rows if page.before is None or position_of(row) < page.before]
    found = rest[: page.limit]
    return found, encode(*position_of(found[-1])) if len(rest) > len(found) else None


def _limit(call: Call) -> int:
    written = call.query("limit")
    if written is None:
        return DEFAULT_LIMIT
    # int() alone would take "+5", " 5", "5_0" and the digits of other scripts.
    if not (written.isascii() and written.isdigit() and len(written) <= 3):
        raise _invalid_limit()
    limit = int(written)
    if not 1 <= limit <= MAX_LIMIT:
        raise _invalid_limit()
    return limit


def _invalid_limit() -> InvalidRequest:
    return InvalidRequest("invalid_limit", f"limit: expected a number from 1 to {MAX_LIMIT}")


def _invalid_cursor() -> InvalidRequest:
    return InvalidRequest("invalid_cursor", "cursor: expected the `next` of an earlier answer")


def _wrap(position: str) -> str:
    return base64.urlsafe_b64encode(position.encode()).decode().rstrip("=")


def _unwrap(cursor: str) -> str:
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        text = base64.b64decode(padded, altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, ValueError) as error:
        raise _invalid_cursor() from error
    return text


def _decode(cursor: str) -> tuple[Micros, str]:
    created_at, _, row_id = _unwrap(cursor).partition(".")
    if canonical_uuid(row_id) != row_id:
        raise _invalid_cursor()
    return _integer(created_at), row_id


def _decode_index(cursor: str) -> int:
    return _integer(_unwrap(cursor))


def _integer(text: str) -> int:
    if not text.isdigit() or len(text) > 19 or int(text) > _MAX_INTEGER:
        raise _invalid_cursor()
    return int(text)
