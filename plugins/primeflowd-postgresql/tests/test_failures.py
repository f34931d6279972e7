"""Which of PostgreSQL's errors are the environment's, and which may be tried again at once."""

import psycopg
import pytest
from psycopg import errors
from sqlalchemy.exc import DBAPIError

from primeflowd.errors import StorageUnavailable, UniqueViolation
from primeflowd.sql.failures import Collision, Disconnected, translated
from primeflowd_postgresql.connections import NoAnswer

KINDS: list[tuple[type[Exception], type[Exception]]] = [
    (errors.DeadlockDetected, Collision),
    (errors.SerializationFailure, Collision),
    (errors.LockNotAvailable, Collision),
    # What psycopg finds out itself has no SQLSTATE.
    (psycopg.OperationalError, Disconnected),
    (psycopg.InterfaceError, Disconnected),
    (errors.ConnectionFailure, Disconnected),
    (errors.AdminShutdown, Disconnected),
    (errors.CrashShutdown, Disconnected),
    (errors.CannotConnectNow, Disconnected),
    (errors.IdleSessionTimeout, Disconnected),
    (errors.IdleInTransactionSessionTimeout, Disconnected),
    # Trying these at once again would only take as long again, or do harm.
    (NoAnswer, StorageUnavailable),
    (errors.QueryCanceled, StorageUnavailable),
    (errors.DiskFull, StorageUnavailable),
    (errors.ReadOnlySqlTransaction, StorageUnavailable),
    (errors.UniqueViolation, UniqueViolation),
]


@pytest.mark.parametrize(("theirs", "ours"), KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("is_wrapped", [False, True])
def test_environment(theirs: type[Exception], ours: type[Exception], is_wrapped: bool) -> None:
    error: Exception = theirs("what happened")
    if is_wrapped:
        error = DBAPIError("SELECT 1", {}, error)
    found = translated(error)
    assert type(found) is ours
    assert str(found) == "what happened"
    assert found.__cause__ is error


@pytest.mark.parametrize(
    "theirs",
    [
        errors.NotNullViolation,
        errors.NumericValueOutOfRange,
        errors.UndefinedTable,
        errors.SyntaxError,
        psycopg.DataError,
    ],
    ids=lambda kind: kind.__name__,
)
def test_bugs_of_ours_stay_as_they_are(theirs: type[Exception]) -> None:
    error = theirs("what happened")
    assert translated(error) is error
