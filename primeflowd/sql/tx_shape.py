"""The shape of the queue: how many deliveries wait, by destination and by when they are due.

One pass over the index of what is unclaimed, destination by destination, and one over what nodes
hold, which is little. No row of the table is looked up for the first, whoever's are counted, and
nothing is sorted but the destinations: a million take some 0.2 s, once the index (100 MB of it) is
in memory.
"""

from collections.abc import Sequence
from functools import lru_cache
from operator import sub
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    CompoundSelect,
    Integer,
    Select,
    TextClause,
    bindparam,
    func,
    literal_column,
    null,
    select,
    union_all,
)

from primeflowd.hookspecs import Shape
from primeflowd.instants import Micros
from primeflowd.sql.session import Session
from primeflowd.sql.statements import hidden
from primeflowd.sql.tables import CLAIMED, DUE, deliveries


class ShapeStatements(Session):
    def shape(self, org_id: str | None, edges: Sequence[Micros], limit: int) -> Shape:
        values: dict[str, Any] = {f"edge_{index}": edge for index, edge in enumerate(edges)}
        values |= {"rows": limit, **({} if org_id is None else {"org": org_id})}
        found = self._read(_statement(len(edges), org_id is not None), values)
        rows = {row[0]: _apart(row[2:]) for row in found if row[0] is not None}
        [whole] = [row for row in found if row[0] is None]
        ordered = sorted(rows.items(), key=lambda row: (-sum(row[1]), row[0]))
        return Shape(tuple(ordered), _apart(whole[2:]), whole[1])


def _apart(before: Sequence[Any]) -> tuple[int, ...]:
    """Counts from edge to edge, from the counts up to each; a sum over nothing is null."""
    up_to = [int(count or 0) for count in before]
    return tuple(map(sub, up_to, [0, *up_to]))


@lru_cache
def _statement(edges: int, of_org: bool) -> CompoundSelect[Any]:
    """The largest destinations, and a row without a destination for all of them.

    Each with a number (of destinations, in that row) and the counts up to each edge.
    """
    names = [*(f"before_{index}" for index in range(edges)), "waiting"]
    each = _each_destination(names, of_org)
    counts = [each.c[name] for name in names]
    largest = (
        select(each.c.destination, literal_column("1").label("of"), *counts)
        .order_by(each.c.waiting.desc(), each.c.destination)
        .limit(bindparam("rows", type_=Integer))
        .subquery("largest")
    )
    whole = select(null(), func.count(), *map(func.sum, counts)).select_from(each)
    return union_all(select(largest), whole)


def _each_destination(names: Sequence[str], of_org: bool) -> CTE:
    """What waits for each destination; both halves of the answer are made from it."""
    counts: list[ColumnElement[int]] = [
        func.count().filter(deliveries.c.due_at < bindparam(f"edge_{index}"))
        for index in range(len(names) - 1)
    ]
    counts.append(func.count())

    def grouped(*conditions: ColumnElement[bool] | TextClause) -> Select[Any]:
        labelled = [count.label(name) for name, count in zip(names, counts, strict=True)]
        query = select(deliveries.c.destination, *labelled).where(*conditions)
        if of_org:
            # Not by the index of the org: that has all that it ever sent. The one of destinations
            # has the org beside them.
            query = query.where(hidden(deliveries.c.org_id) == bindparam("org"))
        return query.group_by(deliveries.c.destination)

    # A bound below every node's name: without one, SQLite does not take the index of claims.
    held = deliveries.c.claimed_by > literal_column("''")
    pending = hidden(deliveries.c.status) == literal_column("'pending'")
    parts = union_all(grouped(DUE), grouped(CLAIMED, held, pending)).subquery("parts")
    sums = [func.sum(parts.c[name]).label(name) for name in names]
    query = select(parts.c.destination, *sums).group_by(parts.c.destination)
    return query.cte("each_destination")
