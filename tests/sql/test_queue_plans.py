"""How the queue's questions are answered: from which index, and at what cost."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from primeflowd.hookspecs import DeliveryFilter, Page, Tx
from primeflowd.instants import HOUR
from primeflowd.model import Delivery, new_id
from primeflowd.sql import rows
from primeflowd.sql.given_rows import SIZES
from primeflowd.sql.statements import Statements
from primeflowd.sql.tx import SqlTx
from primeflowd.testing.factories import NOW, ORG, make_delivery
from tests.sql.database import make_database

DEAD = "https://dead.example:443"
CROWD = 50_000


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """One destination with 50,000 overdue deliveries, and twenty others due after those."""
    engine = make_database(tmp_path_factory.mktemp("queue") / "storage.db")
    crowd = rows.DELIVERIES.row(make_delivery(destination=DEAD))
    at = {name: index for index, name in enumerate(rows.DELIVERIES.names)}

    def one(index: int) -> tuple[Any, ...]:
        row = list(crowd)
        row[at["id"]] = row[at["batch_id"]] = new_id()
        row[at["due_at"]] = row[at["created_at"]] = NOW + index
        return tuple(row)

    with engine.begin() as connection:
        statements = Statements(engine.dialect)
        connection.exec_driver_sql(statements.insert_delivery.one, [one(i) for i in range(CROWD)])
        tx = SqlTx(connection, statements)
        for index in range(20):
            tx.insert_delivery(other(index))
        tx.flush()
    return engine


def other(index: int) -> Delivery:
    return make_delivery(destination=f"https://r{index:02}.example:443", due_at=NOW + CROWD + index)


@pytest.fixture
def tx(engine: Engine) -> Iterator[SqlTx]:
    with engine.connect() as connection, connection.begin() as transaction:
        yield SqlTx(connection, Statements(engine.dialect))
        transaction.rollback()


@pytest.fixture
def plans(engine: Engine, tx: SqlTx) -> Iterator[list[str]]:
    """The query plan of every statement that runs."""
    seen: list[str] = []

    def before(_c: object, cursor: Any, sql: str, parameters: Any, *_: object) -> None:
        if not sql.startswith(("BEGIN", "EXPLAIN")):
            plan = cursor.connection.execute(f"EXPLAIN QUERY PLAN {sql}", parameters).fetchall()
            seen.append(" / ".join(row[3] for row in plan))

    event.listen(engine, "before_cursor_execute", before)
    yield seen
    event.remove(engine, "before_cursor_execute", before)


def scans(plans: list[str]) -> list[str]:
    """Steps that read a whole table or index, or sort what an index does not."""
    return [
        plan
        for plan in plans
        if "SCAN deliveries" in plan or "TEMP B-TREE" in plan or "SCAN attempts" in plan
    ]


def count_steps(tx: SqlTx, function: Callable[[], object]) -> int:
    """Steps of SQLite's machine, not time: the same on every computer."""
    connection = tx._connection.connection.driver_connection
    assert connection is not None
    steps = 0

    def progress() -> int:
        nonlocal steps
        steps += 1
        return 0

    connection.set_progress_handler(progress, 100)
    function()
    connection.set_progress_handler(None, 0)
    return steps * 100


def columns_looked_up(tx: SqlTx, statement: str, parameters: Any, index: str) -> int:
    """How often SQLite's program goes from an entry of this index to the row for a column."""
    run = tx._connection.exec_driver_sql
    root = run("SELECT rootpage FROM sqlite_schema WHERE name = ?", (index,)).scalar_one()
    program = run(f"EXPLAIN {statement}", parameters).all()
    walking = {step.p1 for step in program if step.opcode == "OpenRead" and step.p2 == root}
    assert walking
    table = {s.p3 for s in program if s.opcode == "DeferredSeek" and s.p1 in walking}
    return sum(step.opcode == "Column" and step.p1 in table for step in program)


def test_claim_reads_the_head_of_the_queue(tx: SqlTx, plans: list[str]) -> None:
    claimed = tx.claim("node-1", NOW + 10, 100, 100, {})
    assert len(claimed) == 11
    assert plans[0] == "SEARCH deliveries USING INDEX deliveries_due (due_at<?)"
    assert len(plans) == 2
    assert scans(plans) == []


