"""How questions are answered on large tables: from which index, and by reading how much.

Each plan is asked for twice: as planned for the values at hand, and as planned once for all values,
which is what a statement that has been prepared may get.
"""

import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from psycopg import sql
from server import Server
from sqlalchemy import Engine, event

from primeflowd.hookspecs import BatchFilter, DeliveryFilter, Page, Tx
from primeflowd.instants import HOUR
from primeflowd.sql.given_rows import Given
from primeflowd.sql.statements import Statements
from primeflowd.sql.tx import SqlTx
from primeflowd.testing.factories import NOW, ORG, make_delivery
from primeflowd_postgresql.connections import WRITING, Address

DEAD = "https://dead.example:443"
CROWD = 60_000
"""Overdue deliveries to one destination; twenty others are due after them."""

FINISHED = 60_000
"""Deliveries of the same org that have ended, every tenth badly."""

FILL_CROWD = f"""
INSERT INTO deliveries
SELECT 'crowd-' || n, 'b' || n, '{ORG}', '{DEAD}', true, 'pending', 1, 0, 3, {NOW} + n, NULL,
       {NOW} + n, {NOW} + n, NULL, 'timeout', 'default', '', NULL, '{DEAD}/hook', '["1m"]', NULL
  FROM generate_series(1, {CROWD}) AS s (n);
INSERT INTO deliveries
SELECT 'other-' || n, 'o' || n, '{ORG}', 'https://r' || to_char(n, 'FM00') || '.example:443', true,
       'pending', 1, 0, 3, {NOW} + {CROWD} + n, NULL, {NOW} + n, {NOW} + n, NULL, 'timeout',
       'default', '', NULL, 'https://r/hook', '["1m"]', NULL
  FROM generate_series(0, 19) AS s (n);
"""
FILL_DONE = f"""
INSERT INTO deliveries
SELECT 'done-' || n, 'f' || n, '{ORG}', 'https://r' || n % 20 || '.example:443', true,
       CASE WHEN n % 10 = 0 THEN 'failed' ELSE 'succeeded' END, 1, 0, 3, NULL, NULL,
       {NOW} - n, {NOW} - n, {NOW}, CASE WHEN n % 10 = 0 THEN 'timeout' END,
       'default', '', NULL, 'https://r/hook', '["1m"]', NULL
  FROM generate_series(1, {FINISHED}) AS s (n);
"""
FILL_REST = f"""
INSERT INTO attempts
SELECT id, n, id || n, 500, 10, 'http_status', NULL, {NOW}, NULL, 'no', '{ORG}'
  FROM deliveries CROSS JOIN generate_series(1, 2) AS s (n);
INSERT INTO batches
SELECT batch_id, org_id, 'plan', callback_url, 'succeeded', 2, 2, 0, 0, NULL, created_at, NULL, 1,
       1, NULL, NULL, 'x'
  FROM deliveries;
INSERT INTO items
SELECT id, n, 'r' || n, 'succeeded', 1, NULL, NULL, NULL, org_id
  FROM batches CROSS JOIN generate_series(0, 1) AS s (n);
INSERT INTO answers
SELECT '{ORG}', 'POST', '/v1/batches', 'key-' || n, 'digest', 201, false, {NOW} + n, '{{}}'
  FROM generate_series(1, 20000) AS s (n);
VACUUM ANALYZE;
"""

Plans = list[str]


@pytest.fixture(scope="module")
def engine(server: Server, template: str) -> Iterator[Engine]:
    name = server.create_database(template)
    fill(server, name, FILL_CROWD, FILL_DONE, FILL_REST)
    engine = Address(server.url(name)).engine(WRITING, None)
    yield engine
    engine.dispose()
    server.drop_database(name)


def fill(server: Server, database: str, *scripts: str) -> None:
    for script in scripts:
        for statement in filter(str.strip, script.split(";\n")):
            server.execute(statement, database)


@pytest.fixture
def tx(engine: Engine) -> Iterator[SqlTx]:
    with engine.connect() as connection, connection.begin() as transaction:
        yield SqlTx(connection, Statements(engine.dialect), writes=True)
        transaction.rollback()


@pytest.fixture(params=["force_custom_plan", "force_generic_plan"])
def plans(engine: Engine, tx: SqlTx, request: pytest.FixtureRequest) -> Iterator[Plans]:
    """The plan of every statement that runs."""
    seen: Plans = []

    def before(_c: object, cursor: Any, statement: str, parameters: Any, *_: object) -> None:
        if isinstance(parameters, tuple):
            seen.append(explain(cursor.connection, statement, parameters, request.param))

    event.listen(engine, "before_cursor_execute", before)
    yield seen
    event.remove(engine, "before_cursor_execute", before)


