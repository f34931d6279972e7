"""Retention: finding what is old by the indexes that are there, and removing it in small steps.

Batches are found through the index of an org's list, one org after the other: a seek for each, and
then only what is old enough. Response bodies are found by the key of attempts, which is in the
order in which deliveries were made. So a step costs what it looks at, however much is younger.
"""

from collections.abc import Collection, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, Final

from msgspec.structs import replace
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Delete,
    Integer,
    Select,
    Table,
    Text,
    bindparam,
    delete,
    func,
    or_,
    select,
    text,
    tuple_,
    update,
)

from primeflowd.hookspecs import BatchPosition, Removed
from primeflowd.instants import Micros
from primeflowd.model import TERMINAL_BATCH, TERMINAL_DELIVERY, first_id
from primeflowd.sql.session import Session, chunks
from primeflowd.sql.statements import hidden
from primeflowd.sql.tables import attempts, batches, deliveries, items

_ORGS: Final = 1_000
"""Most orgs that one look passes by."""

_INCREMENTAL: Final = 2
"""PRAGMA auto_vacuum of a file that gives space back when it is told to."""

_SPARE_SHARE: Final = 10
_SPARE: Final = 1024 * 1024
"""A tenth of a SQLite file, or a megabyte, may lie unused: what comes in takes it up again, and a
file that was cut to the byte would only have to grow."""


def _following_orgs() -> Select[Any]:
    """The orgs from `:org` on, in order, each with the instant of its oldest batch: two seeks per
    org, however many batches it has (see tx_queue._each_destination)."""
    smallest = func.min(batches.c.org_id)
    first = select(smallest.label("org_id")).where(batches.c.org_id >= bindparam("org", type_=Text))
    each = first.cte("each", recursive=True)
    following = select(smallest).where(batches.c.org_id > each.c.org_id)
    each = each.union_all(select(following.scalar_subquery()).where(each.c.org_id.is_not(None)))
    oldest = select(func.min(batches.c.created_at)).where(batches.c.org_id == each.c.org_id)
    return (
        select(each.c.org_id, oldest.scalar_subquery().label("oldest"))
        .where(each.c.org_id.is_not(None))
        .limit(_ORGS)
    )


_orgs: Final = _following_orgs()

_oldest_of_org: Final = (
    select(batches.c.created_at, batches.c.id, batches.c.status, batches.c.updated_at)
    .where(
        batches.c.org_id == bindparam("org"),
        batches.c.created_at < bindparam("before"),
        tuple_(batches.c.created_at, batches.c.id)
        > tuple_(bindparam("at", type_=BigInteger), bindparam("id", type_=Text)),
    )
    .order_by(batches.c.created_at, batches.c.id)
    .limit(bindparam("rows", type_=Integer))
)

_attempts_between: Final = (
    attempts.c.delivery_id > bindparam("after"),
    attempts.c.delivery_id < bindparam("end"),
)
_last_looked_at: Final = (
    select(attempts.c.delivery_id)
    .where(*_attempts_between)
    .order_by(attempts.c.delivery_id, attempts.c.attempt_number)
    .offset(bindparam("rows", type_=Integer))
    .limit(1)
)
_has_old_body: Final = (
    attempts.c.created_at < bindparam("before"),
    # Those that are empty tell nothing, and are most of them.
    attempts.c.response_body != text("''"),
)
_with_old_bodies: Final = (
    select(attempts.c.delivery_id)
    .distinct()
    .where(*_attempts_between, *_has_old_body)
    .order_by(attempts.c.delivery_id)
)


# Made once: to make six statements anew costs a step more than what it removes.


def _of_batches(table: Table) -> tuple[ColumnElement[bool], ...]:
    key = table.c.id if table is batches else table.c.batch_id
    return key.in_(bindparam("ids", expanding=True)), hidden(table.c.org_id) == bindparam("org")


