"""What retention costs: what is old, not what is kept."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from primeflowd.hookspecs import Removed
from primeflowd.instants import MILLISECOND
from primeflowd.sql import rows
from primeflowd.sql.statements import Statements
from primeflowd.sql.tx import SqlTx
from primeflowd.testing.conformance.retention import at, ended
from primeflowd.testing.factories import NOW, make_attempt
from tests.sql.database import make_database
from tests.sql.test_queue_plans import count_steps

KEPT = 30_000
OLD = 200
ORGS = 500
SPARE = NOW + OLD * MILLISECOND
"""What was made before this is old."""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """Callbacks of one org, a millisecond apart, and one each of many others, which are young."""
    engine = make_database(tmp_path_factory.mktemp("retention") / "storage.db")
    batches = [at(NOW + k * MILLISECOND) for k in range(OLD + KEPT)]
    batches += [at(2 * NOW, org_id=f"other-{k}") for k in range(ORGS)]
    deliveries = [ended(batch, attempt_count=1) for batch in batches]
    attempts = [make_attempt(delivery_id=d.id, created_at=d.created_at) for d in deliveries]
    statements = Statements(engine.dialect)
    with engine.begin() as connection:
        for insert, values in (
            (statements.insert_batch, [tuple(rows.BATCHES.row(each)) for each in batches]),
            (
                statements.insert_delivery,
                [tuple(rows.DELIVERIES.row(each)) for each in deliveries],
            ),
            (statements.insert_attempt, [tuple(rows.ATTEMPTS.row(each)) for each in attempts]),
        ):
            connection.exec_driver_sql(insert.one, values)
    return engine


@pytest.fixture
def tx(engine: Engine) -> Iterator[SqlTx]:
    with engine.connect() as connection, connection.begin() as transaction:
        yield SqlTx(connection, Statements(engine.dialect), writes=True)
        transaction.rollback()


def test_young_batches_cost_nothing(tx: SqlTx) -> None:
    """Of one org some thousands, of many orgs one each: a seek or two for each org."""
    found, position = tx.expired_batches(SPARE, None, 1_000)
    assert (len(found), position) == (OLD, None)
    assert count_steps(tx, lambda: tx.expired_batches(SPARE, None, 1_000)) < 100 * (OLD + ORGS)
    assert count_steps(tx, lambda: tx.expired_batches(NOW, None, 1_000)) < 100 * ORGS < 2 * KEPT


def test_removal_reads_what_it_removes(tx: SqlTx) -> None:
    found, _ = tx.expired_batches(SPARE, None, 100)
    gone: list[Removed] = []
    steps = count_steps(tx, lambda: gone.append(tx.remove_batches(found, SPARE, 300)))
    assert gone == [Removed(batches=100, deliveries=100, attempts=100)]
    assert steps < 400 * 100 < 2 * KEPT


def test_young_bodies_cost_nothing(tx: SqlTx) -> None:
    found, position = tx.old_bodies(SPARE, "", 1_000)
    assert (len(found), position) == (OLD, None)
    assert count_steps(tx, lambda: tx.old_bodies(SPARE, "", 1_000)) < 100 * OLD < 2 * KEPT
    assert count_steps(tx, lambda: tx.old_bodies(SPARE, found[-1], 1_000)) < 1_000
    assert count_steps(tx, lambda: tx.forget_bodies(found[:100], SPARE)) < 100 * 100 < 2 * KEPT