def test_claim_with_a_full_destination_goes_by_destination(tx: SqlTx, plans: list[str]) -> None:
    claimed = tx.claim("node-1", NOW + 10**9, 100, 5, {DEAD: 5})
    assert [d.destination for d in claimed] == [f"https://r{i:02}.example:443" for i in range(20)]
    assert scans(plans) == []
    by_destination = [plan for plan in plans if "deliveries_due_by_destination" in plan]
    # The destinations, then each of those that have room.
    assert len(by_destination) == 1 + 20


def test_crowd_costs_no_more_than_its_share(tx: SqlTx) -> None:
    # Reading the crowd would take at least five steps a row.
    assert count_steps(tx, lambda: tx.claim("node-1", NOW + 10**9, 100, 5, {DEAD: 5})) < CROWD


def test_release_finds_claims_by_their_node(tx: SqlTx, plans: list[str]) -> None:
    tx.release("node-1", None)
    assert len(plans) == 1
    assert "USING INDEX deliveries_claimed (claimed_by=?)" in plans[0]


def test_claims_are_found_by_their_node(tx: SqlTx, plans: list[str]) -> None:
    tx.claimed("node-1")
    tx.end_lease("node-1")
    of_deliveries = [plan for plan in plans if "deliveries" in plan]
    assert len(of_deliveries) == 2
    assert all("deliveries_claimed (claimed_by=?)" in plan for plan in of_deliveries)


def test_lost_claims_cost_a_seek_per_node(tx: SqlTx, plans: list[str]) -> None:
    """However many claims the living ones hold: a node looks every few seconds."""
    tx.begin_lease("node-1", HOUR)
    assert len(tx.claim("node-1", NOW + 10**9, CROWD, CROWD, {})) == CROWD
    tx.insert_delivery(make_delivery(claimed_by="node-2"))
    plans.clear()
    steps = count_steps(tx, tx.release_lost)
    assert scans(plans) == []
    claimants = [plan for plan in plans if "deliveries_claimed" in plan]
    assert all("COVERING INDEX deliveries_claimed" in plan for plan in claimants[:1])
    assert steps < CROWD // 10


def test_orders_are_found_by_their_node(tx: SqlTx, plans: list[str]) -> None:
    tx.has_orders("node-1")
    tx.put_order("node-1", "d")
    tx.take_orders("node-1")
    assert all("orders" in plan or "deliveries" in plan for plan in plans if plan)
    assert [plan for plan in plans if "SCAN" in plan] == []


def test_lists_are_read_in_order(tx: SqlTx, plans: list[str]) -> None:
    page = Page(limit=50, before=(NOW + 100, "x"))
    for where in (
        DeliveryFilter(),
        DeliveryFilter(status="failed"),
        DeliveryFilter(status="pending"),
        DeliveryFilter(destination=DEAD),
        DeliveryFilter(failure_reason="timeout", created_after=NOW),
    ):
        tx.deliveries(ORG, where, Page(limit=50))
        tx.deliveries(ORG, where, page)
    assert all("USING INDEX deliveries_by_org (org_id=?" in plan for plan in plans)
    assert scans(plans) == []


def test_history_of_a_batch_does_not_read_its_org(tx: SqlTx, plans: list[str]) -> None:
    for before in (None, (NOW, "x")):
        tx.deliveries(ORG, DeliveryFilter(batch_id="b"), Page(limit=50, before=before))
    tx.count_deliveries(ORG, DeliveryFilter(batch_id="b"))
    assert all("INDEX deliveries_by_batch (batch_id=?" in plan for plan in plans)


def test_failed_are_walked_by_id(tx: SqlTx, plans: list[str]) -> None:
    window = DeliveryFilter(created_after=NOW, created_before=NOW + 1, failure_reason="timeout")
    for where in (DeliveryFilter(created_after=NOW), window):
        tx.failed_after(ORG, where, None, 10)
        tx.failed_after(ORG, where, "x", 10)
    assert all("USING INDEX deliveries_failed (org_id=?" in plan for plan in plans)
    assert scans(plans) == []


