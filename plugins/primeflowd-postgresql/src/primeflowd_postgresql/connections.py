"""Connections to the database: how they are made, what is set on each, and when they are given up.

What hangs is bounded on both sides. The database gives up a wait for a lock, a statement, and a
transaction whose client has gone silent, so that no node's row locks outlive it by much. The
watchdog gives up the database, a little later than the database would a statement; see watchdog.py.

Everything here blocks; it is called in threads.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Final

import psycopg
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import Engine, NullPool, QueuePool, create_engine

from primeflowd.errors import ConfigError
from primeflowd_postgresql.watchdog import Watchdog

SCHEMES: Final = ("postgresql://", "postgres://")
CONNECT_WITHIN: Final = 5
"""Seconds for each address to answer when it is connected to."""

GRACE: Final = 0.5
"""Seconds by which the database gives up a statement earlier than we give up the database: a
statement that is merely slow costs no connection."""

_DEFAULTS: Final[Mapping[str, Any]] = {
    "application_name": "primeflowd",
    "client_encoding": "UTF8",
    # Of several hosts the one that takes writes; a standby that is promoted is found that way.
    "target_session_attrs": "read-write",
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}
"""What the URL leaves open."""

_SET: Final = """
    SELECT set_config(name, value, false)
      FROM unnest(%s::text[], %s::text[]) AS given (name, value)
     -- Whoever asks for still more than a commit on the disk keeps it.
     WHERE NOT (name = 'synchronous_commit' AND current_setting(name) = 'remote_apply')
"""

_ALWAYS: Final = {
    # Short statements on large tables: compiling one costs more than it ever saves.
    "jit": "off",
    # Whatever is asked of a table that grows has its index. A statement that was prepared while
    # the table was empty would read all of it until the next analysis.
    "enable_seqscan": "off",
}

WRITING: Final = {
    **_ALWAYS,
    "synchronous_commit": "on",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
}
READING: Final = {
    **_ALWAYS,
    # One snapshot for all that a function reads.
    "default_transaction_isolation": "repeatable read",
    "default_transaction_read_only": "on",
}

# A word that the database forgets when it crashes was worth nothing anyway.
LISTENING: Final = {"synchronous_commit": "off"}


class NoAnswer(psycopg.OperationalError):
    """The database was silent for too long; the connection is severed."""

    # As when the database gives up a statement. Without a state it would be taken for a connection
    # that was dead already, and the group tried again at once: for as long again.
    sqlstate = "57014"


class WatchedConnection(psycopg.Connection[tuple[Any, ...]]):
    """A connection whose waits for an answer are watched, once it has a watchdog."""

    watchdog: Watchdog | None = None

    def wait(self, *arguments: Any, **options: Any) -> Any:
        """Every statement passes here; so do BEGIN, COMMIT and what a pipeline collects."""
        watchdog = self.watchdog
        if watchdog is None:
            return super().wait(*arguments, **options)
        number = watchdog.begin(self.fileno())
        try:
            return super().wait(*arguments, **options)
        except psycopg.OperationalError as error:
            if watchdog.severed(number):
                raise NoAnswer(
                    f"the database did not answer within {watchdog.within:g} seconds"
                ) from error
            raise
        finally:
            watchdog.end(number)


class Address:
    """Where the database is, from a URL. `name` stands for it in messages: it has no password.

    Raises ConfigError: libpq does not understand the URL.
    """

    def __init__(self, url: str) -> None:
        try:
            self.parameters: Final[Mapping[str, Any]] = {**_DEFAULTS, **conninfo_to_dict(url)}
        except psycopg.ProgrammingError:
            # Its text quotes the URL.
            raise ConfigError(
                "storage.url: expected postgresql://USER@HOST:PORT/DATABASE, with parameters of "
                "libpq after a ? and special characters written as %XX"
            ) from None
        given = self.parameters
        place = given.get("host") or given.get("hostaddr") or given.get("service") or "localhost"
        self.name: Final = f"PostgreSQL database {given.get('dbname') or '(default)'} at {place}"

    def connect(self, settings: Mapping[str, str], watchdog: Watchdog | None) -> WatchedConnection:
        """A connection in autocommit mode, with these settings for its session.

        Without a watchdog its statements may take as long as they like.

        Raises psycopg.Error.
        """
        parameters = dict(self.parameters)
        within = watchdog.within if watchdog is not None else CONNECT_WITHIN
        # In whole seconds; less than two libpq does not take.
        parameters.setdefault("connect_timeout", int(min(within, CONNECT_WITHIN)))
        if watchdog is not None:
            # What was sent and is not even acknowledged; milliseconds.
            parameters.setdefault("tcp_user_timeout", int(watchdog.within * 1000))
            settings = {**settings, **_bounds(watchdog.within - GRACE)}
        connection = WatchedConnection.connect(autocommit=True, **parameters)
        connection.watchdog = watchdog
        # Whatever goes wrong, nobody else knows of the connection yet.
        with ExitStack() as unless_set_up:
            unless_set_up.callback(connection.close)
            connection.execute(_SET, [list(settings), list(settings.values())])
            unless_set_up.pop_all()
        return connection

    def engine(
        self, settings: Mapping[str, str], watchdog: Watchdog | None, pool_size: int = 0
    ) -> Engine:
        """For one thread that keeps its connection; for so many threads with `pool_size`."""

        def connect() -> WatchedConnection:
            connection = self.connect(settings, watchdog)
            connection.autocommit = False
            return connection

        return create_engine(
            "postgresql+psycopg://",
            creator=connect,
            paramstyle="format",
            **(
                {"poolclass": QueuePool, "pool_size": pool_size, "max_overflow": 0}
                if pool_size
                else {"poolclass": NullPool}
            ),
        )


def _bounds(within: float) -> dict[str, str]:
    """Seconds, spelt for the database."""
    return {
        "statement_timeout": f"{within * 1000:.0f}ms",
        # Another node's group holds a lock for milliseconds. A wait for one that is stuck is a
        # collision, and run again: in all it shall take no longer than a statement may.
        "lock_timeout": f"{within * 200:.0f}ms",
        # A node that was cut off in the middle of a transaction holds locks until then.
        "idle_in_transaction_session_timeout": f"{within * 1000:.0f}ms",
    }