_ended: Final = (
    select(batches.c.id, batches.c.items_total)
    .where(
        *_of_batches(batches),
        batches.c.status.in_(TERMINAL_BATCH),
        batches.c.updated_at < bindparam("before"),
    )
    .order_by(batches.c.id)
)
# One that somebody else is changing at this moment is not old.
_ended_and_free: Final = _ended.with_for_update(skip_locked=True)

_alive: Final = select(deliveries.c.batch_id).where(
    *_of_batches(deliveries),
    or_(
        deliveries.c.status.not_in(TERMINAL_DELIVERY),
        # A sender may be on it still, and has to find it.
        deliveries.c.claimed_by.is_not(None),
        deliveries.c.updated_at >= bindparam("before"),
    ),
)
_parts: Final = (
    select(deliveries.c.batch_id, deliveries.c.id, deliveries.c.attempt_count)
    .where(*_of_batches(deliveries))
    .order_by(deliveries.c.batch_id, deliveries.c.created_at)
    .limit(bindparam("rows", type_=Integer))
)

_item_key: Final = (items.c.batch_id, items.c.sequence_index)
_of_org: Final = items.c.org_id == bindparam("org")
_some_items: Final = (
    select(*_item_key)
    .where(items.c.batch_id.in_(bindparam("ids", expanding=True)), _of_org)
    .limit(bindparam("rows", type_=Integer))
)
_remove_items: Final = delete(items).where(tuple_(*_item_key).in_(_some_items), _of_org)
_remove_batches: Final = delete(batches).where(*_of_batches(batches))
_remove_deliveries: Final = delete(deliveries).where(
    deliveries.c.id.in_(bindparam("ids", expanding=True)),
    hidden(deliveries.c.org_id) == bindparam("org"),
)
_remove_attempts: Final = delete(attempts).where(
    attempts.c.delivery_id.in_(bindparam("ids", expanding=True))
)
_forget_bodies: Final = (
    update(attempts)
    .values(response_body=None)
    .where(attempts.c.delivery_id.in_(bindparam("ids", expanding=True)), *_has_old_body)
)


