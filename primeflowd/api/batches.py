"""`/v1/batches`: registering, finding, ending and cancelling batches (contract section 4)."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Annotated, Final, TypeAlias, TypeVar, get_args

import msgspec
from msgspec import Meta, Raw

from primeflowd import callback_url
from primeflowd.api import cursors, decode, idempotency, shapes
from primeflowd.api.answer import Answer
from primeflowd.api.call import Call, Change, Route, canonical_uuid
from primeflowd.api.decode import ABSENT, Instant
from primeflowd.api.errors import Envelope, envelope
from primeflowd.errors import InvalidRequest, NotFound, Refused
from primeflowd.hookspecs import BatchFilter, Page, Tx
from primeflowd.instants import Micros
from primeflowd.lifecycle import (
    NewBatch,
    NewItem,
    cancel_batch,
    complete,
    create_batch,
    create_batches,
)
from primeflowd.model import TERMINAL_BATCH, Batch, BatchStatus, TerminalStatus
from primeflowd.payload import compacted

MAX_BULK: Final = 1000
MOST_AT_ONCE: Final = 2**20
"""Longest bulk body, in bytes, whose batches are decoded in one go. That they are too many shows
only afterwards, and a tiny batch takes forty times its length in memory."""
MAX_CLIENT_REF: Final = 255
MAX_REASON: Final = 1000
MAX_ITEMS_TOTAL: Final = 2**31 - 1


class ItemBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """An item as a client registers it."""

    client_ref: str | None = None
    input: Raw = ABSENT


class BatchBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """A batch as a client registers it; every field may be left out."""

    id: str | None = None
    plan_id: str | None = None
    callback_url: str | None = None
    metadata: Raw = ABSENT
    items: list[ItemBody] | None = None
    items_total: Annotated[int, Meta(ge=0, le=MAX_ITEMS_TOTAL)] | None = None
    status: BatchStatus | None = None
    output: Raw = ABSENT
    started_at: Instant | None = None
    completed_at: Instant | None = None


class BulkBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Several batches."""

    batches: Annotated[list[BatchBody], Meta(min_length=1, max_length=MAX_BULK)]


class RawBulkBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The same, each to be decoded by itself: one mistake costs one batch."""

    batches: Annotated[list[Raw], Meta(min_length=1, max_length=MAX_BULK)]


class CompletionBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The end of a batch."""

    status: TerminalStatus
    output: Raw = ABSENT
    completed_at: Instant | None = None


class CancellationBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why a batch is cancelled."""

    reason: str | None = None


class Accepted(msgspec.Struct, frozen=True, gc=False):
    """An entry of a bulk answer: a batch that is durable."""

    index: int
    id: str
    status: str


class NotAccepted(msgspec.Struct, frozen=True):
    """An entry of a bulk answer: a batch that was refused, and why."""

    index: int
    error: Envelope


_batch: Final = msgspec.json.Decoder(BatchBody)
_bulk: Final = msgspec.json.Decoder(BulkBody)
_raw_bulk: Final = msgspec.json.Decoder(RawBulkBody)
_completion: Final = msgspec.json.Decoder(CompletionBody)
_cancellation: Final = msgspec.json.Decoder(CancellationBody)

S = TypeVar("S", bound=str)

Verbatim: TypeAlias = Callable[[Raw], bytes | None]
"""Gives the canonical bytes of a JSON value, which are never empty; none for ABSENT."""


async def create(call: Call) -> Answer:
    """Register a batch; one with a terminal status is born ended, its callback on its way."""
    await call.body()
    change = _creation(call)
    return await idempotency.perform(call, change.operation, change.render)


def _creation(call: Call) -> Change:
    raw, verbatim = _canonical_if_cheap(decode.checked(call, call.body_now()))
    new = _new_batch(decode.document(raw, _batch), verbatim)
    return Change(partial(create_batch, org_id=call.org_id, new=new), _created)


async def create_bulk(call: Call) -> Answer:
    """Register up to 1000 batches in one transaction, each standing alone."""
    await call.body(call.services.config.api.max_bulk_body)
    change = _bulk_creation(call)
    return await idempotency.perform(call, change.operation, change.render)


def _bulk_creation(call: Call) -> Change:
    raw = decode.checked(call, call.body_now(call.services.config.api.max_bulk_body))
    read = _read_together(raw) or _read_one_by_one(raw)
    news = [new for new in read if not isinstance(new, Refused)]
    operation = partial(create_batches, org_id=call.org_id, news=news)
    return Change(operation, partial(_bulk_answer, read))


def _read_together(raw: bytes) -> Sequence[NewBatch] | None:
    """The batches of a bulk request, in one go; None if there is anything wrong, or too much."""
    if len(raw) > MOST_AT_ONCE:
        return None
    raw, verbatim = _canonical_if_cheap(raw)
    with suppress(InvalidRequest):
        return [_new_batch(body, verbatim) for body in decode.document(raw, _bulk).batches]
    return None


def _canonical_if_cheap(raw: bytes) -> tuple[bytes, Verbatim]:
    """A body to decode, and what makes the values in it canonical. Where it could be made canonical
    as a whole, so are these: they need but be copied, which every Verbatim does."""
    compact = compacted(raw)
    return (raw, decode.verbatim) if compact is None else (compact, bytes)


def _read_one_by_one(raw: bytes) -> Sequence[NewBatch | Refused]:
    """The same, or why each was refused.

    Raises:
        InvalidRequest: for all that is beside the batches themselves.
    """
    read: list[NewBatch | Refused] = []
    for sent in decode.document(raw, _raw_bulk).batches:
        try:
            read.append(_new_batch(decode.document(sent, _batch)))
        except InvalidRequest as refused:
            read.append(refused)
    return read


async def list_page(call: Call) -> Answer:
    """A page of the org's batches."""
    where = BatchFilter(
        status=choice(call, "status_code", get_args(BatchStatus)),
        plan_id=_filter_plan(call),
        created_after=decode.query_instant(call, "created_after"),
        created_before=decode.query_instant(call, "created_before"),
    )
    page = cursors.requested_page(call)
    batches, more = await call.services.storage.read(partial(_list, call.org_id, where, page))
    following = cursors.encode(*_position(batches[-1])) if more else None
    return shapes.page([shapes.batch(batch) for batch in batches], following)


async def get(call: Call) -> Answer:
    """One batch."""
    batch = await call.services.storage.read(
        partial(find, call.org_id, call.identifier("batch_id"))
    )
    return shapes.answer(200, shapes.batch(batch))


async def end(call: Call) -> Answer:
    """End a batch: 201; 200 if it has ended with that status already."""
    batch_id = call.identifier("batch_id")
    body = await decode.body(call, _completion)
    operation = partial(
        complete,
        org_id=call.org_id,
        batch_id=batch_id,
        status=body.status,
        output=decode.verbatim(body.output),
        completed_at=decode.instant(body.completed_at, "completed_at"),
    )
    return await idempotency.perform(call, operation, _ended)


async def cancel(call: Call) -> Answer:
    """Cancel a batch: 201; 200 and unchanged if it has ended, however it did."""
    batch_id = call.identifier("batch_id")
    body = await decode.body(call, _cancellation, may_be_absent=True)
    reason = decode.text(body.reason, "reason", MAX_REASON)
    operation = partial(cancel_batch, org_id=call.org_id, batch_id=batch_id, reason=reason)
    return await idempotency.perform(call, operation, _ended)


def find(org_id: str, batch_id: str, tx: Tx) -> Batch:
    """A batch of this org.

    Raises:
        NotFound: there is none.
    """
    batch = tx.batch(org_id, batch_id)
    if batch is None:
        raise NotFound
    return batch


def choice(call: Call, name: str, allowed: tuple[S, ...]) -> S | None:
    """A query parameter that is one of several words; None if it is absent."""
    value = call.query(name)
    if value is None:
        return None
    for word in allowed:
        if word == value:
            return word
    raise decode.invalid(name, "expected one of " + ", ".join(allowed))


