"""What may happen to a batch, as operations over one transaction.

Each function is one step of the state machines in model.py, written once for every storage. It
looks first and writes last: when it raises `Refused`, nothing was written. All it needs comes in
through its `Unit`; what the daemon must do once the commit is durable goes out through it.

Ending a batch and making its automatic delivery happen in one call (contract 4.6), and the
payload is frozen there (4.5).
"""

from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from primeflowd import payload
from primeflowd.errors import NotFound, Refused, StateRefused
from primeflowd.hookspecs import Tx
from primeflowd.instants import Micros
from primeflowd.model import TERMINAL_BATCH, Batch, BatchStatus, Item, TerminalStatus, new_id
from primeflowd.redelivery import make_delivery
from primeflowd.unit import Unit

# To replace some of the fields of a struct costs a fifth of giving all of them by name.
NOTHING_KNOWN: Final = Batch(
    id="",
    org_id="",
    plan_id="",
    callback_url=None,
    metadata=None,
    status="queued",
    output=None,
    items_total=None,
    items_succeeded=0,
    items_failed=0,
    items_cancelled=0,
    cancellation_reason=None,
    payload=None,
    created_at=0,
    started_at=None,
    completed_at=None,
    updated_at=0,
)


class NewItem(msgspec.Struct, frozen=True, gc=False):
    """An item as a client registers it; `input` is canonical JSON."""

    client_ref: str | None = None
    input: bytes | None = None


class NewBatch(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A batch as a client registers it, already validated; bytes are canonical JSON."""

    id: str | None = None
    plan_id: str = ""
    callback_url: str | None = None
    metadata: bytes | None = None
    items: tuple[NewItem, ...] | None = None
    items_total: int | None = None
    status: BatchStatus = "queued"
    output: bytes | None = None
    started_at: Micros | None = None
    completed_at: Micros | None = None


def create_batch(unit: Unit, org_id: str, new: NewBatch) -> Batch:
    """Register a batch; one with a terminal status is born ended, its delivery made at once.

    Raises:
        StateRefused: `batch_exists`.
    """
    if new.id is not None and unit.tx.taken_batch_ids([new.id]):
        raise _batch_exists(new.id)
    return _insert_batch(unit, _newborn(unit, org_id), new)


def create_batches(unit: Unit, org_id: str, news: Sequence[NewBatch]) -> list[Batch | Refused]:
    """Register several batches, each standing alone: its batch, or why it was refused."""
    wanted = {new.id for new in news if new.id is not None}
    taken = unit.tx.taken_batch_ids(wanted) if wanted else set()
    newborn = _newborn(unit, org_id)
    results: list[Batch | Refused] = []
    for new in news:
        if new.id is not None and new.id in taken:
            results.append(_batch_exists(new.id))
            continue
        if new.id is not None:
            taken.add(new.id)
        results.append(_insert_batch(unit, newborn, new))
    return results


def complete(
    unit: Unit,
    org_id: str,
    batch_id: str,
    status: TerminalStatus,
    output: bytes | None,
    completed_at: Micros | None,
) -> tuple[Batch, bool]:
    """End a batch; the second value is False if it had already ended with that status.

    Raises:
        NotFound: no such batch.
        StateRefused: `invalid_state`, it ended with another status.
    """
    batch = _batch(unit.tx, org_id, batch_id)
    if batch.status in TERMINAL_BATCH:
        if batch.status != status:
            raise has_ended(batch)
        return batch, False
    return end_batch(unit, batch, status, output, completed_at), True


def cancel_batch(unit: Unit, org_id: str, batch_id: str, reason: str | None) -> tuple[Batch, bool]:
    """Cancel a batch; the second value is False if it had ended already, however it did.

    Raises:
        NotFound: no such batch.
    """
    batch = _batch(unit.tx, org_id, batch_id)
    if batch.status in TERMINAL_BATCH:
        return batch, False
    batch = replace(batch, cancellation_reason=reason)
    return end_batch(unit, batch, "cancelled", None, None), True


def _newborn(unit: Unit, org_id: str) -> Batch:
    """What new batches of an org are like before anything is known of each."""
    return replace(NOTHING_KNOWN, org_id=org_id, created_at=unit.now, updated_at=unit.now)


def _insert_batch(unit: Unit, newborn: Batch, new: NewBatch) -> Batch:
    now = unit.now
    batch_id = new.id or new_id()
    started_at, completed_at, frozen = new.started_at, None, None
    if new.status in TERMINAL_BATCH:
        completed_at = now if new.completed_at is None else new.completed_at
        if new.callback_url is not None:
            frozen = payload.freeze(
                batch_id=batch_id,
                status=new.status,
                output=new.output,
                metadata=new.metadata,
                created_at=now,
                completed_at=completed_at,
            )
    elif started_at is None and new.status == "running":
        started_at = now
    batch = replace(
        newborn,
        id=batch_id,
        plan_id=new.plan_id,
        callback_url=new.callback_url,
        metadata=new.metadata,
        status=new.status,
        output=new.output,
        items_total=len(new.items) if new.items is not None else new.items_total,
        payload=frozen,
        started_at=started_at,
        completed_at=completed_at,
    )
    unit.tx.insert_batch(batch)
    if new.items:
        unit.tx.put_items([_new_item(batch, k, item) for k, item in enumerate(new.items)])
    if frozen is not None:
        make_delivery(unit, batch, frozen, is_automatic=True)
    return batch


def _new_item(batch: Batch, index: int, new: NewItem) -> Item:
    return Item(
        org_id=batch.org_id,
        batch_id=batch.id,
        sequence_index=index,
        client_ref=new.client_ref,
        status="queued",
        input=new.input,
        output=None,
        error=None,
        updated_at=batch.created_at,
    )


def end_batch(
    unit: Unit,
    batch: Batch,
    status: TerminalStatus,
    output: bytes | None,
    completed_at: Micros | None,
) -> Batch:
    """Bring a batch into its terminal state, and make its automatic delivery with it."""
    if output is None:
        output = batch.output
    if output is None and settled(batch):
        output = payload.items_output(
            unit.tx.items(batch.org_id, batch.id, None, None),
            batch.items_succeeded,
            batch.items_failed,
            batch.items_cancelled,
            batch.items_total or 0,
        )
    if completed_at is None:
        completed_at = unit.now
    frozen = None
    if batch.callback_url is not None:
        frozen = payload.freeze(
            batch_id=batch.id,
            status=status,
            output=output,
            metadata=batch.metadata,
            created_at=batch.created_at,
            completed_at=completed_at,
        )
    batch = replace(
        batch,
        status=status,
        output=output,
        payload=frozen,
        completed_at=completed_at,
        updated_at=unit.now,
    )
    unit.tx.update_batch(batch)
    if frozen is not None:
        make_delivery(unit, batch, frozen, is_automatic=True)
    return batch


def settled(batch: Batch) -> int:
    """How many items have ended."""
    return batch.items_succeeded + batch.items_failed + batch.items_cancelled


def _batch(tx: Tx, org_id: str, batch_id: str) -> Batch:
    batch = tx.batch(org_id, batch_id)
    if batch is None:
        raise NotFound
    return batch


def _batch_exists(batch_id: str) -> StateRefused:
    return StateRefused("batch_exists", f"a batch with id {batch_id} exists already")


def has_ended(batch: Batch) -> StateRefused:
    """The refusal of a change to a batch that has ended (contract 4.1)."""
    return StateRefused("invalid_state", f"batch {batch.id} has ended as {batch.status}")
