"""What an operator is told when a database cannot be used, and what is set on its connections."""

import socket
from typing import Any, cast

import psycopg
import pytest
import trio
from server import Server

from primeflowd.config import Config, from_mapping
from primeflowd.errors import ConfigError, OperatorError, StorageUnavailable
from primeflowd.hookspecs import Storage, Tx
from primeflowd.testing.factories import make_batch
from primeflowd_postgresql import Postgresql
from primeflowd_postgresql.connections import Address
from primeflowd_postgresql.storage import open_postgresql


def config(url: str) -> Config:
    return from_mapping({"storage": {"url": url}})


async def refusal(url: str) -> str:
    """The one line for the operator."""
    with pytest.raises(OperatorError) as caught:
        async with open_postgresql(url, "node-1"):
            pass
    return str(caught.value)


def test_hook_opens_its_own_urls_only() -> None:
    plugin = Postgresql()
    plugin.configure({})
    for url in ("memory://", "sqlite:////tmp/x.db", "postgresqlx://h/d"):
        assert plugin.open_storage(config(url), "node-1") is None
        assert plugin.migrate_storage(config(url), check=True) is None
    for url in ("postgresql://h/d", "postgres://h/d"):
        # Not entered: it has connected to nothing yet.
        assert plugin.open_storage(config(url), "node-1") is not None


async def test_url_that_libpq_does_not_understand(server: Server) -> None:
    for url in ("postgresql://u:secret@h/d?what=1", "postgresql://u:sec%ret@h/d"):
        with pytest.raises(ConfigError, match=r"^storage\.url: expected postgresql://") as caught:
            async with open_postgresql(url, "node-1"):
                pass
        assert "sec" not in str(caught.value)


async def test_database_that_is_missing(server: Server) -> None:
    text = await refusal(server.url("nowhere"))
    assert text.startswith("PostgreSQL database nowhere at 127.0.0.1 cannot be used: ")
    assert 'database "nowhere" does not exist' in text
    assert "\n" not in text


async def test_server_that_is_down(server: Server) -> None:
    text = await refusal(f"postgresql://u:secret@127.0.0.1:{_unused_port()}/d")
    assert "refused" in text
    assert "secret" not in text


def _unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


async def test_encoding_other_than_utf8(server: Server) -> None:
    server.execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
    assert await refusal(server.url("latin")) == (
        "PostgreSQL database latin at 127.0.0.1 has the encoding LATIN1; create one with "
        "ENCODING 'UTF8'"
    )
    server.drop_database("latin")


async def test_user_who_may_not_make_tables(server: Server) -> None:
    name = server.create_database()
    server.execute("CREATE ROLE guest LOGIN")
    text = await refusal(server.url(name).replace("postgres@", "guest@"))
    assert "permission denied for schema public" in text
    server.drop_database(name)
    server.execute("DROP ROLE guest")


async def test_user_needs_no_more_than_a_schema_of_its_own(server: Server) -> None:
    """As the README says: no superuser, and no right on `public`."""
    name = server.create_database()
    server.execute("CREATE ROLE primeflowd LOGIN")
    server.execute("CREATE SCHEMA primeflowd AUTHORIZATION primeflowd", name)
    url = server.url(name).replace("postgres@", "primeflowd@")
    async with open_postgresql(url, "node-1") as storage:
        batch = make_batch()
        await storage.write(lambda tx: tx.insert_batch(batch))
        assert await storage.read(lambda tx: tx.taken_batch_ids([batch.id])) == {batch.id}
    assert server.execute("SELECT count(*) FROM primeflowd.batches", name) == [(1,)]
    server.drop_database(name)
    server.execute("DROP ROLE primeflowd")


async def test_standby_is_not_mistaken_for_the_database(server: Server, database: str) -> None:
    """A server that takes no writes is not the one to talk to."""
    server.execute(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    assert "read-only" in await refusal(server.url(database))


async def shown(storage: Storage, *names: str) -> list[str]:
    def ask(tx: Tx) -> list[str]:
        return [show(tx, name) for name in names]

    return await storage.read(ask) + await storage.write(ask)


def show(tx: Tx, name: str) -> str:
    """What a connection says of itself; no plugin-neutral way to ask."""
    connection = cast("Any", tx)._connection
    value: str = connection.exec_driver_sql(f"SHOW {name}").scalar()
    return value


async def test_settings_of_the_sessions(url: str) -> None:
    async with open_postgresql(url, "node-1") as storage:
        assert await shown(storage, "transaction_isolation", "transaction_read_only") == [
            *("repeatable read", "on"),
            *("read committed", "off"),
        ]
        assert await shown(storage, "application_name") == ["primeflowd"] * 2
        assert await shown(storage, "statement_timeout", "lock_timeout") == ["9500ms", "1900ms"] * 2


@pytest.mark.parametrize(
    ("configured", "used"), [("off", "on"), ("local", "on"), ("remote_apply", "remote_apply")]
)
async def test_commits_are_on_the_disk(
    server: Server, database: str, url: str, configured: str, used: str
) -> None:
    """5.6: whatever the database is configured to; who asks for more than that keeps it."""
    server.execute(f"ALTER DATABASE {database} SET synchronous_commit = {configured}")
    async with open_postgresql(url, "node-1") as storage:
        assert await storage.write(lambda tx: show(tx, "synchronous_commit")) == used


async def test_what_the_url_says_is_kept(url: str) -> None:
    given = f"{url}?application_name=flow-7&options=-csearch_path%3Dpublic"
    async with open_postgresql(given, "node-1") as storage:
        assert await shown(storage, "application_name", "search_path") == ["flow-7", "public"] * 2


async def test_readers_cannot_write(url: str) -> None:
    async with open_postgresql(url, "node-1") as storage:
        for write in (
            lambda tx: tx.put_note("a", "1"),
            lambda tx: tx.insert_batch(make_batch()),
        ):
            with pytest.raises(StorageUnavailable, match="read-only transaction"):
                await storage.read(write)


async def test_a_long_read_keeps_its_snapshot(url: str) -> None:
    async with open_postgresql(url, "node-1") as storage:
        begun, written = trio.Event(), trio.Event()
        seen: list[str | None] = []

        def read(tx: Tx) -> None:
            seen.append(tx.note("a"))
            trio.from_thread.run_sync(begun.set)
            trio.from_thread.run(written.wait)
            seen.append(tx.note("a"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(storage.read, read)
            await begun.wait()
            await storage.write(lambda tx: tx.put_note("a", "new"))
            written.set()
        assert seen == [None, None]


async def test_more_readers_than_connections(url: str) -> None:
    async with open_postgresql(url, "node-1") as storage, trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(storage.read, lambda tx: tx.note("a"))


async def test_closing_closes_every_connection(server: Server, database: str, url: str) -> None:
    async with open_postgresql(url, "node-1") as storage:
        await storage.write(lambda tx: tx.put_note("a", "1"))
        await storage.read(lambda tx: tx.note("a"))
    query = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}' AND pid <> {{}}"
    with psycopg.connect(url, autocommit=True) as connection, trio.fail_after(5):
        while True:
            found = connection.execute(query.format("pg_backend_pid()").encode()).fetchone()
            if found == (0,):
                break
            await trio.sleep(0.02)


def test_name_has_no_password() -> None:
    assert Address("postgresql://u:secret@h1,h2:7/d?sslmode=require").name == (
        "PostgreSQL database d at h1,h2"
    )
    assert Address("postgresql:///").name == "PostgreSQL database (default) at localhost"