def explain(driver: Any, statement: str, parameters: tuple[Any, ...], mode: str) -> str:
    numbers = itertools.count(1)
    numbered = re.sub("%s", lambda _: f"${next(numbers)}", statement)
    values = sql.SQL(", ").join(map(sql.Literal, parameters))
    driver.execute(f"SET LOCAL plan_cache_mode = {mode}")
    driver.execute(f"PREPARE asked AS {numbered}")
    found = driver.execute(
        sql.SQL("EXPLAIN EXECUTE asked {}").format(
            sql.SQL("({})").format(values) if parameters else sql.SQL("")
        )
    ).fetchall()
    driver.execute("DEALLOCATE asked")
    return "\n".join(row[0] for row in found)


def wasteful(plans: Plans) -> Plans:
    """Plans that read a whole table, or sort rows of one."""
    return [plan for plan in plans if re.search(r"Seq Scan on (?!nodes|orders|notes)|Sort ", plan)]


def blocks(tx: SqlTx, function: Callable[[], object]) -> int:
    """How many pages of deliveries and their indexes a function reads, cached or not."""
    query = """
        SELECT sum(heap_blks_read + heap_blks_hit + idx_blks_read + idx_blks_hit)
          FROM pg_statio_user_tables WHERE relname = 'deliveries'
    """
    driver = tx._connection.connection.driver_connection
    assert driver is not None

    def count() -> int:
        driver.execute("SELECT pg_stat_force_next_flush()")
        driver.execute("SELECT pg_stat_clear_snapshot()")
        found: int = driver.execute(query).fetchone()[0]
        return found

    # What a transaction reads is counted when it ends.
    driver.commit()
    before = count()
    driver.commit()
    function()
    driver.rollback()
    return count() - before


def test_claim_reads_the_head_of_the_queue(tx: SqlTx, plans: Plans) -> None:
    claimed = tx.claim("node-1", NOW + 10, 100, 100, {})
    assert len(claimed) == 10
    assert "Index Scan using deliveries_due on deliveries" in plans[0]
    assert wasteful(plans) == []


def test_claim_with_a_full_destination_goes_by_destination(tx: SqlTx, plans: Plans) -> None:
    claimed = tx.claim("node-1", NOW + 10**9, 100, 5, {DEAD: 5})
    assert [d.destination for d in claimed] == [f"https://r{i:02}.example:443" for i in range(20)]
    assert wasteful(plans) == []
    by_destination = [plan for plan in plans if "deliveries_due_by_destination" in plan]
    # The destinations, then each of those that have room.
    assert len(by_destination) == 1 + 20


def test_claim_of_many_does_not_read_the_table(tx: SqlTx, plans: Plans) -> None:
    assert len(tx.claim("node-1", NOW + 10**9, 300, 300, {})) == 300
    assert wasteful(plans) == []


def test_crowd_costs_no_more_than_its_share(tx: SqlTx) -> None:
    """The head is looked past a thousand rows; the crowd has sixty times as many."""
    read = blocks(tx, lambda: tx.claim("node-1", NOW + 10**9, 100, 5, {DEAD: 5}))
    assert read < CROWD / 4


def test_claims_are_found_by_their_node(tx: SqlTx, plans: Plans) -> None:
    tx.claimed("node-1")
    tx.release("node-1", None)
    tx.end_lease("node-1")
    of_deliveries = [plan for plan in plans if "deliveries" in plan]
    assert len(of_deliveries) == 3
    assert all("using deliveries_claimed" in plan for plan in of_deliveries)


def test_lost_claims_cost_a_seek_per_node(tx: SqlTx, plans: Plans) -> None:
    tx.begin_lease("node-1", HOUR)
    tx.insert_delivery(make_delivery(claimed_by="node-2"))
    assert tx.release_lost() == 1
    assert wasteful(plans) == []
    assert any("Index Only Scan using deliveries_claimed" in plan for plan in plans)


def test_lists_are_read_in_order(tx: SqlTx, plans: Plans) -> None:
    page = Page(limit=50, before=(NOW + 100, "x"))
    for where in (
        DeliveryFilter(),
        DeliveryFilter(status="failed"),
        DeliveryFilter(status="pending"),
        DeliveryFilter(destination=DEAD),
        DeliveryFilter(failure_reason="timeout", created_after=NOW - 1_000),
    ):
        tx.deliveries(ORG, where, Page(limit=50))
        tx.deliveries(ORG, where, page)
    assert all("using deliveries_by_org on deliveries" in plan for plan in plans)
    plans.clear()
    tx.batches(ORG, BatchFilter(), Page(limit=50))
    tx.batches(ORG, BatchFilter(status="succeeded"), page)
    assert [plan for plan in plans if "using batches_by_org on batches" not in plan] == []
    assert wasteful(plans) == []


def test_history_of_a_batch_does_not_read_its_org(tx: SqlTx, plans: Plans) -> None:
    for before in (None, (NOW, "x")):
        tx.deliveries(ORG, DeliveryFilter(batch_id="b7"), Page(limit=50, before=before))
    tx.count_deliveries(ORG, DeliveryFilter(batch_id="b7"))
    assert all("deliveries_by_batch" in plan for plan in plans)


