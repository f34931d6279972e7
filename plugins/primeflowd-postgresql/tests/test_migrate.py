"""`migrate` on PostgreSQL: one process migrates, the others wait, and looking changes nothing."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from server import Server

from primeflowd_postgresql.storage import MIGRATIONS

TABLES = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"


@pytest.fixture
def database(server: Server) -> Iterator[str]:
    """A new one, without a schema."""
    name = server.create_database()
    yield name
    server.drop_database(name)


@pytest.fixture
def directory(tmp_path: Path, url: str) -> Path:
    (tmp_path / "primeflowd.toml").write_text(
        f'[storage]\nurl = "{url}"\n[plugins]\nenable = ["postgresql"]\n'
    )
    return tmp_path


def start(directory: Path, *words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "primeflowd", "migrate", *words],
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(directory: Path, *words: str) -> tuple[int, str, str]:
    process = start(directory, *words)
    stdout, stderr = process.communicate(timeout=60)
    return process.returncode, stdout, stderr


def test_check_makes_nothing(directory: Path, server: Server, database: str) -> None:
    code, stdout, stderr = run(directory, "--check")
    assert (code, stdout) == (1, "")
    assert stderr == (
        f"primeflowd: error: there is no schema yet, {MIGRATIONS.head} is needed; run primeflowd "
        "migrate\n"
    )
    assert server.execute(TABLES, database) == [(0,)]


def test_several_at_once(directory: Path, server: Server, database: str) -> None:
    processes = [start(directory) for _ in range(5)]
    told = [process.communicate(timeout=60) for process in processes]
    made, there = (
        f"made the schema: it is {MIGRATIONS.head} now\n",
        f"the schema is up to date: {MIGRATIONS.head}\n",
    )
    assert [process.returncode for process in processes] == [0] * 5, told
    assert made in {stdout for stdout, _ in told} <= {made, there}
    assert run(directory) == run(directory, "--check") == (0, there, "")


@pytest.mark.parametrize("words", [(), ("--check",)])
def test_a_newer_schema_is_refused(
    directory: Path, server: Server, database: str, words: tuple[str, ...]
) -> None:
    assert run(directory)[0] == 0
    server.execute("UPDATE alembic_version SET version_num = 'p9999'", database)
    code, stdout, stderr = run(directory, *words)
    assert (code, stdout) == (1, "")
    assert stderr.startswith(
        f"primeflowd: error: PostgreSQL database {database} at 127.0.0.1 was written by a newer "
        "primeflowd (its schema is p9999, "
    )
    assert server.execute("SELECT version_num FROM alembic_version", database) == [("p9999",)]


@pytest.mark.parametrize("words", [(), ("--check",)])
def test_a_database_out_of_reach(directory: Path, server: Server, words: tuple[str, ...]) -> None:
    url = "postgresql://postgres:tiger@127.0.0.1:1/flow"
    (directory / "primeflowd.toml").write_text(
        f'[storage]\nurl = "{url}"\n[plugins]\nenable = ["postgresql"]\n'
    )
    code, stdout, stderr = run(directory, *words)
    assert (code, stdout) == (1, "")
    assert stderr.startswith(
        "primeflowd: error: PostgreSQL database flow at 127.0.0.1 cannot be used: "
    )
    assert "tiger" not in stderr
