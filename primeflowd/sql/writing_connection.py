"""The writing connection: opened when it is needed, kept as long as it works.

Its transactions begin and end at the driver. For SQLAlchemy, which takes longer over a BEGIN and a
COMMIT than SQLite does, they begin with the first statement that is run by it, if any is.

A driver begins a transaction by itself before the first statement, as PEP 249 has it; or its
connections have a method `begin`.

Fails with StorageUnavailable where the database does. Blocks; used by one thread.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from sqlalchemy import Connection, Engine

from primeflowd.sql.failures import translated


class WritingConnection:
    """Attributes:
    open: SQLAlchemy's connection, while there is one.
    """

    def __init__(self, engine: Engine) -> None:
        self.open: Connection | None = None
        self._engine = engine
        self._driver: Any = None
        self._begin: Callable[[], object] | None = None

    def begin(self) -> Connection:
        """Begin a transaction."""
        try:
            connection = self.open or self._connect()
            if self._begin is not None:
                self._begin()
        except Exception as error:  # noqa: BLE001 -- raised again, as ours where it is
            raise translated(error)  # noqa: B904 -- it has its cause
        return connection

    def commit(self) -> None:
        """If this fails, the transaction may still be open."""
        assert self.open is not None
        try:
            if self.open.get_transaction() is None:
                self._driver.commit()
            else:
                self.open.commit()
        except Exception as error:  # noqa: BLE001 -- raised again, as ours where it is
            raise translated(error)  # noqa: B904 -- it has its cause

    def roll_back(self) -> None:
        """End the transaction without a trace; the connection too, if it is beyond that.

        It is kept if it can be: on a full disk SQLite could not open the file anew.
        """
        if self.open is None:
            return
        try:
            # It raises if SQLAlchemy has given the driver's connection up.
            driver = self.open.connection
            self.open.rollback()
            # SQLAlchemy tells the driver only of transactions that it takes for open: of those that
            # it knows of, and whose commit has not failed.
            driver.rollback()
            usable = not self.open.invalidated
        except Exception:  # noqa: BLE001 -- however it is broken, begin() opens another
            usable = False
        if not usable:
            with suppress(Exception):
                # Else closing would try to roll back, and log that it cannot.
                self.open.invalidate()
            self.close()

    def close(self) -> None:
        """Close the connection; the next transaction opens another."""
        connection, self.open = self.open, None
        self._driver = self._begin = None
        if connection is not None:
            # It may be too broken even for that; it is out of use all the same.
            with suppress(Exception):
                connection.close()

    def _connect(self) -> Connection:
        connection = self._engine.connect()
        self._driver = connection.connection.driver_connection
        self._begin = getattr(self._driver, "begin", None)
        # Last: one that is open is one whose transactions are known to begin.
        self.open = connection
        return connection
