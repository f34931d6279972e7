"""The seam where errors of databases become ours; the only place that knows both.

Errors come wrapped by SQLAlchemy or, from the hottest statements, straight from the driver; the
class names of PEP 249 tell them apart either way.
"""

from typing import Final

from sqlalchemy.exc import DBAPIError

from primeflowd.errors import StorageUnavailable, UniqueViolation

_SQLITE_UNIQUE: Final = frozenset({"SQLITE_CONSTRAINT_UNIQUE", "SQLITE_CONSTRAINT_PRIMARYKEY"})
_SQLSTATE_UNIQUE: Final = "23505"


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
    elif _is_environment(error, type(theirs).__name__, kinds):
        ours = StorageUnavailable(str(theirs))
    else:
        return error
    ours.__cause__ = error
    return ours


def _is_environment(error: BaseException, name: str, kinds: set[str]) -> bool:
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    # sqlite3 raises the bare DatabaseError for a file that is corrupt or no database.
    return name == "DatabaseError" or not kinds.isdisjoint({"OperationalError", "InternalError"})
