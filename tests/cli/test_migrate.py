"""`migrate`: says what it did, changes nothing with `--check`, refuses what is newer."""

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config

from primeflowd.sql import schema
from tests.cli.conftest import Run
from tests.distributions import Distributions
from tests.sql.database import make_database, make_engine

OLDER = "0001"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Where the storage of the commands is; there is none yet."""
    (tmp_path / "primeflowd.toml").write_text('[storage]\nurl = "sqlite:///storage.db"\n')
    return tmp_path / "storage.db"


def make_older(path: Path) -> None:
    """The storage as the first version made it."""
    config = Config()
    config.set_main_option("script_location", str(schema.MIGRATIONS).replace("%", "%%"))
    with make_engine(path).begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, OLDER)


def revision(path: Path) -> str:
    with closing(sqlite3.connect(path)) as connection:
        [(found,)] = connection.execute("SELECT version_num FROM alembic_version")
        return str(found)


def state(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def test_it_makes_a_storage_and_then_has_nothing_to_do(primeflowd: Run, database: Path) -> None:
    done = primeflowd("migrate")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"made the schema: it is {schema.HEAD} now\n"
    assert revision(database) == schema.HEAD
    before = state(database.parent)
    for words in (["migrate"], ["migrate", "--check"]):
        done = primeflowd(*words)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"the schema is up to date: {schema.HEAD}\n"
        assert state(database.parent) == before


def test_it_migrates_what_is_older(primeflowd: Run, database: Path) -> None:
    make_older(database)
    done = primeflowd("migrate")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"migrated from {OLDER}: it is {schema.HEAD} now\n"
    assert revision(database) == schema.HEAD


def test_check_of_a_storage_that_is_not_there_makes_none(primeflowd: Run, database: Path) -> None:
    before = state(database.parent)
    done = primeflowd("migrate", "--check")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"primeflowd: error: there is no schema yet, {schema.HEAD} is needed; run primeflowd "
        "migrate\n"
    )
    assert state(database.parent) == before


def test_check_names_both_revisions_and_changes_nothing(primeflowd: Run, database: Path) -> None:
    make_older(database)
    before = state(database.parent)
    done = primeflowd("migrate", "--check")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"primeflowd: error: the schema is {OLDER}, {schema.HEAD} is needed; run primeflowd "
        "migrate\n"
    )
    assert state(database.parent) == before


@pytest.mark.parametrize("words", [["migrate"], ["migrate", "--check"]])
def test_a_newer_schema_is_refused(primeflowd: Run, database: Path, words: list[str]) -> None:
    make_database(database)
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    done = primeflowd(*words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "primeflowd: error: storage.db was written by a newer primeflowd (its schema is 9999, "
        f"this one knows {schema.HEAD} and older); install that version or a newer one\n"
    )
    assert revision(database) == "9999"


def test_several_at_once(primeflowd: Run, database: Path, environment: dict[str, str]) -> None:
    """One migrates, the others wait."""
    make_older(database)
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "primeflowd", "migrate"],
            cwd=database.parent,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(5)
    ]
    told = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * 5
    assert set(told) <= {
        f"migrated from {OLDER}: it is {schema.HEAD} now\n",
        f"the schema is up to date: {schema.HEAD}\n",
    }
    assert revision(database) == schema.HEAD


@pytest.mark.parametrize("words", [["migrate"], ["migrate", "--check"]])
def test_a_file_that_is_no_database(primeflowd: Run, database: Path, words: list[str]) -> None:
    database.write_bytes(b"not a database at all" * 100)
    done = primeflowd(*words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "primeflowd: error: storage.db cannot be opened as a SQLite database: file is not a "
        "database\n"
    )


@pytest.mark.parametrize("words", [["migrate"], ["migrate", "--check"]])
def test_memory_has_no_schema(primeflowd: Run, tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "primeflowd.toml").write_text('[storage]\nurl = "memory://"\n')
    done = primeflowd(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "memory:// has no schema: nothing to migrate\n"


def test_a_url_that_nobody_opens(primeflowd: Run, tmp_path: Path) -> None:
    (tmp_path / "primeflowd.toml").write_text('[storage]\nurl = "oracle://me:tiger@db"\n')
    done = primeflowd("migrate", "--check")
    assert (done.returncode, done.stdout) == (1, "")
    assert "storage.url: no plugin opens oracle:// URLs; " in done.stderr
    assert "tiger" not in done.stderr


def test_a_plugins_storage_is_migrated_by_its_plugin(primeflowd: Run, tmp_path: Path) -> None:
    site = Distributions(tmp_path / "site")
    site.install(
        "acme",
        """
        import contextlib
        from primeflowd.hookspecs import SchemaState

        @hookimpl
        def open_storage(config):
            return contextlib.nullcontext() if config.storage.url == "acme://" else None

        @hookimpl
        def migrate_storage(config, check):
            assert config.storage.url == "acme://"
            return SchemaState("a1", "a1" if check else "a2")
        """,
    )
    (tmp_path / "primeflowd.toml").write_text(
        '[storage]\nurl = "acme://"\n[plugins]\nenable = ["acme"]\n'
    )
    environment = {"PYTHONPATH": str(site.directory)}
    assert primeflowd("migrate", env=environment).stdout == "migrated from a1: it is a2 now\n"
    done = primeflowd("migrate", "--check", env=environment)
    assert done.stdout == "the schema is up to date: a1\n"