def _new_batch(body: BatchBody, verbatim: Verbatim = decode.verbatim) -> NewBatch:
    """Everything about a new batch that can be wrong whatever the storage holds."""
    status = body.status or "queued"
    batch_id = canonical_uuid(body.id) if body.id is not None else None
    if body.id is not None and batch_id is None:
        raise decode.invalid("id", "expected a UUID")
    if body.items is not None and body.items_total is not None:
        raise decode.invalid("items_total", "give either items or items_total")
    metadata = verbatim(body.metadata) or None
    started_at, completed_at = body.started_at, body.completed_at
    if completed_at is not None and status not in TERMINAL_BATCH:
        raise decode.invalid("completed_at", f"a batch that is {status} has not ended")
    if body.callback_url is not None:
        try:
            callback_url.parse(body.callback_url)
        except ValueError as error:
            raise decode.invalid("callback_url", str(error)) from error
    return NewBatch(
        id=batch_id,
        plan_id=decode.plan_id(body.plan_id) if body.plan_id else "",
        callback_url=body.callback_url,
        metadata=None if metadata == b"null" else metadata,
        items=None if body.items is None else _new_items(body.items, verbatim),
        items_total=body.items_total,
        status=status,
        output=verbatim(body.output) or None,
        started_at=None if started_at is None else decode.instant(started_at, "started_at"),
        completed_at=(
            None if completed_at is None else decode.instant(completed_at, "completed_at")
        ),
    )


def _new_items(bodies: list[ItemBody], verbatim: Verbatim) -> tuple[NewItem, ...]:
    seen: set[str] = set()
    for body in bodies:
        if body.client_ref is None:
            continue
        decode.text(body.client_ref, "client_ref", MAX_CLIENT_REF)
        if body.client_ref in seen:
            raise decode.invalid("client_ref", f"{body.client_ref!r} occurs twice")
        seen.add(body.client_ref)
    return tuple(NewItem(body.client_ref, verbatim(body.input) or None) for body in bodies)


def _filter_plan(call: Call) -> str | None:
    written = call.query("plan_id")
    return None if written is None else decode.plan_id(written)


def _list(org_id: str, where: BatchFilter, page: Page, tx: Tx) -> tuple[list[Batch], bool]:
    def fetch(limit: int, before: tuple[Micros, str] | None) -> list[Batch]:
        return tx.batches(org_id, where, Page(limit, before))

    return cursors.gather(fetch, _position, _weight, page.limit, page.before)


def _position(batch: Batch) -> tuple[Micros, str]:
    return batch.created_at, batch.id


def _weight(batch: Batch) -> int:
    return len(batch.metadata or b"") + len(batch.output or b"") + len(batch.payload or b"")


def _created(batch: Batch) -> Answer:
    return shapes.answer(201, shapes.batch(batch))


def _ended(result: tuple[Batch, bool]) -> Answer:
    batch, changed = result
    return shapes.answer(201 if changed else 200, shapes.batch(batch))


def _bulk_answer(read: Sequence[NewBatch | Refused], made: Sequence[Batch | Refused]) -> Answer:
    """The answer to a bulk request: `made` has a place for each of `read` that was not refused."""
    results: Sequence[Batch | Refused] = made
    if len(made) < len(read):
        remaining = iter(made)
        results = [each if isinstance(each, Refused) else next(remaining) for each in read]
    entries = [
        NotAccepted(index, envelope(result))
        if isinstance(result, Refused)
        else Accepted(index, result.id, result.status)
        for index, result in enumerate(results)
    ]
    return shapes.answer(200, {"results": entries})


_PATH: Final = "/v1/batches"

ROUTES: Final = (
    Route("POST", _PATH, "batches:write", create, change=_creation),
    Route("POST", f"{_PATH}/bulk", "batches:write", create_bulk, change=_bulk_creation),
    Route("GET", _PATH, "batches:read", list_page),
    Route("GET", f"{_PATH}/<batch_id>", "batches:read", get),
    Route("POST", f"{_PATH}/<batch_id>/completion", "batches:write", end),
    Route("POST", f"{_PATH}/<batch_id>/cancellation", "batches:write", cancel),
)