@pytest.mark.parametrize("quiet", [False, True], ids=["", "with statistics of a quiet time"])
def test_successes_are_recorded_by_their_ids(tmp_path: Path, *, quiet: bool) -> None:
    """However many are claimed, in flight or an org's."""
    engine = make_database(tmp_path / "storage.db")
    with engine.connect() as connection:
        statements = Statements(engine.dialect)
        if quiet:
            row = rows.DELIVERIES.row(make_delivery(claimed_by="node-1"))
            connection.exec_driver_sql(statements.insert_delivery.one, tuple(row))
            connection.exec_driver_sql("ANALYZE")
            connection.commit()
        given = [(1, 0, NOW + k, NOW + k, None, f"d{k}", ORG, "node-1") for k in range(sum(SIZES))]
        runs = list(statements.record_success.runs(given))
        assert len(runs) == len(SIZES)
        for text, values in runs:
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}", values[0]).all()
            steps = [row[3] for row in plan if "deliveries" in row[3]]
            key = "SEARCH deliveries USING INDEX sqlite_autoindex_deliveries_1 (id=?)"
            assert steps == [key], text


def test_point_questions_use_their_index(tx: SqlTx, plans: list[str]) -> None:
    def ask(tx: Tx) -> None:
        tx.batch(ORG, "b")
        tx.taken_batch_ids(["a", "b"])
        tx.items(ORG, "b", 3, 10)
        tx.find_items(ORG, "b", [1], ["r"])
        tx.delivery(ORG, "d")
        tx.in_flight(ORG, "b")
        tx.attempts(["a", "b"])
        tx.payloads([make_delivery(), make_delivery()], 10)
        tx.payloads([make_delivery(), make_delivery()])
        tx.policy(ORG, "")
        tx.policies(ORG)
        tx.current_secret(ORG)
        tx.key_by_digest("00")
        tx.answer(ORG, "POST", "/", "k")
        tx.delete_answers(NOW, 10)
        tx.note("a")

    ask(tx)
    assert [plan for plan in plans if plan.startswith("SCAN") or "TEMP" in plan] == []
    in_flight = [plan for plan in plans if "deliveries_in_flight" in plan]
    assert len(in_flight) == 1


def test_shape_is_one_pass_over_indexes(tx: SqlTx, plans: list[str]) -> None:
    """Of the unclaimed, none is sorted; of the claimed, their index alone is walked."""
    assert tx.shape(None, (NOW, NOW + CROWD), 3).total == (0, CROWD, 20)
    [plan] = plans
    unclaimed, _, rest = plan.partition(" / UNION ALL / ")
    assert unclaimed.endswith("SCAN deliveries USING INDEX deliveries_due_by_destination")
    assert "TEMP" not in unclaimed
    assert rest.startswith("SEARCH deliveries USING INDEX deliveries_claimed (claimed_by>?)")
    # A row of an index costs a few steps for each edge.
    assert count_steps(tx, lambda: tx.shape(None, (NOW,), 3)) < 25 * CROWD


@pytest.mark.parametrize("org_id", [None, ORG])
def test_shape_looks_up_no_row_of_what_is_unclaimed(
    engine: Engine, tx: SqlTx, org_id: str | None
) -> None:
    """Its index has all that is asked of it: a million look-ups take seconds."""
    asked: list[tuple[str, Any]] = []

    def note(_c: object, _cursor: object, sql: str, parameters: Any, *_: object) -> None:
        asked.append((sql, parameters))

    event.listen(engine, "before_cursor_execute", note)
    assert tx.shape(org_id, (NOW, NOW + CROWD), 3).total == (0, CROWD, 20)
    event.remove(engine, "before_cursor_execute", note)
    [(statement, parameters)] = asked
    assert columns_looked_up(tx, statement, parameters, "deliveries_due_by_destination") == 0


def test_shape_of_an_org_is_one_pass_over_indexes(tx: SqlTx, plans: list[str]) -> None:
    assert tx.shape("another", (NOW, NOW + CROWD), 3).total == (0, 0, 0)
    unclaimed, _, _ = plans[0].partition(" / UNION ALL / ")
    assert unclaimed.endswith("SCAN deliveries USING INDEX deliveries_due_by_destination")
    assert "TEMP" not in unclaimed
