"""Migrations make exactly what tables.py declares, and what it declares is fit for growth."""

import re
from typing import Any

import pytest
import trio
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from server import Server
from sqlalchemy import Engine, MetaData, Table, UniqueConstraint, text

from primeflowd.errors import SchemaTooNew
from primeflowd.hookspecs import Storage
from primeflowd.sql import schema
from primeflowd.sql import tables as shared
from primeflowd_postgresql import tables
from primeflowd_postgresql.connections import WRITING, Address
from primeflowd_postgresql.storage import MIGRATIONS, open_postgresql

CATALOG = """
SELECT c.relname, 'table ' || coalesce(array_to_string(c.reloptions, ', '), '')
       || ' toast ' || coalesce(array_to_string(t.reloptions, ', '), '')
  FROM pg_class c LEFT JOIN pg_class t ON t.oid = c.reltoastrelid
 WHERE c.relkind IN ('r', 'p') AND c.relnamespace = 'public'::regnamespace
UNION ALL
SELECT c.relname || '.' || a.attname,
       a.attnum || ' ' || format_type(a.atttypid, a.atttypmod) || ' ' || a.attnotnull
       || ' ' || coalesce(l.collname, '') || ' ' || coalesce(pg_get_expr(d.adbin, d.adrelid), '')
  FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
       LEFT JOIN pg_collation l ON l.oid = a.attcollation
       LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
 WHERE c.relkind IN ('r', 'p') AND c.relnamespace = 'public'::regnamespace AND a.attnum > 0
UNION ALL
SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'
UNION ALL
SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint
 WHERE connamespace = 'public'::regnamespace AND contype <> 'n'
"""
"""Everything that a table, a column, an index or a constraint is, by name."""


def catalog(engine: Engine) -> dict[str, str]:
    with engine.connect() as connection:
        found = {str(name): str(what) for name, what in connection.execute(text(CATALOG))}
    return {name: what for name, what in found.items() if not name.startswith("alembic_version")}


@pytest.fixture
def engine(url: str) -> Any:
    engine = Address(url).engine(WRITING, None)
    yield engine
    engine.dispose()


@pytest.fixture
def empty(server: Server) -> Any:
    """An engine on a database with nothing in it."""
    name = server.create_database()
    engine = Address(server.url(name)).engine(WRITING, None)
    yield engine
    engine.dispose()
    server.drop_database(name)


def test_migrations_make_what_is_declared(engine: Engine, empty: Engine) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, tables.metadata) == []
    # What the comparison above does not see: predicates, collations, storage parameters, the order
    # of columns.
    tables.metadata.create_all(empty)
    assert catalog(engine) == catalog(empty)


def test_head_is_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS.directory).replace("%", "%%"))
    assert ScriptDirectory.from_config(config).get_heads() == [MIGRATIONS.head]


def test_tables_and_columns_are_the_shared_ones() -> None:
    assert set(tables.metadata.tables) == set(shared.metadata.tables)
    for name, table in shared.metadata.tables.items():
        declared = tables.metadata.tables[name]
        assert [c.name for c in declared.columns] == [c.name for c in table.columns]
        assert {i.name for i in declared.indexes} == {i.name for i in table.indexes}


def test_every_text_is_compared_bytewise(engine: Engine) -> None:
    """As SQLite does; else the order of a list depends on where the database was made."""
    columns = {name: what for name, what in catalog(engine).items() if " text " in what}
    assert len(columns) > 50
    assert [name for name, what in columns.items() if not what.rstrip().endswith(" C")] == []


def of_orgs() -> list[Table]:
    return [table for table in tables.metadata.sorted_tables if "org_id" in table.columns]


def test_only_what_belongs_to_no_org_has_no_org() -> None:
    without = set(tables.metadata.tables) - {table.name for table in of_orgs()}
    assert without == {"nodes", "orders", "notes", "destination_policies"}


