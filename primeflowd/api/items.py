"""`/v1/batches/{id}/items`: a batch's items, and what workers report of them (contract 4, 4.1)."""

from functools import partial
from typing import Annotated, Final

import msgspec
from msgspec import Meta, Raw

from primeflowd.api import batches, cursors, decode, idempotency, shapes
from primeflowd.api.answer import Answer
from primeflowd.api.batches import MAX_CLIENT_REF, MAX_ITEMS_TOTAL
from primeflowd.api.call import Call, Route
from primeflowd.api.decode import ABSENT
from primeflowd.errors import InvalidRequest
from primeflowd.hookspecs import Tx
from primeflowd.items import ItemReport, report_items
from primeflowd.model import Batch, Item, ItemStatus

MAX_REPORTS: Final = 1000


class ReportBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a worker says of one item, named by its index or its client reference."""

    status_code: ItemStatus
    sequence_index: Annotated[int, Meta(ge=0, le=MAX_ITEMS_TOTAL)] | None = None
    client_ref: str | None = None
    output: Raw = ABSENT
    error: Raw = ABSENT


class ReportsBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Several reports, all of them taken or none."""

    items: Annotated[list[ReportBody], Meta(min_length=1, max_length=MAX_REPORTS)]


_reports: Final = msgspec.json.Decoder(ReportsBody)


async def list_page(call: Call) -> Answer:
    """A page of a batch's items, in the order of their index."""
    batch_id = call.identifier("batch_id")
    limit, after = cursors.requested_index(call)
    items, more = await call.services.storage.read(
        partial(_list, call.org_id, batch_id, limit, after)
    )
    following = cursors.encode_index(items[-1].sequence_index) if more else None
    return shapes.page([shapes.item(item) for item in items], following)


async def report(call: Call) -> Answer:
    """Take reports; answers with the batch, which the last report has ended."""
    batch_id = call.identifier("batch_id")
    body = await decode.body(call, _reports)
    reports = [_report(each) for each in body.items]
    operation = partial(report_items, org_id=call.org_id, batch_id=batch_id, reports=reports)
    return await idempotency.perform(call, operation, _reported)


def _report(body: ReportBody) -> ItemReport:
    if body.sequence_index is None and body.client_ref is None:
        raise InvalidRequest(
            "sequence_index_required",
            "name the item by sequence_index or client_ref",
            {"field": "sequence_index"},
        )
    return ItemReport(
        sequence_index=body.sequence_index,
        client_ref=decode.text(body.client_ref, "client_ref", MAX_CLIENT_REF),
        status=body.status_code,
        output=decode.verbatim_or_null(body.output),
        error=decode.verbatim_or_null(body.error),
    )


def _list(
    org_id: str, batch_id: str, limit: int, after: int | None, tx: Tx
) -> tuple[list[Item], bool]:
    batches.find(org_id, batch_id, tx)

    def fetch(count: int, position: int | None) -> list[Item]:
        return tx.items(org_id, batch_id, position, count)

    return cursors.gather(fetch, _index, _weight, limit, after)


def _index(item: Item) -> int:
    return item.sequence_index


def _weight(item: Item) -> int:
    return sum(len(part) for part in (item.input, item.output, item.error) if part is not None)


def _reported(batch: Batch) -> Answer:
    return shapes.answer(200, shapes.batch(batch))


_PATH: Final = "/v1/batches/<batch_id>/items"

ROUTES: Final = (
    Route("GET", _PATH, "batches:read", list_page),
    Route("PATCH", _PATH, "batches:write", report),
)
