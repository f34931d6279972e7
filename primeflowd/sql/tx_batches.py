"""Batches and their items."""

from collections.abc import Collection, Sequence

from msgspec.structs import replace
from sqlalchemy import ColumnElement, Select, Table, select, tuple_

from primeflowd.hookspecs import BatchFilter, DeliveryFilter, Page
from primeflowd.model import Batch, Item
from primeflowd.payload import repeats
from primeflowd.sql import rows
from primeflowd.sql.session import Session, chunks
from primeflowd.sql.statements import batch_update, hidden, upsert
from primeflowd.sql.tables import batches, items


class BatchStatements(Session):
    def batch(self, org_id: str, batch_id: str) -> Batch | None:
        if batch_id in self._batches:
            kept = self._batches[batch_id]
            return kept if kept.org_id == org_id else None
        query = select(*rows.BATCHES.columns).where(
            batches.c.id == batch_id, hidden(batches.c.org_id) == org_id
        )
        found = self._read_stored(self._locking(query))
        return rows.BATCHES.value(found[0]) if found else None

    def taken_batch_ids(self, batch_ids: Collection[str]) -> set[str]:
        taken = {batch_id for batch_id in batch_ids if batch_id in self._batches}
        if len(batch_ids) == 1:
            # One batch by itself is what most clients send.
            found = self._read_hot(self._hot.taken_batch_id, (*batch_ids,))
            return taken.union(*found)
        for chunk in chunks(batch_ids):
            found = self._read_stored(select(batches.c.id).where(batches.c.id.in_(chunk)))
            taken.update(row.id for row in found)
        return taken

    def insert_batch(self, batch: Batch) -> None:
        # As _keep(), for each callback.
        if batch.id in self._batches:
            self._kept_already(batch.id)
        self._batches[batch.id] = batch

    def update_batch(self, batch: Batch) -> None:
        if batch.id in self._batches:
            self.flush()
        if repeats(batch):
            # As when it is inserted, see rows.BatchRows.
            batch = replace(batch, output=None)
        self._write_hot(self._hot.update_batch, batch_update(batch))

    def batches(self, org_id: str, where: BatchFilter, page: Page) -> list[Batch]:
        query = newest_first(batches, page).where(batches.c.org_id == org_id)
        query = query.with_only_columns(*rows.BATCHES.columns).where(
            *created_within(batches, where)
        )
        if where.status is not None:
            query = query.where(batches.c.status == where.status)
        if where.plan_id is not None:
            query = query.where(batches.c.plan_id == where.plan_id)
        return [rows.BATCHES.value(row) for row in self._read(query)]

    def items(
        self, org_id: str, batch_id: str, after_index: int | None, limit: int | None
    ) -> list[Item]:
        query = select(*rows.ITEMS.columns).where(
            items.c.batch_id == batch_id, items.c.org_id == org_id
        )
        if after_index is not None:
            query = query.where(items.c.sequence_index > after_index)
        found = self._read_stored(query.order_by(items.c.sequence_index).limit(limit))
        return [rows.ITEMS.value(row) for row in found]

    def find_items(
        self, org_id: str, batch_id: str, indexes: Collection[int], client_refs: Collection[str]
    ) -> list[Item]:
        found: dict[int, Item] = {}
        of_batch = select(*rows.ITEMS.columns).where(
            items.c.batch_id == batch_id, items.c.org_id == org_id
        )
        queries = [
            *(of_batch.where(items.c.sequence_index.in_(chunk)) for chunk in chunks(indexes)),
            *(of_batch.where(items.c.client_ref.in_(chunk)) for chunk in chunks(client_refs)),
        ]
        for query in queries:
            for row in self._read_stored(query):
                item = rows.ITEMS.value(row)
                found[item.sequence_index] = item
        return list(found.values())

    def put_items(self, items: Sequence[Item]) -> None:
        if items:
            statement = upsert(self._hot.dialect, rows.ITEMS.table)
            self._write(statement, [rows.ITEMS.mapping(item) for item in items])


def newest_first(table: Table, page: Page) -> Select[*tuple[object, ...]]:
    position = tuple_(table.c.created_at, table.c.id)
    query = select(table).order_by(table.c.created_at.desc(), table.c.id.desc()).limit(page.limit)
    # A row value, not "a < x OR (a = x AND b < y)": SQLite seeks the index only for this.
    return query.where(position < page.before) if page.before is not None else query


def created_within(table: Table, where: BatchFilter | DeliveryFilter) -> list[ColumnElement[bool]]:
    conditions = []
    if where.created_after is not None:
        conditions.append(table.c.created_at > where.created_after)
    if where.created_before is not None:
        conditions.append(table.c.created_at < where.created_before)
    return conditions
