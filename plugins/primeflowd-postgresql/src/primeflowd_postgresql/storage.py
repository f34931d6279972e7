"""Storage in a PostgreSQL database, which several nodes may share.

Opening brings the schema up to date; of several nodes that do it at once, one migrates. It fails
with an OperatorError that names the database and what to mend.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import psycopg
import trio
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from primeflowd.errors import OperatorError
from primeflowd.hookspecs import SchemaState, Storage
from primeflowd.sql import schema
from primeflowd.sql.storage import open_sql_storage
from primeflowd_postgresql.connections import LISTENING, READING, WRITING, Address
from primeflowd_postgresql.listener import Listener
from primeflowd_postgresql.settings import Settings
from primeflowd_postgresql.watchdog import Watchdog

MIGRATIONS: Final = schema.Migrations(Path(__file__).parent / "migrations", "p0003")

OLDEST: Final = 14
"""The oldest PostgreSQL that is still maintained."""


@asynccontextmanager
async def open_postgresql(
    url: str, node_id: str | None, settings: Settings | None = None
) -> AsyncIterator[Storage]:
    """The storage in the database that `url` names.

    Without a `node_id` it is only visited: nobody waits for what other nodes leave, and statements
    may take as long as they like, since a person at a console can tell when it is too long.
    """
    settings = settings or Settings()
    address = Address(url)
    await trio.to_thread.run_sync(_prepare, address)
    watchdog = listener = None
    if node_id is not None:
        watchdog = Watchdog(settings.timeout.seconds)
        listener = Listener(partial(address.connect, LISTENING, watchdog))
    try:
        async with open_sql_storage(
            address.engine(WRITING, watchdog),
            address.engine(READING, watchdog, settings.pool_size),
            limit=settings.pool_size,
            others=listener,
        ) as storage:
            yield storage
    finally:
        # After the storage: its last commit may have left something for others.
        if listener is not None:
            await listener.aclose()
        if watchdog is not None:
            watchdog.close()


def migrate(url: str, check: bool) -> SchemaState:
    """Bring the schema up to date, or only look; how it was found. May block for long."""
    address = Address(url)
    with _engine(address) as engine:
        found = SchemaState(*schema.revisions(engine, MIGRATIONS, address.name))
    if not check:
        _prepare(address)
    return found


def _prepare(address: Address) -> None:
    """Check that the database will do, and bring its schema up to date.

    Not watched: a migration may take its time.
    """
    with _engine(address) as engine:
        with engine.connect() as connection:
            driver = connection.connection.driver_connection
            assert isinstance(driver, psycopg.Connection)
            version = driver.info.server_version
            stored_as = driver.info.parameter_status("server_encoding")
        if version < OLDEST * 10_000:
            raise OperatorError(
                f"{address.name} runs PostgreSQL {version // 10_000}; {OLDEST} or newer is needed"
            )
        if stored_as != "UTF8":
            raise OperatorError(
                f"{address.name} has the encoding {stored_as}; create one with ENCODING 'UTF8'"
            )
        schema.bring_up_to_date(engine, address.name, MIGRATIONS)


@contextmanager
def _engine(address: Address) -> Iterator[Engine]:
    """For what is done before the storage is there. What fails is the operator's to mend."""
    engine = address.engine(WRITING, None)
    try:
        yield engine
    except (DBAPIError, psycopg.Error) as error:
        reason = error.orig if isinstance(error, DBAPIError) else error
        text = " ".join(str(reason).split())
        raise OperatorError(f"{address.name} cannot be used: {text}") from error
    finally:
        engine.dispose()
