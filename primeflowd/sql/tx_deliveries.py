"""Deliveries, their attempts and their payloads."""

from collections.abc import Collection
from itertools import accumulate
from typing import Any

from sqlalchemy import ColumnElement, func, select

from primeflowd.hookspecs import DeliveryFilter, Page
from primeflowd.model import Attempt, Delivery
from primeflowd.sql import rows
from primeflowd.sql.session import Session, chunks
from primeflowd.sql.statements import delivery_update, hidden
from primeflowd.sql.tables import FAILED, IN_FLIGHT, attempts, batches, deliveries
from primeflowd.sql.tx_batches import created_within, newest_first


class DeliveryStatements(Session):
    def insert_delivery(self, delivery: Delivery) -> None:
        if delivery.claimed_by is None:
            self.left_for_others = True
        # As _keep(), for each callback.
        if delivery.id in self._deliveries:
            self._kept_already(delivery.id)
        self._deliveries[delivery.id] = delivery

    def delivery(self, org_id: str | None, delivery_id: str) -> Delivery | None:
        query = select(*rows.DELIVERIES.columns).where(deliveries.c.id == delivery_id)
        if org_id is not None:
            query = query.where(hidden(deliveries.c.org_id) == org_id)
        found = self._read(self._locking(query))
        return rows.DELIVERIES.value(found[0]) if found else None

    def in_flight(self, org_id: str, batch_id: str) -> Delivery | None:
        found = self._read(
            select(*rows.DELIVERIES.columns).where(
                deliveries.c.batch_id == batch_id, hidden(deliveries.c.org_id) == org_id, IN_FLIGHT
            )
        )
        return rows.DELIVERIES.value(found[0]) if found else None

    def deliveries(self, org_id: str, where: DeliveryFilter, page: Page) -> list[Delivery]:
        query = newest_first(deliveries, page).with_only_columns(*rows.DELIVERIES.columns)
        found = self._read(query.where(*_matching(org_id, where)))
        return [rows.DELIVERIES.value(row) for row in found]

    def count_deliveries(self, org_id: str, where: DeliveryFilter) -> int:
        query = select(func.count()).select_from(deliveries).where(*_matching(org_id, where))
        count: int = self._read(query)[0][0]
        return count

    def update_delivery(self, delivery: Delivery) -> None:
        if delivery.claimed_by is None:
            self.left_for_others = True
        if delivery.id in self._deliveries or delivery.id in self._records:
            self.flush()
        self._write_hot(self._hot.update_delivery, delivery_update(delivery))

    def failed_after(
        self, org_id: str, where: DeliveryFilter, position: str | None, limit: int
    ) -> list[Delivery]:
        query = select(*rows.DELIVERIES.columns).where(*_matching(org_id, where), FAILED)
        # Asked for at the start too: without it SQLite reads the window by its instants and sorts.
        query = query.where(deliveries.c.id > (position or ""))
        found = self._read(query.order_by(deliveries.c.id).limit(limit))
        return [rows.DELIVERIES.value(row) for row in found]

    def attempts(self, delivery_ids: Collection[str]) -> dict[str, list[Attempt]]:
        found: dict[str, list[Attempt]] = {}
        for chunk in chunks(delivery_ids):
            query = select(*rows.ATTEMPTS.columns).where(attempts.c.delivery_id.in_(chunk))
            for row in self._read(
                query.order_by(attempts.c.delivery_id, attempts.c.attempt_number)
            ):
                attempt = rows.ATTEMPTS.value(row)
                found.setdefault(attempt.delivery_id, []).append(attempt)
        return found

    def payloads(
        self, deliveries: Collection[Delivery], within: int | None = None
    ) -> dict[str, bytes]:
        # An id of a batch is its org's: the org is compared here, so that the rows are found by
        # the key alone.
        if within is not None:
            deliveries = self._first_within(deliveries, within)
        payloads = self._of_batches(deliveries, batches.c.payload)
        keys = ((each.id, (each.org_id, each.batch_id)) for each in deliveries)
        return {delivery_id: payloads[key] for delivery_id, key in keys if key in payloads}

    def _first_within(self, deliveries: Collection[Delivery], within: int) -> list[Delivery]:
        """The first of these whose payloads make at most so many bytes in all.

        A length costs no more than a row's header: the pages that a large value overflows to stay
        unread.
        """
        sizes = self._of_batches(deliveries, func.length(batches.c.payload))
        known = [each for each in deliveries if (each.org_id, each.batch_id) in sizes]
        totals = accumulate(sizes[each.org_id, each.batch_id] for each in known)
        return [each for each, total in zip(known, totals, strict=True) if total <= within]

    def _of_batches(
        self, deliveries: Collection[Delivery], column: ColumnElement[Any]
    ) -> dict[tuple[str, str], Any]:
        """A value of each delivery's batch, by org and id of the batch, where there is one."""
        found: dict[tuple[str, str], Any] = {}
        for chunk in chunks({each.batch_id for each in deliveries}):
            query = select(batches.c.org_id, batches.c.id, column.label("value")).where(
                batches.c.id.in_(chunk), column.is_not(None)
            )
            found.update(((row.org_id, row.id), row.value) for row in self._read(query))
        return found


def _matching(org_id: str, where: DeliveryFilter) -> list[ColumnElement[bool]]:
    of_org = deliveries.c.org_id == org_id
    if where.batch_id is not None or where.ids is not None:
        of_org = hidden(deliveries.c.org_id) == org_id
    conditions = [of_org, *created_within(deliveries, where)]
    for column, value in (
        (deliveries.c.status, where.status),
        (deliveries.c.batch_id, where.batch_id),
        (deliveries.c.failure_reason, where.failure_reason),
        (deliveries.c.destination, where.destination),
    ):
        if value is not None:
            conditions.append(column == value)
    if where.ids is not None:
        conditions.append(deliveries.c.id.in_(where.ids))
    return conditions