@pytest.mark.parametrize("table", of_orgs(), ids=lambda table: table.name)
def test_org_is_in_every_key(table: Table) -> None:
    keys = [table.primary_key.columns]
    keys += [index.columns for index in table.indexes if index.unique]
    keys += [c.columns for c in table.constraints if isinstance(c, UniqueConstraint)]
    assert [key.keys() for key in keys if "org_id" not in key] == []
    if table.name not in ("policies", "answers"):
        # An id alone is looked up in the same index.
        assert table.primary_key.columns.keys()[0] != "org_id"


def test_tables_that_grow_are_vacuumed_in_time(engine: Engine) -> None:
    """Not when a fifth of a hundred million rows is dead, which is the default."""
    found = catalog(engine)
    for name in ("batches", "items", "deliveries", "attempts", "answers"):
        assert "autovacuum_vacuum_scale_factor=0.02" in found[name]
        assert "fillfactor" not in found[name]


def partitioned() -> MetaData:
    """The declared tables, each that belongs to orgs partitioned by the hash of the org."""
    metadata = MetaData()
    for table in tables.metadata.sorted_tables:
        copy = table.to_metadata(metadata)
        if "org_id" in table.columns:
            options = copy.dialect_options["postgresql"]
            options["partition_by"] = "HASH (org_id)"
            # These belong to partitions, each of which may have its own.
            options["with"] = {}
    return metadata


def partition(engine: Engine, count: int = 3) -> None:
    """Replace the tables of an empty storage by partitioned ones."""
    metadata = partitioned()
    with engine.begin() as connection:
        tables.metadata.drop_all(connection)
        metadata.create_all(connection)
        for table in of_orgs():
            for number in range(count):
                connection.execute(
                    text(
                        f"CREATE TABLE {table.name}_{number} PARTITION OF {table.name}"
                        f" FOR VALUES WITH (MODULUS {count}, REMAINDER {number})"
                    )
                )


def test_tables_can_be_partitioned_by_org(engine: Engine) -> None:
    """No key and no index stands in the way. tests/test_storage.py runs the whole suite on it."""
    partition(engine)
    indexes = [name for name, what in catalog(engine).items() if what.startswith("CREATE")]
    for table in tables.metadata.sorted_tables:
        assert {str(index.name) for index in table.indexes} <= set(indexes)


def test_schema_of_a_newer_version_is_left_alone(engine: Engine) -> None:
    before = catalog(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'f00d'"))
    with pytest.raises(SchemaTooNew, match=r"my storage was written by a newer.*f00d"):
        schema.bring_up_to_date(engine, "my storage", MIGRATIONS)
    assert catalog(engine) == before


def test_migration_that_fails_leaves_nothing(empty: Engine) -> None:
    with empty.begin() as connection:
        connection.execute(text("CREATE TABLE notes (other INTEGER)"))
    before = catalog(empty)
    with pytest.raises(Exception, match="already exists"):
        schema.bring_up_to_date(empty, "storage", MIGRATIONS)
    assert catalog(empty) == before


def test_revisions(engine: Engine, empty: Engine) -> None:
    assert schema.revisions(engine, MIGRATIONS) == (MIGRATIONS.head, MIGRATIONS.head)
    assert schema.revisions(empty, MIGRATIONS) == (None, MIGRATIONS.head)


async def test_nodes_that_start_at_once_migrate_once(server: Server) -> None:
    name = server.create_database()
    opened: list[Storage] = []

    async def open_one(node_id: str) -> None:
        async with open_postgresql(server.url(name), node_id) as storage:
            await storage.write(lambda tx: tx.put_note(node_id, "was here"))
            opened.append(storage)

    async with trio.open_nursery() as nursery:
        for index in range(8):
            nursery.start_soon(open_one, str(index))
    assert len(opened) == 8
    assert server.execute("SELECT count(*) FROM notes", name) == [(8,)]
    assert server.execute("SELECT * FROM alembic_version", name) == [(MIGRATIONS.head,)]
    server.drop_database(name)


def test_migration_is_stated_literally() -> None:
    """It must not change when tables.py does."""
    for path in (MIGRATIONS.directory / "versions").glob("p*.py"):
        assert not re.search(r"^(from|import) (?!alembic|sqlalchemy)", path.read_text(), re.M), path
