"""Opening brings the schema up to date; migrations make exactly what tables.py declares."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, text

from primeflowd.errors import SchemaTooNew
from primeflowd.sql import schema, tables
from primeflowd.sql.statements import Statements
from primeflowd.sql.tx import SqlTx
from tests.sql.database import make_database, make_engine


def declared(engine: Engine) -> dict[str, str]:
    """The SQL of every table and index by name, spaces evened out."""
    with engine.connect() as connection:
        found = connection.execute(
            text("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL")
        ).all()
    return {name: re.sub(r"\s+", " ", sql).strip() for name, sql in found}


def test_migrations_make_what_is_declared(tmp_path: Path) -> None:
    migrated = make_database(tmp_path / "migrated.db")
    with migrated.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, tables.metadata) == []

    # What the comparison above does not see: defaults, predicates of indexes, WITHOUT
    # ROWID.
    created = create_engine(f"sqlite:///{tmp_path}/created.db")
    tables.metadata.create_all(created)
    found = declared(migrated)
    assert found.pop("alembic_version")
    assert found == declared(created)
    created.dispose()


def alembic() -> Config:
    config = Config()
    config.set_main_option("script_location", str(schema.MIGRATIONS).replace("%", "%%"))
    return config


def test_head_is_the_newest_migration() -> None:
    assert ScriptDirectory.from_config(alembic()).get_heads() == [schema.HEAD]


def test_0002_gives_rows_their_org(tmp_path: Path) -> None:
    """2.4: what was there before belongs to whom its batch belongs."""
    engine = make_engine(tmp_path / "storage.db")
    with engine.begin() as connection:
        config = alembic()
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    orgs = ("acme", "globex")
    rows = [_rows_of_0001(org_id) for org_id in orgs]
    with engine.begin() as connection:
        for table, values in (pair for each in rows for pair in each.items()):
            names = ", ".join(values)
            places = ", ".join(f":{name}" for name in values)
            connection.execute(text(f"INSERT INTO {table} ({names}) VALUES ({places})"), values)

    schema.bring_up_to_date(engine, "storage")
    assert declared(engine) == declared(make_database(tmp_path / "new.db"))
    with engine.begin() as connection:
        tx = SqlTx(connection, Statements(engine.dialect))
        for org_id in orgs:
            [item] = tx.items(org_id, f"batch of {org_id}", None, None)
            assert (item.org_id, item.input) == (org_id, b"[1]")
            [attempt] = tx.attempts([f"delivery of {org_id}"])[f"delivery of {org_id}"]
            assert (attempt.org_id, attempt.response_body) == (org_id, "no")
            delivery = tx.delivery(org_id, f"delivery of {org_id}")
            assert delivery is not None
            assert tx.payloads([delivery]) == {delivery.id: b"{}"}
        # The node of before has no lease: what it held is anybody's.
        assert tx.release_lost() == 2


def _rows_of_0001(org_id: str) -> dict[str, dict[str, object]]:
    """A row of each table that knows its org only since 0002, and of those that always did."""
    batch_id, delivery_id = f"batch of {org_id}", f"delivery of {org_id}"
    return {
        "batches": {
            **{"id": batch_id, "org_id": org_id, "plan_id": "", "status": "succeeded"},
            **{"items_succeeded": 1, "items_failed": 0, "items_cancelled": 0},
            **{"created_at": 1, "updated_at": 1, "payload": b"{}"},
        },
        "items": {
            **{"batch_id": batch_id, "sequence_index": 0, "status": "succeeded"},
            **{"updated_at": 1, "input": b"[1]"},
        },
        "deliveries": {
            **{"id": delivery_id, "batch_id": batch_id, "org_id": org_id, "destination": "d"},
            **{"is_automatic": True, "status": "pending", "attempt_count": 1, "interruptions": 0},
            **{"max_retries": 1, "due_at": 9, "claimed_by": "of before", "created_at": 1},
            **{"updated_at": 1, "policy_source": "default", "policy_plan_id": ""},
            **{"callback_url": "https://d", "delays": '["1s"]'},
        },
        "attempts": {
            **{"delivery_id": delivery_id, "attempt_number": 1, "id": "a", "status_code": 500},
            **{"response_time": 1, "created_at": 1, "response_body": "no"},
        },
    }


def test_schema_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    engine = make_database(tmp_path / "storage.db")
    before = declared(engine)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'f00d'"))
    with pytest.raises(SchemaTooNew, match=r"my storage was written by a newer.*f00d"):
        schema.bring_up_to_date(engine, "my storage")
    assert declared(engine) == before


def test_up_to_date_storage_does_not_import_alembic(tmp_path: Path) -> None:
    make_database(tmp_path / "storage.db")
    program = """
import sys
from pathlib import Path
from primeflowd.sql import schema
from tests.sql.database import make_engine

schema.bring_up_to_date(make_engine(Path(sys.argv[1])), "storage")
assert "alembic" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "storage.db")], check=True)


def test_migration_that_fails_leaves_nothing(tmp_path: Path) -> None:
    engine = make_engine(tmp_path / "storage.db")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE notes (other INTEGER)"))
    before = declared(engine)
    with pytest.raises(Exception, match="already exists"):
        schema.bring_up_to_date(engine, "storage")
    assert declared(engine) == before
