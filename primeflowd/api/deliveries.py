"""Deliveries: a batch's callback history and redelivery (document B), and `/v1/deliveries`
(contract 4.8, 4.9, 5 and 5.4).

`delivering` is not in storage (see model.py): it is what this node's senders are on at the moment
an answer is made.
"""

from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple, get_args

import msgspec

from primeflowd import callback_url
from primeflowd.api import batches, cursors, decode, idempotency, shapes
from primeflowd.api.answer import Answer
from primeflowd.api.batches import choice
from primeflowd.api.call import Call, Route, canonical_uuid
from primeflowd.errors import NotFound
from primeflowd.hookspecs import DeliveryFilter, Page, Tx
from primeflowd.instants import Micros
from primeflowd.model import Attempt, Delivery, DeliveryStatus, FailureReason
from primeflowd.redelivery import attempt_now, cancel_delivery, redeliver
from primeflowd.unit import Unit


class EmptyBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a request that needs none."""


class AnyBody(msgspec.Struct, frozen=True):
    """B's request has no body; whatever an object holds is ignored (contract 2.10)."""


class Shown(NamedTuple):
    """A delivery with all that its shape shows."""

    delivery: Delivery
    payload: bytes
    attempts: list[Attempt]


_empty: Final = msgspec.json.Decoder(EmptyBody)
_any: Final = msgspec.json.Decoder(AnyBody)


async def redeliver_batch(call: Call) -> Answer:
    """Make another delivery of an ended batch; B's answer."""
    batch_id = call.identifier("batch_id")
    await decode.body(call, _any, may_be_absent=True)
    operation = partial(_shown_after, partial(redeliver, org_id=call.org_id, batch_id=batch_id))
    return await idempotency.perform(call, operation, partial(_render, 201, False))


async def history(call: Call) -> Answer:
    """All deliveries of a batch, newest first, with their attempts: a bare array (2.9)."""
    found = await call.services.storage.read(
        partial(_history, call.org_id, call.identifier("batch_id"))
    )
    return shapes.answer(200, [_shape(each, call.services.delivering) for each in found])


async def list_page(call: Call) -> Answer:
    """A page of the org's deliveries."""
    page = cursors.requested_page(call)
    status = choice(call, "status_code", get_args(DeliveryStatus))
    # One look for the whole answer: a delivery must not be selected by one and shown by another.
    delivering = frozenset(call.services.delivering_now())
    where = _filter(call, status, delivering)
    if where is None:
        return shapes.page([], None)
    found, more = await call.services.storage.read(partial(_list, call.org_id, where, page))
    following = cursors.encode(*_position(found[-1])) if more else None
    if status == "pending":
        found = [each for each in found if each.delivery.id not in delivering]
    return shapes.page([_shape(each, delivering.__contains__) for each in found], following)


async def get(call: Call) -> Answer:
    """One delivery."""
    found = await call.services.storage.read(
        partial(_get, call.org_id, call.identifier("delivery_id"))
    )
    return shapes.answer(200, _shape(found, call.services.delivering))


async def cancel(call: Call) -> Answer:
    """End a delivery as `failed`/`cancelled`."""
    delivery_id = call.identifier("delivery_id")
    await decode.body(call, _empty, may_be_absent=True)
    operation = partial(
        _shown_after, partial(cancel_delivery, org_id=call.org_id, delivery_id=delivery_id)
    )
    return await idempotency.perform(call, operation, partial(_render, 201, False))


async def hasten(call: Call) -> Answer:
    """Make a waiting delivery due at once."""
    delivery_id = call.identifier("delivery_id")
    await decode.body(call, _empty, may_be_absent=True)
    operation = partial(
        _shown_after, partial(attempt_now, org_id=call.org_id, delivery_id=delivery_id)
    )
    delivering = call.services.delivering(delivery_id)
    return await idempotency.perform(call, operation, partial(_render, 202, delivering))


def destination(written: str | None) -> str | None:
    """A destination as stored, from one that may leave out the port.

    Raises:
        InvalidRequest: `invalid_destination`.
    """
    if written is None:
        return None
    try:
        return callback_url.parse(written).destination
    except ValueError as error:
        raise decode.invalid("destination", "expected one as https://example.com:443") from error


