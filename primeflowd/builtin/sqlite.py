"""Storage in a SQLite file, for `sqlite:///PATH`: the default.

The file is in WAL mode with `synchronous=FULL`: a commit is on the disk before it is answered, and
readers and the writer do not wait for each other. Several nodes of one machine may share the file,
see sqlite_seats.py and sqlite_turns.py; command lines visit.

Fails, at opening, with an OperatorError that names the path and what to mend: a directory that
cannot be written to, a file that is no database, a schema that is newer, too many nodes. Later
failures are StorageUnavailable, see sql/writer.py.
"""

import errno
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    ExitStack,
    asynccontextmanager,
    closing,
    contextmanager,
    suppress,
)
from pathlib import Path
from typing import Final

import trio
from sqlalchemy import URL, Connection, Engine, NullPool, QueuePool, create_engine, event
from sqlalchemy.exc import DBAPIError

from primeflowd.builtin.sqlite_locks import LockFile, leave_to_owner_of_directory
from primeflowd.builtin.sqlite_seats import Seats
from primeflowd.builtin.sqlite_turns import InTurn
from primeflowd.config import Config
from primeflowd.errors import OperatorError, StorageUnavailable
from primeflowd.hookspecs import SchemaState, Storage, hookimpl
from primeflowd.instants import SECOND, Micros
from primeflowd.sql import schema
from primeflowd.sql.failures import translated
from primeflowd.sql.storage import READERS, open_sql_storage

SCHEME: Final = "sqlite://"

OLDEST: Final = (3, 35, 0)
"""The first SQLite with RETURNING."""

PAGE_SIZE: Final = 8192
"""Bytes; of files that are made from now on. A page that changed takes two calls to log, whatever
its size: of pages of 4096, with three batches each, a commit of hundreds took a third longer. Of
larger ones small commits do."""

BUSY_TIMEOUT: Final[Micros] = 5 * SECOND
"""How long a statement waits for another process's lock."""

# sqlite3 takes whole numbers and text as they are; for any other value it looks for an adapter, and
# where there is none for two methods, which takes five times as long as the rest. No adapter is a
# function of ours, which would cost more than the value: the smallest commit has a dozen nulls.
_NONES: Final[dict[None, None]] = {}
sqlite3.register_adapter(type(None), _NONES.get)
sqlite3.register_adapter(bytes, bytes)
sqlite3.register_adapter(bool, int)


@hookimpl
def open_storage(
    config: Config, node_id: str | None
) -> AbstractAsyncContextManager[Storage] | None:
    path = _path(config)
    return None if path is None else open_sqlite(path, node_id)


@hookimpl
def migrate_storage(config: Config, check: bool) -> SchemaState | None:
    path = _path(config)
    if path is None:
        return None
    if not check:
        with _files(path):
            engine = _engine(path, BUSY_TIMEOUT, writes=True)
            state = _schema(engine, path)
            _prepare(engine, path, BUSY_TIMEOUT)
            return state
    # SQLite would make a file that is missing.
    if not path.exists():
        return SchemaState(None, schema.HEAD)
    engine = _engine(path, BUSY_TIMEOUT, writes=False)
    try:
        return _schema(engine, path)
    finally:
        engine.dispose()


def _path(config: Config) -> Path | None:
    """The file that the configuration names; None if that is another plugin's."""
    url = config.storage_url
    if not url.startswith(SCHEME):
        return None
    path = url.removeprefix(SCHEME + "/")
    if not path or path == url or path == ":memory:":
        raise OperatorError(
            f"storage.url: {url} names no file; write sqlite:///PATH, or memory:// to keep nothing"
        )
    return Path(path)


@asynccontextmanager
async def open_sqlite(
    path: Path, node_id: str | None, *, busy_timeout: Micros = BUSY_TIMEOUT
) -> AsyncIterator[Storage]:
    """The storage in the file at `path`, which is made if it is missing.

    With a `node_id` it is one of the nodes that share the file; without, it is only visited.
    """
    with _files(path) as locks:
        seats = Seats(locks)
        if node_id is not None:
            seats.sit_down()
        writer = _engine(path, busy_timeout, writes=True)
        readers = _engine(path, busy_timeout, writes=False)
        await trio.to_thread.run_sync(_prepare, writer, path, busy_timeout)
        try:
            async with open_sql_storage(writer, readers) as storage:
                await seats.settle(storage, node_id)
                yield storage
        finally:
            if node_id is not None:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(_checkpoint, path)


