"""A SQLite database as the parts of sql/ see it: engines, and a connection that can break."""

import sqlite3
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event

from primeflowd.sql import schema


class Breakable(sqlite3.Connection):
    """A connection whose commit or rollback raises what a test puts here. Counts connections."""

    on_commit: BaseException | None = None
    on_rollback: BaseException | None = None
    opened = 0

    def begin(self) -> None:
        self.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        if Breakable.on_commit is not None:
            raise Breakable.on_commit
        super().commit()

    def rollback(self) -> None:
        if Breakable.on_rollback is not None:
            raise Breakable.on_rollback
        super().rollback()

    @staticmethod
    def reset() -> None:
        Breakable.on_commit = Breakable.on_rollback = None
        Breakable.opened = 0


def make_engine(path: Path) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        poolclass=NullPool,
        connect_args={"isolation_level": None, "check_same_thread": False, "factory": Breakable},
    )

    @event.listens_for(engine, "connect")
    def connect(connection: sqlite3.Connection, _: object) -> None:
        Breakable.opened += 1

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        driver = connection.connection.driver_connection
        assert isinstance(driver, Breakable)
        if not driver.in_transaction:
            driver.begin()

    return engine


def make_database(path: Path) -> Engine:
    engine = make_engine(path)
    schema.bring_up_to_date(engine, str(path))
    return engine
