"""Rows inserted several at a time, with what they have in common given once."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from primeflowd.instants import SECOND
from primeflowd.model import Delivery
from primeflowd.sql import rows
from primeflowd.sql.given_rows import MANY, SIZES
from primeflowd.sql.statements import Statements
from primeflowd.testing.factories import NOW, make_delivery
from tests.sql.database import make_database


def alike(count: int) -> list[Delivery]:
    return [make_delivery(id=f"id-{k:03}", batch_id=f"batch-{k}") for k in range(count)]


def mixed(count: int) -> list[Delivery]:
    """With columns that a few rows have otherwise than the rest, with and without a value."""
    return [
        make_delivery(
            id=f"id-{k:03}",
            batch_id=f"batch-{k}",
            org_id="other" if k == count - 1 else "org",
            claimed_by="node" if k % 3 else None,
            is_automatic=bool(k % 2),
            due_at=NOW + k // 2 * SECOND,
            delays=("5s",) if k == 1 else ("1s", "2s"),
        )
        for k in range(count)
    ]


@pytest.mark.parametrize("make", [alike, mixed])
@pytest.mark.parametrize("count", [1, 3, 4, 5, MANY - 1, MANY, MANY + 1, sum(SIZES), 200])
def test_every_row_is_stored_as_it_is(
    tmp_path: Path, make: Callable[[int], list[Delivery]], count: int
) -> None:
    engine = make_database(tmp_path / "storage.db")
    deliveries = make(count)
    insert = Statements(engine.dialect).insert_delivery
    with engine.begin() as connection:
        for statement, values in insert.runs(rows.DELIVERIES.rows(deliveries)):
            connection.exec_driver_sql(statement, [tuple(each) for each in values])
        names = ", ".join(rows.DELIVERIES.names)
        found = connection.exec_driver_sql(f"SELECT {names} FROM deliveries ORDER BY id").all()
    assert [rows.DELIVERIES.value(row) for row in found] == deliveries


def test_what_rows_share_is_given_once() -> None:
    """And so is that they have no value; what is theirs alone is not."""
    dialect: Any = sqlite.dialect
    insert = Statements(dialect()).insert_delivery
    deliveries = alike(SIZES[0])
    [(_, [values])] = insert.runs(rows.DELIVERIES.rows(deliveries))
    own = 2  # the ids of delivery and batch
    assert len(values) == len(rows.DELIVERIES.names) - own + own * SIZES[0]
    assert values.count("org") <= 1
    few = alike(SIZES[2])
    [(_, [values])] = insert.runs(rows.DELIVERIES.rows(few))
    assert len(values) == len(rows.DELIVERIES.names) * SIZES[2]


def test_run_that_fails_leaves_its_rows_to_the_end_of_the_transaction(tmp_path: Path) -> None:
    """Taking them back by itself would cost SQLite copies of all pages that it changes."""
    engine = make_database(tmp_path / "storage.db")
    insert = Statements(engine.dialect).insert_delivery
    *others, last = alike(SIZES[1])
    late = replace(last, batch_id=others[0].batch_id)
    [(statement, [values])] = insert.runs(rows.DELIVERIES.rows([*others, late]))
    stored = "SELECT count(*) FROM deliveries"
    with engine.connect() as connection:
        with pytest.raises(IntegrityError):
            connection.exec_driver_sql(statement, tuple(values))
        assert connection.exec_driver_sql(stored).scalar_one() == len(others)
        connection.rollback()
        assert connection.exec_driver_sql(stored).scalar_one() == 0


def test_other_drivers_insert_row_by_row() -> None:
    dialect: Any = partial(postgresql.dialect, paramstyle="format")
    insert = Statements(dialect()).insert_delivery
    values = rows.DELIVERIES.rows(mixed(100))
    assert list(insert.runs(values)) == [(insert.one, values)]