def _filter(
    call: Call, status: DeliveryStatus | None, delivering: frozenset[str]
) -> DeliveryFilter | None:
    """What the query asks for; None where nothing can match, which excuses no other mistake."""
    written = call.query("batch_id")
    batch_id = None if written is None else canonical_uuid(written)
    where = DeliveryFilter(
        status="pending" if status == "delivering" else status,
        batch_id=batch_id,
        failure_reason=choice(call, "failure_reason_code", get_args(FailureReason)),
        destination=destination(call.query("destination")),
        created_after=decode.query_instant(call, "created_after"),
        created_before=decode.query_instant(call, "created_before"),
        ids=tuple(delivering) if status == "delivering" else None,
    )
    is_no_id = written is not None and batch_id is None
    return None if is_no_id or (status == "delivering" and not delivering) else where


def _shown_after(operation: Callable[[Unit], Delivery], unit: Unit) -> Shown:
    return _with_all(unit.tx, [operation(unit)])[0]


def _history(org_id: str, batch_id: str, tx: Tx) -> list[Shown]:
    batches.find(org_id, batch_id, tx)
    where = DeliveryFilter(batch_id=batch_id)
    found: list[Shown] = []
    before = None
    while True:
        rows = tx.deliveries(org_id, where, Page(cursors.MAX_LIMIT, before))
        found += _with_all(tx, rows)
        if len(rows) < cursors.MAX_LIMIT:
            return found
        before = _position(found[-1])


def _list(org_id: str, where: DeliveryFilter, page: Page, tx: Tx) -> tuple[list[Shown], bool]:
    def fetch(limit: int, before: tuple[Micros, str] | None) -> list[Shown]:
        return _with_all(tx, tx.deliveries(org_id, where, Page(limit, before)))

    return cursors.gather(fetch, _position, _weight, page.limit, page.before)


def _get(org_id: str, delivery_id: str, tx: Tx) -> Shown:
    delivery = tx.delivery(org_id, delivery_id)
    if delivery is None:
        raise NotFound
    return _with_all(tx, [delivery])[0]


def _with_all(tx: Tx, deliveries: list[Delivery]) -> list[Shown]:
    """Deliveries with their payloads and attempts, in two statements however many they are."""
    payloads = tx.payloads(deliveries)
    attempts = tx.attempts([each.id for each in deliveries])
    return [Shown(each, payloads[each.id], attempts.get(each.id, [])) for each in deliveries]


def _position(shown: Shown) -> tuple[Micros, str]:
    return shown.delivery.created_at, shown.delivery.id


def _weight(shown: Shown) -> int:
    # The payload is in the answer twice, as text and as JSON.
    return 2 * len(shown.payload) + sum(len(each.response_body or "") for each in shown.attempts)


def _shape(shown: Shown, is_delivering: Callable[[str], bool]) -> shapes.DeliveryShape:
    return shapes.delivery(
        shown.delivery,
        shown.payload,
        shown.attempts,
        delivering=is_delivering(shown.delivery.id),
    )


def _render(status: int, delivering: bool, shown: Shown) -> Answer:
    return shapes.answer(
        status,
        shapes.delivery(shown.delivery, shown.payload, shown.attempts, delivering=delivering),
    )


_OF_BATCH: Final = "/v1/batches/<batch_id>"
_PATH: Final = "/v1/deliveries"

ROUTES: Final = (
    Route("GET", f"{_OF_BATCH}/callback", "batches:read", history),
    Route("POST", f"{_OF_BATCH}/callback-redeliveries", "batches:write", redeliver_batch),
    Route("GET", _PATH, "deliveries:read", list_page),
    Route("GET", f"{_PATH}/<delivery_id>", "deliveries:read", get),
    Route("POST", f"{_PATH}/<delivery_id>/cancellation", "deliveries:write", cancel),
    Route("POST", f"{_PATH}/<delivery_id>/attempt-now", "deliveries:write", hasten),
)