def test_failed_are_walked_by_id(tx: SqlTx, plans: Plans) -> None:
    window = DeliveryFilter(created_after=NOW - 1_000, created_before=NOW, failure_reason="timeout")
    for where in (DeliveryFilter(created_after=NOW - 50_000), window):
        tx.failed_after(ORG, where, None, 10)
        tx.failed_after(ORG, where, "done-5", 10)
    assert all("deliveries_failed" in plan or "deliveries_by_org" in plan for plan in plans)
    assert [plan for plan in plans if "Seq Scan" in plan] == []


def ask(tx: Tx) -> None:
    """One after the other what is asked about single things."""
    some = [make_delivery(batch_id=f"b{number}") for number in (1, 2)]
    tx.batch(ORG, "b1")
    tx.taken_batch_ids(["b1", "b2"])
    tx.items(ORG, "b1", 0, 10)
    tx.find_items(ORG, "b1", [1], ["r1"])
    tx.delivery(ORG, "done-1")
    tx.delivery(None, "done-1")
    tx.in_flight(ORG, "b1")
    tx.attempts(["done-1", "done-2"])
    tx.payloads(some, 10)
    tx.payloads(some)
    tx.release("node-1", ["done-1", "done-2"])
    tx.answer(ORG, "POST", "/v1/batches", "key-1")


def test_point_questions_use_their_index(tx: SqlTx, plans: Plans) -> None:
    ask(tx)
    assert [plan for plan in plans if "Seq Scan" in plan] == []
    assert len([plan for plan in plans if "deliveries_in_flight" in plan]) == 1


def test_expired_answers_are_found_by_age(tx: SqlTx, plans: Plans) -> None:
    tx.delete_answers(NOW + 5, 10)
    assert "using answers_by_age" in plans[0]


HOT = ("record", "record_success", "update_delivery", "update_batch")


@pytest.mark.parametrize("name", HOT)
def test_hot_writes_use_the_key(tx: SqlTx, name: str) -> None:
    """Even though there is no claim yet, by the statistics: these run as text, thousands of times
    a second, and were prepared some quiet day."""
    plan = explain_hot(tx, name)
    assert re.search("using (deliveries|batches)_pkey", plan), plan


def explain_hot(tx: SqlTx, name: str) -> str:
    hot: str | Given = getattr(Statements(tx._connection.dialect), name)
    statement = hot.one if isinstance(hot, Given) else hot
    driver = tx._connection.connection.driver_connection
    return explain(driver, statement, (None,) * statement.count("%s"), "force_generic_plan")


@contextmanager
def generic_plans(url: str) -> Iterator[tuple[SqlTx, Plans]]:
    """A transaction, and the plans of all that it asks, made once for all values."""
    engine = Address(url).engine(WRITING, None)
    with engine.connect() as connection, connection.begin() as transaction:
        seen: Plans = []

        def before(_c: object, cursor: Any, statement: str, parameters: Any, *_: object) -> None:
            seen.append(explain(cursor.connection, statement, parameters, "force_generic_plan"))

        event.listen(engine, "before_cursor_execute", before)
        yield SqlTx(connection, Statements(engine.dialect), writes=True), seen
        event.remove(engine, "before_cursor_execute", before)
        transaction.rollback()
    engine.dispose()


def test_new_database_uses_its_indexes_before_it_has_statistics(url: str) -> None:
    """What is prepared on empty tables is still used when they are large, until an analysis."""
    with generic_plans(url) as (tx, plans):
        ask(tx)
        tx.claim("node-1", NOW + 10, 100, 100, {})
        plans += [explain_hot(tx, name) for name in HOT]
    assert [plan for plan in plans if re.search("Seq Scan|_by_org", plan)] == []
    assert len(plans) > 15


def test_statistics_of_a_quiet_time(server: Server, database: str, url: str) -> None:
    """Nothing was due and nothing claimed when the table was analysed; then the crowd came."""
    fill(server, database, FILL_DONE, "VACUUM ANALYZE deliveries", FILL_CROWD)
    with generic_plans(url) as (tx, plans):
        claimed = tx.claim("node-1", NOW + 10**9, 100, 100, {})
        tx.release("node-1", [delivery.id for delivery in claimed])
        tx.claim("node-1", NOW + 10**9, 100, 100, {})
        assert tx.release_lost() == 100
        plans += [explain_hot(tx, name) for name in HOT]
    writes = [plan for plan in plans if plan.startswith("Update")]
    assert len(writes) == 4 + len(HOT)
    assert [plan for plan in writes if "_pkey" not in plan] == []


def test_retention_reads_what_is_old(tx: SqlTx, plans: Plans) -> None:
    """Nothing of what is kept, however much that is."""
    found, position = tx.expired_batches(NOW - FINISHED + 1_000, None, 100)
    assert len(found) == 100
    tx.expired_batches(NOW - FINISHED + 1_000, position, 100)
    tx.remove_batches(found, NOW, 300)
    ids, _ = tx.old_bodies(NOW + 1, "", 100)
    tx.forget_bodies(ids, NOW + 1)
    assert [plan for plan in plans if "Seq Scan" in plan] == []
