"""SQLite files as `backup` and `restore` handle them: copied, looked at, put into another's place.

A copy is of one instant, however long it takes and whoever writes meanwhile: it is read in one
transaction, for which nobody waits. Until it ends, the write-ahead log of a busy database grows.
A copy is written beside its place, brought to the disk, and renamed: it is there in full or not.

Everything blocks. Fails with an OperatorError that names the file.
"""

import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final
from urllib.parse import quote

from primeflowd.config import Config
from primeflowd.errors import OperatorError, StorageInUse

_SCHEME: Final = "sqlite:///"

_AT_ONCE: Final = 1024
"""Pages copied between two signs of progress: 4 MB."""

_TO_DISK: Final = 16
"""After so many of these they are brought to the disk: a whole database that is left to the end
would make the commits of a daemon on the same disk wait for it."""

_INCREMENTAL: Final = 2

Show = Callable[[int, int], None]
"""Told of pages and bytes copied so far."""


def database(config: Config) -> Path:
    """The file that storage.url names.

    Raises:
        OperatorError: the storage is no SQLite file.
    """
    url = config.storage_url
    if url.startswith(("postgresql:", "postgres:")):
        raise OperatorError(
            "storage.url is a PostgreSQL database, which has its own tools for this: "
            "pg_dump --format=custom takes a consistent copy while daemons run, pg_restore puts it "
            "back"
        )
    if not url.startswith(_SCHEME) or url in (_SCHEME, f"{_SCHEME}:memory:"):
        scheme, _, _ = url.partition(":")
        raise OperatorError(f"storage.url: {scheme}:// is no SQLite file, which this is for")
    return Path(url.removeprefix(_SCHEME))


def pages(path: Path) -> int:
    """How large a database is."""
    with open_file(path) as connection, _about(path, "cannot be read"):
        count: int = connection.execute("PRAGMA page_count").fetchone()[0]
        return count


def copy(source: Path, target: Path, show: Show) -> None:
    """Copy a database, in use or not, to `target`, whose file is replaced if it is there.

    Raises:
        OperatorError: one of them cannot be read or written; `target` is as it was.
    """
    draft = target.with_name(f"{target.name}.{secrets.token_hex(4)}.partial")
    with _about(target, "cannot be written"):
        descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open_file(source) as from_, _about(target, "cannot be written"):
            _copy(from_, draft, descriptor, show)
            os.fsync(descriptor)
            draft.replace(target)
            sync_directory(target)
    finally:
        os.close(descriptor)
        draft.unlink(missing_ok=True)


def _copy(source: sqlite3.Connection, draft: Path, descriptor: int, show: Show) -> None:
    source.execute("BEGIN")
    (size,) = source.execute("PRAGMA page_size").fetchone()
    told = 0

    def progress(_: int, remaining: int, total: int) -> None:
        nonlocal told
        told += 1
        show(total - remaining, (total - remaining) * size)
        if told % _TO_DISK == 0:
            os.fdatasync(descriptor)

    with closing(sqlite3.connect(draft, isolation_level=None)) as target:
        # Who finds half a copy throws it away: there is nothing to roll back to.
        target.execute("PRAGMA journal_mode = OFF")
        target.execute("PRAGMA synchronous = OFF")
        # In the transaction that is open: steps of their own would begin anew after each commit of
        # somebody else, and never end.
        source.execute("SELECT count(*) FROM sqlite_master").fetchone()
        source.backup(target, pages=_AT_ONCE, progress=progress)


@contextmanager
def open_file(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection to a database that is there."""
    with _about(path, "cannot be read"):
        if not path.is_file():
            raise OperatorError(f"{path}: there is no such file")
        uri = f"file:{quote(str(path))}?mode=rw"
        connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=5)
        with closing(connection):
            yield connection


def tables(path: Path) -> list[str]:
    """The names of its tables.

    Raises:
        OperatorError: it is no storage of primeflowd.
    """
    with open_file(path) as connection, _about(path, "cannot be read"):
        found = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        names = sorted(name for (name,) in found if not name.startswith("sqlite_"))
    if not {"alembic_version", "batches", "deliveries"} <= set(names):
        raise OperatorError(f"{path} is no storage of primeflowd")
    return names


def check(path: Path, table: str) -> int:
    """Look for damage in a table and its indexes; how many rows it has.

    Raises:
        OperatorError: it is damaged.
    """
    with open_file(path) as connection, _about(path, f"is damaged: {table}"):
        for (complaint,) in connection.execute(f"PRAGMA integrity_check('{table}')"):
            if complaint != "ok":
                raise OperatorError(f"{path} is damaged: {table}: {complaint}")
        count: int = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608 -- a name of its own
        return count


def have_it_give_space_back(path: Path) -> bool:
    """Make a file anew that keeps all space it ever had; False if there was no need to."""
    with open_file(path) as connection, _about(path, "cannot be made anew"):
        (mode,) = connection.execute("PRAGMA auto_vacuum").fetchone()
        if mode == _INCREMENTAL:
            return False
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("VACUUM")
        return True


def refuse_users(path: Path) -> None:
    """Make sure that no daemon has the database at `path`, if there is one.

    Raises:
        StorageInUse: one has.
        OperatorError: it cannot be told.
    """
    if not path.exists():
        return
    try:
        with open_file(path) as connection:
            nodes = _nodes(connection)
    except OperatorError as error:
        raise OperatorError(
            f"{error}; once no daemon uses it, move it away with its -wal, and restore again"
        ) from error
    if nodes:
        raise StorageInUse(
            f"a daemon uses {path} ({', '.join(nodes)}); stop it, and restore again. One that was "
            "killed counts for as long as storage.lease_ttl"
        )
    # The last to close a database removes its log.
    if path.with_name(f"{path.name}-wal").exists():
        raise StorageInUse(f"another process has {path} open; end it, and restore again")


def _nodes(connection: sqlite3.Connection) -> list[str]:
    query = "SELECT id FROM nodes WHERE expires_at >= ? ORDER BY began_at, id"
    with suppress(sqlite3.OperationalError):  # an old storage, of one node: it has no such table
        return [row[0] for row in connection.execute(query, (time.time_ns() // 1000,))]
    return []


def sync_directory(path: Path) -> None:
    """Bring the name of a file to the disk."""
    directory = os.open(path.absolute().parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@contextmanager
def _about(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OperatorError(f"{path} {what}: {error.strerror}") from error
    except sqlite3.Error as error:
        raise OperatorError(f"{path} {what}: {error}") from error
