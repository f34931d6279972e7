"""Opening brings the schema up to date; migrations make exactly what tables.py declares."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, create_engine, text

from primeflowd.errors import SchemaTooNew
from primeflowd.sql import schema, tables
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

    # What the comparison above does not see: predicates of indexes, WITHOUT ROWID.
    created = create_engine(f"sqlite:///{tmp_path}/created.db")
    tables.metadata.create_all(created)
    found = declared(migrated)
    assert found.pop("alembic_version")
    assert found == declared(created)
    created.dispose()


def test_head_is_the_newest_migration() -> None:
    config = Config()
    config.set_main_option("script_location", str(schema.MIGRATIONS).replace("%", "%%"))
    assert ScriptDirectory.from_config(config).get_heads() == [schema.HEAD]


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