@contextmanager
def _files(path: Path) -> Iterator[LockFile]:
    """Make the files that are not there, and open that of the locks."""
    directory = path.absolute().parent
    with ExitStack() as stack:
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            _make(path)
            locks = stack.enter_context(LockFile(path))
        except OSError as error:
            raise OperatorError(
                f"state directory {directory} is not writable: {error.filename}: {error.strerror}"
            ) from error
        yield locks


def _make(path: Path) -> None:
    # Payloads and sealed secrets are nobody else's business; SQLite gives the files that it adds
    # the same mode.
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        # Not opened: closing any descriptor of a database ends the locks that SQLite has on it
        # elsewhere in this process.
        if not os.access(path, os.R_OK | os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path)) from None
    else:
        try:
            leave_to_owner_of_directory(descriptor, path)
        finally:
            os.close(descriptor)


def _engine(path: Path, busy_timeout: Micros, *, writes: bool) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        # The writer keeps one connection and decides itself when to open another.
        poolclass=NullPool if writes else QueuePool,
        **({} if writes else {"pool_size": READERS, "max_overflow": 0}),
        # isolation_level None keeps sqlite3 from beginning transactions when it sees fit, which is
        # never before a SELECT: we begin them ourselves, see below.
        connect_args={
            "isolation_level": None,
            "check_same_thread": False,
            "timeout": busy_timeout / SECOND,
            **({"factory": InTurn} if writes else {}),
        },
    )

    @event.listens_for(engine, "connect")
    def set_up(connection: sqlite3.Connection, _: object) -> None:
        # No mmap_size: with it a failing disk would kill the process with SIGBUS.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA temp_store = MEMORY")
        if writes:
            connection.execute("PRAGMA cache_size = -16384")
            connection.execute("PRAGMA journal_size_limit = 67108864")
        else:
            connection.execute("PRAGMA query_only = ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        driver = connection.connection.driver_connection
        if isinstance(driver, InTurn):
            # The group commit has begun already when it comes to a statement of SQLAlchemy's.
            if not driver.in_transaction:
                try:
                    driver.begin()
                except sqlite3.Error as error:
                    raise translated(error)  # noqa: B904 -- it has its cause
        else:
            connection.exec_driver_sql("BEGIN")

    return engine


def _prepare(writer: Engine, path: Path, busy_timeout: Micros) -> None:
    if sqlite3.sqlite_version_info < OLDEST:
        raise OperatorError(
            f"SQLite {sqlite3.sqlite_version} is too old; {'.'.join(map(str, OLDEST))} is needed"
        )
    with _opening(path):
        _set_wal(path, busy_timeout)
        schema.bring_up_to_date(writer, str(path))


def _schema(engine: Engine, path: Path) -> SchemaState:
    with _opening(path):
        return SchemaState(*schema.revisions(engine, name=str(path)))


@contextmanager
def _opening(path: Path) -> Iterator[None]:
    try:
        yield
    except (DBAPIError, sqlite3.Error, StorageUnavailable) as error:
        reason = error.orig if isinstance(error, DBAPIError) else error
        raise OperatorError(f"{path} cannot be opened as a SQLite database: {reason}") from error


def _set_wal(path: Path, busy_timeout: Micros) -> None:
    """Put the file into WAL mode, and have it give space back; it stays so. Nothing to do but for a
    new file: one that was made otherwise has to be made anew, as `primeflowd restore` does."""
    deadline = time.monotonic() + busy_timeout / SECOND
    with closing(sqlite3.connect(path, timeout=busy_timeout / SECOND)) as connection:
        while True:
            try:
                if connection.execute("PRAGMA page_count").fetchone() == (0,):
                    # Before the first page is written, which putting it into WAL mode does.
                    connection.execute(f"PRAGMA page_size = {PAGE_SIZE}")
                    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
                (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
                break
            except sqlite3.OperationalError as error:
                # Two processes that open a new file at once: SQLite does not wait here by itself.
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)  # in a thread: storage is opened before anything is served
    if mode != "wal":
        raise OperatorError(
            f"{path} cannot be put into WAL mode (it is in mode {mode}); its file system lacks "
            "shared memory: use a local one"
        )


def _checkpoint(path: Path) -> None:
    """Move the write-ahead log into the file, so that a backup of the file alone is complete.

    SQLite does it by itself when the last connection closes; this is for when a visitor stays.
    """
    with suppress(sqlite3.Error), closing(sqlite3.connect(path, timeout=1)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