class RetentionStatements(Session):
    def expired_batches(
        self, before: Micros, after: BatchPosition | None, limit: int
    ) -> tuple[list[tuple[str, str]], BatchPosition | None]:
        expired: list[tuple[str, str]] = []
        start, at, batch_id = after or ("", -1, "")
        left, org_id = limit, None
        found = self._read(_orgs, {"org": start})
        for org_id, oldest in found:
            if oldest >= before:
                continue
            place = (at, batch_id) if org_id == start else (-1, "")
            values = {"org": org_id, "before": before, "at": place[0], "id": place[1]}
            looked_at = self._read(_oldest_of_org, {**values, "rows": left})
            expired += (
                (org_id, row.id)
                for row in looked_at
                if row.status in TERMINAL_BATCH and row.updated_at < before
            )
            left -= len(looked_at)
            if not left:
                return expired, (org_id, looked_at[-1].created_at, looked_at[-1].id)
        # After the last of many orgs: none of its batches is left to look at.
        return expired, (org_id, before, "") if org_id and len(found) == _ORGS else None

    def remove_batches(
        self, batches: Sequence[tuple[str, str]], before: Micros, limit: int
    ) -> Removed:
        gone = Removed()
        for org_id, group in groupby(sorted(batches), itemgetter(0)):
            left = limit - (gone.batches + gone.items + gone.deliveries + gone.attempts)
            if left <= 0:
                return replace(gone, complete=False)
            step = self._remove(org_id, [batch_id for _, batch_id in group], before, left)
            gone = Removed(
                gone.batches + step.batches,
                gone.items + step.items,
                gone.deliveries + step.deliveries,
                gone.attempts + step.attempts,
                step.complete,
            )
            if not gone.complete:
                break
        return gone

    def _remove(self, org_id: str, ids: list[str], before: Micros, limit: int) -> Removed:
        """As remove_batches, of one org."""
        dead = self._dead(org_id, ids, before)
        if not dead:
            return Removed()
        chosen: list[str] = []
        whole, rows = list(dead), 0
        parts = self._read(_parts, {"ids": whole, "org": org_id, "rows": limit + 1})
        for batch_id, delivery_id, attempt_count in parts:
            if rows >= limit:
                # Its batch has to wait, and whatever comes after it.
                whole = [each for each in dead if each < batch_id]
                break
            chosen.append(delivery_id)
            rows += 1 + attempt_count
        complete = len(whole) == len(dead)
        having_items = [batch_id for batch_id in whole if dead[batch_id] is not None]
        removed_items = self._remove_some(_remove_items, having_items, org_id, limit)
        if removed_items == limit:
            whole, complete = [], False
        return Removed(
            batches=self._remove_some(_remove_batches, whole, org_id),
            items=removed_items,
            deliveries=self._remove_some(_remove_deliveries, chosen, org_id),
            attempts=self._write(_remove_attempts, {"ids": chosen}) if chosen else 0,
            complete=complete,
        )

    def _dead(self, org_id: str, ids: list[str], before: Micros) -> dict[str, int | None]:
        """Those of these batches that may go, ascending, with their numbers of items. They stay as
        they are until the transaction ends: who wants to redeliver one has to wait for it."""
        values = {"ids": ids, "org": org_id, "before": before}
        ended = _ended_and_free if self._writes else _ended
        dead = {row.id: row.items_total for row in self._read(ended, values)}
        for row in self._read(_alive, {**values, "ids": list(dead)}) if dead else ():
            dead.pop(row.batch_id, None)
        return dead

    def _remove_some(self, statement: Delete, ids: list[str], org_id: str, rows: int = 0) -> int:
        limit = {"rows": rows} if rows else {}
        return self._write(statement, {"ids": ids, "org": org_id, **limit}) if ids else 0

    def old_bodies(self, before: Micros, after: str, limit: int) -> tuple[list[str], str | None]:
        end = first_id(before)
        values = {"after": after, "end": end}
        found = self._read(_last_looked_at, {**values, "rows": limit - 1})
        if found:
            # All of that delivery: what sorts after its id by one character comes after no other.
            values["end"] = found[0].delivery_id + " "
        ids = [
            row.delivery_id for row in self._read(_with_old_bodies, {**values, "before": before})
        ]
        return ids, found[0].delivery_id if found else None

    def forget_bodies(self, delivery_ids: Collection[str], before: Micros) -> int:
        return sum(
            self._write(_forget_bodies, {"ids": chunk, "before": before})
            for chunk in chunks(delivery_ids)
        )

    def give_back(self, octets: int) -> int:
        if self._hot.dialect.name != "sqlite":
            return 0
        if not octets and not self._writes:
            # The file becomes shorter when the log is moved into it, which only commits do by
            # themselves. Moved from here it holds up nobody. First of all: not in a transaction.
            self._read(text("PRAGMA wal_checkpoint(PASSIVE)"))
        if self._pragma("auto_vacuum") != _INCREMENTAL:
            return 0
        size = self._pragma("page_size")
        if count := min(self._surplus(), octets // size):
            self._written = True
            cursor = self._own_cursor()
            try:
                for _ in range(count):
                    # It yields a row of no columns for each page, and sqlite3 takes only the first;
                    # fetching ends the statement, without which there is no commit.
                    cursor.execute("PRAGMA incremental_vacuum(1)")
                    cursor.fetchall()
            except Exception as error:  # noqa: BLE001 -- raised again, as ours where it is
                self._fail(error)
        return self._surplus() * size

    def _surplus(self) -> int:
        """Pages that can be given back."""
        spare = max(self._pragma("page_count") // _SPARE_SHARE, _SPARE // self._pragma("page_size"))
        return max(self._pragma("freelist_count") - spare, 0)

    def _pragma(self, name: str) -> int:
        value: int = self._read(text(f"PRAGMA {name}"))[0][0]
        return value
