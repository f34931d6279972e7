"""The seam where errors of databases become ours; the only place that knows both.

Errors come wrapped by SQLAlchemy or, from the hottest statements, straight from the driver; the
class names of PEP 249 tell them apart either way.
"""

from typing import Final

from sqlalchemy.exc import DBAPIError

from primeflowd.errors import StorageUnavailable, UniqueViolation


class Collision(StorageUnavailable):
    """Another transaction was in the way, and the database gave this one up: a deadlock, a lock
    that did not come free in time. Run again, it goes through."""


class Disconnected(StorageUnavailable):
    """The connection is gone. A transaction whose COMMIT was not sent has left no trace."""


_SQLITE_UNIQUE: Final = frozenset({"SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_PRIMARYKEY"})
_SQLSTATE_UNIQUE: Final = "23505"
_SQLSTATES_COLLISION: Final = frozenset({"40001", "40P01", "55P03"})
_SQLSTATES_DISCONNECTED: Final = frozenset({"57P01", "57P02", "57P03", "57P05", "25P03"})
"""PostgreSQL's, beside class 08: it shuts down, starts up, or ends a session that was idle."""


def translated(error: BaseException) -> BaseException:
    """What to raise in place of `error`; `error` itself where it is not the database's doing.

    A value that the driver cannot store, a broken constraint other than uniqueness and wrong SQL
    are bugs of ours and stay as they are.
    """
    theirs = (error.orig or error) if isinstance(error, DBAPIError) else error
    kinds = {kind.__name__ for kind in type(theirs).__mro__}
    ours: Exception
    if "IntegrityError" in kinds:
        names_unique = getattr(theirs, "sqlite_errorname", None) in _SQLITE_UNIQUE
        if not names_unique and getattr(theirs, "sqlstate", None) != _SQLSTATE_UNIQUE:
            return error
        ours = UniqueViolation(str(theirs))
    elif _is_environment(error, theirs, kinds):
        ours = _kind(theirs)(str(theirs))
    else:
        return error
    ours.__cause__ = error
    return ours


def _is_environment(error: BaseException, theirs: BaseException, kinds: set[str]) -> bool:
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    # sqlite3 raises the bare DatabaseError for a file that is corrupt or no database; its
    # InterfaceError is a bug of ours, that of drivers with SQLSTATEs a connection that is gone.
    return (
        type(theirs).__name__ == "DatabaseError"
        or not kinds.isdisjoint({"OperationalError", "InternalError"})
        or ("InterfaceError" in kinds and hasattr(theirs, "sqlstate"))
    )


def _kind(theirs: BaseException) -> type[StorageUnavailable]:
    # sqlite3's errors have no SQLSTATE. Drivers that know it leave it empty for what they find out
    # themselves, without an answer from the database: that there is no connection any more.
    state = getattr(theirs, "sqlstate", "")
    if state in _SQLSTATES_COLLISION:
        return Collision
    if state is None or state in _SQLSTATES_DISCONNECTED or state.startswith("08"):
        return Disconnected
    return StorageUnavailable
