"""What workers report of a batch's items, and the batch that ends with the last of them.

Operations over one transaction, as in lifecycle.py: each looks first and writes last.
"""

from collections.abc import Sequence

import msgspec

from primeflowd.errors import NotFound, StateRefused
from primeflowd.lifecycle import end_batch, has_ended, settled
from primeflowd.model import (
    TERMINAL_BATCH,
    TERMINAL_ITEM,
    Batch,
    Item,
    ItemStatus,
    TerminalStatus,
)
from primeflowd.unit import Unit


class ItemReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker says of one item, named by its index, its client reference, or both."""

    sequence_index: int | None = None
    client_ref: str | None = None
    status: ItemStatus
    output: bytes | None = None
    error: bytes | None = None


def report_items(unit: Unit, org_id: str, batch_id: str, reports: Sequence[ItemReport]) -> Batch:
    """Take a worker's reports; the report that settles the last item ends the batch (4.1).

    Repeating a report of a settled item changes nothing. Reports are taken in order, so that one
    may name an item by the client reference that another before it gave.

    Raises:
        NotFound: no such batch.
        StateRefused: `invalid_state` (the batch has ended, or an item has with another status),
            `item_not_found`, `invalid_item` (index and client reference name two items).
    """
    batch = unit.tx.batch(org_id, batch_id)
    if batch is None:
        raise NotFound
    if batch.status in TERMINAL_BATCH:
        raise has_ended(batch)
    changed = _apply_reports(unit, batch, reports)
    if not changed:
        return batch
    counts = dict.fromkeys(TERMINAL_ITEM, 0)
    for item in changed:
        if item.status in TERMINAL_ITEM:
            counts[item.status] += 1
    unit.tx.put_items(changed)
    batch = msgspec.structs.replace(
        batch,
        status="running",
        started_at=unit.now if batch.started_at is None else batch.started_at,
        items_succeeded=batch.items_succeeded + counts["succeeded"],
        items_failed=batch.items_failed + counts["failed"],
        items_cancelled=batch.items_cancelled + counts["cancelled"],
        updated_at=unit.now,
    )
    if settled(batch) == batch.items_total:
        return end_batch(unit, batch, _status_from_items(batch), None, None)
    unit.tx.update_batch(batch)
    return batch


def _apply_reports(unit: Unit, batch: Batch, reports: Sequence[ItemReport]) -> list[Item]:
    """The items that the reports change, as they become. None of them had ended before."""
    known = unit.tx.find_items(
        batch.org_id,
        batch.id,
        {r.sequence_index for r in reports if r.sequence_index is not None},
        {r.client_ref for r in reports if r.client_ref is not None},
    )
    by_index = {item.sequence_index: item for item in known}
    by_ref = {item.client_ref: item for item in known if item.client_ref is not None}
    changed: dict[int, Item] = {}
    for report in reports:
        index = _index_of(batch, report, by_ref)
        before = changed.get(index) or by_index.get(index)
        client_ref = before.client_ref if before else None
        if client_ref is None:
            client_ref = report.client_ref
        elif report.client_ref not in (None, client_ref):
            raise _mismatch(batch, index, report.client_ref)
        if before is not None and before.status in TERMINAL_ITEM:
            if before.status != report.status:
                raise StateRefused(
                    "invalid_state", f"item {index} of batch {batch.id} is {before.status} already"
                )
            continue
        after = Item(
            org_id=batch.org_id,
            batch_id=batch.id,
            sequence_index=index,
            client_ref=client_ref,
            status=report.status,
            input=before.input if before else None,
            output=report.output,
            error=report.error,
            updated_at=unit.now,
        )
        changed[index] = after
        if client_ref is not None:
            by_ref[client_ref] = after
    return list(changed.values())


def _index_of(batch: Batch, report: ItemReport, by_ref: dict[str, Item]) -> int:
    """The index of the item that a report names."""
    if report.client_ref is not None and (item := by_ref.get(report.client_ref)):
        if report.sequence_index not in (None, item.sequence_index):
            raise _mismatch(batch, report.sequence_index, report.client_ref)
        return item.sequence_index
    index = report.sequence_index
    if index is None:
        raise StateRefused(
            "item_not_found", f"batch {batch.id} has no item with client_ref {report.client_ref!r}"
        )
    if not 0 <= index < (batch.items_total or 0):
        raise StateRefused(
            "item_not_found",
            f"batch {batch.id} has {batch.items_total or 0} items, so none with index {index}",
        )
    return index


def _mismatch(batch: Batch, index: int | None, client_ref: str | None) -> StateRefused:
    return StateRefused(
        "invalid_item", f"item {index} of batch {batch.id} is not the one named {client_ref!r}"
    )


def _status_from_items(batch: Batch) -> TerminalStatus:
    """Contract 4.1."""
    if batch.items_succeeded == batch.items_total:
        return "succeeded"
    if batch.items_succeeded:
        return "partial_succeeded"
    return "failed" if batch.items_failed else "cancelled"
