"""Brings a database's schema up to date when it is opened.

A storage that is up to date costs two short reads; Alembic is imported only where there is
something to do. A migration runs in one transaction: it is there in full or not at all, and of
several processes that open an old storage at once one migrates while the others wait and then find
nothing to do.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
from sqlalchemy import Connection, Engine, inspect, text

from primeflowd.errors import SchemaTooNew

if TYPE_CHECKING:
    from alembic.config import Config

HEAD: Final = "0004"
"""The revision that this primeflowd writes to SQLite."""

MIGRATIONS: Final = Path(__file__).parent / "migrations"

_LOCK: Final = text("SELECT pg_advisory_xact_lock(8102654598166506607)")
"""PostgreSQL's lock of whoever migrates, within one database. The number says `primeflo`."""


class Migrations(msgspec.Struct, frozen=True):
    """A directory that Alembic understands, and the revision that this primeflowd writes."""

    directory: Path
    head: str


SQLITE: Final = Migrations(MIGRATIONS, HEAD)


def bring_up_to_date(engine: Engine, name: str, migrations: Migrations = SQLITE) -> None:
    """Migrate to the head. `name` stands for the storage in messages.

    The transactions of `engine` must exclude each other from their start on (SQLite's BEGIN
    IMMEDIATE); on PostgreSQL a lock sees to it.

    Raises:
        SchemaTooNew: a newer primeflowd wrote this storage; nothing is changed.
        sqlalchemy.exc.DBAPIError: the database failed.
    """
    with engine.connect() as connection:
        if _revision(connection) == migrations.head:
            return
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            # Held until the transaction ends. Its rows are read after that, anew.
            connection.execute(_LOCK)
        # Another process may have migrated between the look above and this transaction.
        found = _revision(connection)
        if found != migrations.head:
            _migrate(connection, found, name, migrations)


def revisions(
    engine: Engine, migrations: Migrations = SQLITE, name: str = "the storage"
) -> tuple[str | None, str]:
    """The revision of the schema as it is, None where there is none, and the one it should be.

    Raises:
        SchemaTooNew: a newer primeflowd wrote this storage.
        sqlalchemy.exc.DBAPIError: the database failed.
    """
    with engine.connect() as connection:
        found = _revision(connection)
    if found not in (None, migrations.head):
        _alembic(found, name, migrations)
    return found, migrations.head


def _revision(connection: Connection) -> str | None:
    """The revision of the schema; None where there is none yet."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return revision


def _migrate(connection: Connection, found: str | None, name: str, migrations: Migrations) -> None:
    # Importing Alembic takes longer than everything else that opening a storage does.
    from alembic import command

    config = _alembic(found, name, migrations)
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _alembic(found: str | None, name: str, migrations: Migrations) -> "Config":
    """For Alembic, what it is to migrate; SchemaTooNew if it knows no way from `found`."""
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    # A ConfigParser reads the value, to which % is special.
    config.set_main_option("script_location", str(migrations.directory).replace("%", "%%"))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise SchemaTooNew(
            f"{name} was written by a newer primeflowd (its schema is {found}, this one knows "
            f"{migrations.head} and older); install that version or a newer one"
        )
    return config
