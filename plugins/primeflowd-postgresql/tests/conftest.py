"""A server for the session, and for each test an empty database with the schema in it."""

from collections.abc import Iterator

import pytest
from proxy import Proxy
from server import Server

from primeflowd.sql import schema
from primeflowd_postgresql.connections import WRITING, Address
from primeflowd_postgresql.storage import MIGRATIONS

pytest_plugins = ["primeflowd.testing.fixtures"]


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with Server() as server:
        yield server


@pytest.fixture(scope="session")
def template(server: Server) -> str:
    """A database with the schema and nothing else, to be copied."""
    name = server.create_database()
    engine = Address(server.url(name)).engine(WRITING, None)
    schema.bring_up_to_date(engine, name, MIGRATIONS)
    engine.dispose()
    return name


@pytest.fixture
def database(server: Server, template: str) -> Iterator[str]:
    """The name of a database of the test's own."""
    name = server.create_database(template)
    yield name
    server.drop_database(name)


@pytest.fixture
def url(server: Server, database: str) -> str:
    return server.url(database)


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    """Stands before the server; a test that wants it uses `proxied`."""
    with Proxy(server.port) as proxy:
        yield proxy


@pytest.fixture
def proxied(server: Server, database: str, proxy: Proxy) -> str:
    return server.url(database, proxy.port)
