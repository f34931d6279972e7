"""Copying a database page by page: what is copied, where it goes on, what it refuses."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, Table, delete, event, insert, select, text, update

from primeflowd.errors import OperatorError, StorageUnavailable
from primeflowd.sql import rows, tables
from primeflowd.sql.copying import Position, begin, find_position, put_page
from primeflowd.sql.pages import NOTE, TABLES, Reader, Sum
from primeflowd.testing.factories import (
    make_answer,
    make_attempt,
    make_batch,
    make_delivery,
    make_destination_policy,
    make_item,
    make_key,
    make_policy,
    make_recovery,
    make_secret,
)
from tests.sql.database import Breakable, make_database

Contents = dict[str, list[tuple[Any, ...]]]


@pytest.fixture
def source(tmp_path: Path) -> Engine:
    """Several rows of everything."""
    engine = make_database(tmp_path / "source.db")
    batches = [make_batch(id=f"b{n}", output=None if n else b"", plan_id="ü\0") for n in range(5)]
    secret = make_secret(id="s0", disabled_at=5, is_current=False)
    values: dict[rows.Rows[Any], list[Any]] = {
        rows.POLICIES: [make_policy(), make_policy(plan_id="nightly")],
        rows.DESTINATION_POLICIES: [
            make_destination_policy(),
            make_destination_policy(destination="https://b:443", sealed_headers=b"\0\xff"),
        ],
        rows.SECRETS: [make_secret(), secret],
        rows.KEYS: [make_key(), make_key(label="日本")],
        rows.RECOVERIES: [make_recovery(), make_recovery()],
        rows.ANSWERS: [make_answer(), make_answer(key="key-2"), make_answer(method="PATCH")],
        rows.BATCHES: batches,
        rows.ITEMS: [
            make_item(batch_id=batch.id, sequence_index=n) for batch in batches for n in range(2)
        ],
        rows.ATTEMPTS: [make_attempt(delivery_id="d", attempt_number=n) for n in (1, 2, 10)],
        rows.DELIVERIES: [make_delivery(claimed_by=None if n else "node-1") for n in range(3)],
    }
    with engine.begin() as connection:
        for kind, some in values.items():
            connection.execute(insert(kind.table), [kind.mapping(value) for value in some])
        for name in ("master-key", "seat:1", "seat", NOTE):
            value = '{"source":"elsewhere","table":null}' if name == NOTE else f"of {name}"
            connection.execute(insert(tables.notes).values(name=name, value=value))
        connection.execute(insert(tables.nodes).values(id="n", began_at=1, expires_at=2))
        connection.execute(insert(tables.orders).values(node_id="n", delivery_id="d"))
    return engine


@pytest.fixture
def target(tmp_path: Path) -> Engine:
    return make_database(tmp_path / "target.db")


@pytest.fixture
def breakable() -> Iterator[None]:
    yield
    Breakable.reset()


def contents(engine: Engine) -> Contents:
    with engine.connect() as connection:
        return {
            table.name: sorted(map(tuple, connection.execute(select(table))), key=repr)
            for table in tables.metadata.sorted_tables
        }


def expected(engine: Engine) -> Contents:
    """What a copy of it holds."""
    found = contents(engine)
    claim = tables.deliveries.columns.keys().index("claimed_by")
    deliveries = [(*row[:claim], None, *row[claim + 1 :]) for row in found["deliveries"]]
    notes = [row for row in found["notes"] if row[0] in ("master-key", "seat")]
    return found | {"deliveries": deliveries, "notes": notes, "nodes": [], "orders": []}


def without_position(found: Contents) -> Contents:
    return found | {"notes": [row for row in found["notes"] if row[0] != NOTE]}


def step(reader: Reader, target: Engine, position: Position) -> Position:
    assert position.current is not None
    return put_page(target, position, reader.page(position.current, position.after))


def copy(reader: Reader, target: Engine, name: str = "source") -> Position:
    position = begin(target, name)
    while position.table is not None:
        position = step(reader, target, position)
    return position


def sum_up(engine: Engine, table: Table, page_rows: int = 5000) -> Sum:
    so_far, reader = Sum(), Reader(engine, page_rows)
    while more := reader.add_page(table, so_far):
        so_far = more
    return so_far


def octets(row: tuple[Any, ...]) -> int:
    texts = [value.encode() for value in row if isinstance(value, str)]
    return sum(map(len, [*texts, *(value for value in row if isinstance(value, bytes))]))


def test_every_table_is_copied_but_what_is_about_processes() -> None:
    assert {table.name for table in TABLES} == tables.metadata.tables.keys() - {"nodes", "orders"}
    assert len(set(TABLES)) == len(TABLES)


def test_everything_arrives_once_and_unclaimed(source: Engine, target: Engine) -> None:
    before = contents(source)
    position = copy(Reader(source), target)
    assert without_position(contents(target)) == expected(source)
    assert contents(source) == before
    copied = [row for found in expected(source).values() for row in found]
    assert position.rows == len(copied)
    assert position.octets == sum(map(octets, copied))
    assert find_position(target) == position


@pytest.mark.parametrize("page_rows", [1, 2, 3])
def test_it_goes_on_after_any_page(source: Engine, target: Engine, page_rows: int) -> None:
    """As a process does that was started after another was killed."""
    position = begin(target, "source")
    pages = 0
    while position.table is not None:
        position = step(Reader(source, page_rows), target, position)
        assert begin(target, "source") == position
        pages += 1
    assert pages > len(TABLES) + 8
    assert without_position(contents(target)) == expected(source)


@pytest.mark.usefixtures("breakable")
def test_a_page_that_is_not_committed_has_left_nothing(source: Engine, target: Engine) -> None:
    """Neither rows without their position nor a position without its rows: one commit has both."""
    reader = Reader(source, 2)
    position = begin(target, "source")
    commits: list[object] = []
    event.listen(target, "commit", commits.append)
    while position.table is not None:
        commits.clear()
        before = contents(target)
        Breakable.on_commit = sqlite3.OperationalError("disk I/O error")
        with pytest.raises(StorageUnavailable, match="disk I/O error"):
            step(reader, target, position)
        Breakable.on_commit = None
        assert contents(target) == before
        position = step(reader, target, position)
        assert len(commits) == 1
    assert without_position(contents(target)) == expected(source)


def test_a_target_whose_disk_is_full_has_what_fitted(source: Engine, target: Engine) -> None:
    with source.begin() as connection:
        connection.execute(update(tables.batches).values(payload=b"x" * 100_000))

    def fill_up(connection: sqlite3.Connection, _: object) -> None:
        connection.execute("PRAGMA max_page_count = 80")

    event.listen(target, "connect", fill_up)
    with pytest.raises(StorageUnavailable, match="disk is full"):
        copy(Reader(source, 1), target)
    event.remove(target, "connect", fill_up)
    position = begin(target, "source")
    assert position.table == "batches"
    assert position.after is not None
    copy(Reader(source), target)
    assert without_position(contents(target)) == expected(source)


@pytest.mark.parametrize("table", TABLES, ids=lambda table: str(table.name))
def test_a_target_that_holds_anything_is_refused(
    source: Engine, target: Engine, table: Table
) -> None:
    with source.connect() as connection:
        row = connection.execute(select(table)).mappings().first()
    assert row is not None
    with target.begin() as connection:
        connection.execute(insert(table).values(row))
    before = contents(target)
    with pytest.raises(OperatorError, match=rf"^it is not empty, it has {table.name}; "):
        begin(target, "source")
    assert contents(target) == before


def test_a_target_that_was_only_opened_is_empty(source: Engine, target: Engine) -> None:
    with target.begin() as connection:
        connection.execute(insert(tables.notes).values(name="seat:0", value="1"))
        connection.execute(insert(tables.nodes).values(id="gone", began_at=1, expires_at=2))
    assert begin(target, "source").rows == 0


def test_a_copy_of_another_storage_is_refused(source: Engine, target: Engine) -> None:
    position = begin(target, "source")
    with pytest.raises(OperatorError, match=r"^it holds a part of source; "):
        begin(target, "other")
    while position.table is not None:
        position = step(Reader(source), target, position)
    with pytest.raises(OperatorError, match=r"^it holds a copy of source; "):
        begin(target, "other")
    assert begin(target, "source") == position


def test_of_two_that_copy_at_once_one_is_refused(source: Engine, target: Engine) -> None:
    reader = Reader(source)
    position = begin(target, "source")
    step(reader, target, position)
    before = contents(target)
    with pytest.raises(OperatorError, match=r"^another process copies into it$"):
        step(reader, target, position)
    assert contents(target) == before


def test_keys_are_those_of_the_source(source: Engine, target: Engine) -> None:
    """Where the org is in the key, two orgs may have batches of one id."""
    with source.begin() as connection:
        [declaration] = connection.scalars(
            text("SELECT sql FROM sqlite_master WHERE name = 'batches'")
        )
        keyed = declaration.replace("PRIMARY KEY (id)", "PRIMARY KEY (id, org_id)")
        assert keyed != declaration
        connection.execute(text("DROP TABLE batches"))
        connection.execute(text(keyed))
        for org in ("acme", "globex", "umbrella"):
            batch = rows.BATCHES.mapping(make_batch(id="same", org_id=org))
            connection.execute(insert(tables.batches), batch)
    assert sum_up(source, tables.batches, page_rows=1).rows == 3
    with pytest.raises(OperatorError, match=r"^batches: it refuses a row: UNIQUE constraint"):
        copy(Reader(source), target)


# Pages


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return make_database(tmp_path_factory.mktemp("pages") / "storage.db")


@given(
    sizes=st.dictionaries(
        st.tuples(st.sampled_from(["acme", "globex"]), st.text("aB_é~", min_size=1, max_size=3)),
        st.integers(0, 400),
        max_size=30,
    ),
    page_rows=st.integers(1, 8),
    page_octets=st.integers(150, 1500),
)
def test_pages_are_everything_in_order_and_within_bounds(
    answers: Engine, sizes: dict[tuple[str, str], int], page_rows: int, page_octets: int
) -> None:
    table = tables.answers
    with answers.begin() as connection:
        connection.execute(delete(table))
        for (org, key), size in sizes.items():
            answer = make_answer(org_id=org, key=key, body=b"\xff" * size)
            connection.execute(insert(table), rows.ANSWERS.mapping(answer))
    reader = Reader(answers, page_rows, page_octets)
    found: list[tuple[Any, ...]] = []
    after = None
    while page := reader.page(table, after):
        assert page.octets == sum(map(octets, page.rows))
        assert 1 <= len(page.rows) <= page_rows
        assert page.octets <= page_octets or len(page.rows) == 1
        found += page.rows
        after = page.last
    keys = [(row[0], row[3].encode()) for row in found]
    assert keys == sorted((org, key.encode()) for org, key in sizes)
    assert reader.count(table) == len(found)


# Sums


def test_sums_of_a_copy_are_those_of_its_source(source: Engine, target: Engine) -> None:
    copy(Reader(source), target)
    for table in TABLES:
        total = sum_up(source, table)
        assert total.rows == len(expected(source)[table.name]) > 0
        assert total.is_of_same(sum_up(target, table, page_rows=1))


@pytest.mark.parametrize(
    "change",
    [
        update(tables.batches).where(tables.batches.c.id == "b3").values(items_failed=7),
        update(tables.batches).where(tables.batches.c.id == "b3").values(payload=b"{}"),
        update(tables.batches).where(tables.batches.c.id == "b0").values(output=None),
        update(tables.batches).where(tables.batches.c.id == "b3").values(plan_id="ü"),
        update(tables.batches).where(tables.batches.c.id == "b3").values(id="b9"),
        delete(tables.batches).where(tables.batches.c.id == "b4"),
    ],
    ids=["integer", "bytes", "null", "text", "key", "row"],
)
def test_sums_show_any_difference(source: Engine, target: Engine, change: Any) -> None:
    copy(Reader(source), target)
    with target.begin() as connection:
        assert connection.execute(change).rowcount == 1
    assert not sum_up(source, tables.batches).is_of_same(sum_up(target, tables.batches))


def test_sums_show_values_that_changed_places(source: Engine, target: Engine) -> None:
    """Counts and bytes alone would not."""
    copy(Reader(source), target)
    for engine, times in ((source, (1, 2)), (target, (2, 1))):
        with engine.begin() as connection:
            for number, time in enumerate(times, 1):
                change = update(tables.attempts).values(response_time=time)
                connection.execute(change.where(tables.attempts.c.attempt_number == number))
    mine, theirs = sum_up(source, tables.attempts), sum_up(target, tables.attempts)
    assert (mine.rows, mine.octets) == (theirs.rows, theirs.octets)
    assert not mine.is_of_same(theirs)
