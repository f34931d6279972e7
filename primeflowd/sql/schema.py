"""Brings a database's schema up to date when it is opened.

A storage that is up to date costs two short reads; Alembic is imported only where there is
something to do. A migration runs in one transaction: it is there in full or not at all, and of two
processes that open an old storage at once one migrates while the other waits and then finds
nothing to do.
"""

from pathlib import Path
from typing import Final

from sqlalchemy import Connection, Engine, inspect, text

from primeflowd.errors import SchemaTooNew

HEAD: Final = "0001"
"""The revision that this primeflowd writes."""

MIGRATIONS: Final = Path(__file__).parent / "migrations"


def bring_up_to_date(engine: Engine, name: str) -> None:
    """Migrate to HEAD. `name` stands for the storage in messages.

    The transactions of `engine` must exclude each other from their start on (BEGIN IMMEDIATE).

    Raises:
        SchemaTooNew: a newer primeflowd wrote this storage; nothing is changed.
        sqlalchemy.exc.DBAPIError: the database failed.
    """
    with engine.connect() as connection:
        if _revision(connection) == HEAD:
            return
    with engine.begin() as connection:
        # Another process may have migrated between the look above and this transaction.
        found = _revision(connection)
        if found != HEAD:
            _migrate(connection, found, name)


def _revision(connection: Connection) -> str | None:
    """The revision of the schema; None where there is none yet."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return revision


def _migrate(connection: Connection, found: str | None, name: str) -> None:
    # Importing Alembic takes longer than everything else that opening a storage does.
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    # A ConfigParser reads the value, to which % is special.
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise SchemaTooNew(
            f"{name} was written by a newer primeflowd (its schema is {found}, this one knows "
            f"{HEAD} and older); install that version or a newer one"
        )
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
