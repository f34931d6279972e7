"""Rows and values: one column for each field, and nothing lost between them."""

from functools import partial
from typing import Any

import msgspec
import pytest
from sqlalchemy.dialects import postgresql, sqlite

from primeflowd.payload import freeze
from primeflowd.sql import rows, tables
from primeflowd.sql.given_rows import Given
from primeflowd.sql.statements import CHANGING_BATCH, CHANGING_DELIVERY, Statements
from primeflowd.testing import factories

PAIRS: list[tuple[rows.Rows[Any], Any]] = [
    (rows.BATCHES, factories.make_batch(metadata=b"{}")),
    (rows.ITEMS, factories.make_item(client_ref="a")),
    (rows.DELIVERIES, factories.make_delivery(failure_detail="x")),
    (rows.ATTEMPTS, factories.make_attempt(error_message="x")),
    (rows.POLICIES, factories.make_policy()),
    (rows.DESTINATION_POLICIES, factories.make_destination_policy(sealed_headers=b"x")),
    (rows.SECRETS, factories.make_secret()),
    (rows.KEYS, factories.make_key(scopes=("a", "ü"))),
    (rows.ANSWERS, factories.make_answer()),
    (rows.RECOVERIES, factories.make_recovery()),
]


@pytest.mark.parametrize(("of", "value"), PAIRS, ids=lambda p: getattr(p, "names", ("",))[0])
def test_there_and_back(of: rows.Rows[Any], value: Any) -> None:
    row = of.row(value)
    assert of.value(row) == value
    # A database without booleans gives whole numbers.
    assert of.value([int(v) if isinstance(v, bool) else v for v in row]) == value
    assert list(of.mapping(value)) == list(of.names)


@pytest.mark.parametrize(("of", "value"), PAIRS, ids=lambda p: getattr(p, "names", ("",))[0])
def test_columns_are_the_fields(of: rows.Rows[Any], value: msgspec.Struct) -> None:
    assert set(of.names) == set(type(value).__struct_fields__)


def test_a_batch_is_not_stored_beside_the_payload_that_repeats_it() -> None:
    payload = freeze(
        batch_id="b",
        status="succeeded",
        output=b"[1]",
        metadata=b"{}",
        created_at=factories.NOW,
        completed_at=factories.NOW,
    )
    batch = factories.make_batch(id="b", output=b"[1]", metadata=b"{}", payload=payload)
    stored = rows.BATCHES.mapping(batch)
    assert stored["output"] is None
    assert stored["metadata"] is None
    assert rows.BATCHES.value(rows.BATCHES.row(batch)) == batch
    before = rows.BATCHES.mapping(msgspec.structs.replace(batch, payload=None))
    assert (before["output"], before["metadata"]) == (b"[1]", b"{}")


def test_every_table_of_values_has_its_struct() -> None:
    others = {tables.notes, tables.nodes, tables.orders}
    assert {of.table for of, _ in PAIRS} == set(tables.metadata.sorted_tables) - others


def test_what_may_change_are_columns() -> None:
    assert set(CHANGING_BATCH) < set(rows.BATCHES.names)
    assert set(CHANGING_DELIVERY) < set(rows.DELIVERIES.names)


def test_hot_statements_compile_for_other_databases_too() -> None:
    dialects: list[Any] = [sqlite.dialect, partial(postgresql.dialect, paramstyle="format")]
    for dialect in dialects:
        for name, sql in vars(Statements(dialect())).items():
            text = sql.one if isinstance(sql, Given) else sql
            assert name == "dialect" or text.startswith(("INSERT", "UPDATE", "SELECT"))
