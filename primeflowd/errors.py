"""Every exception that primeflowd raises on purpose, as a small tree by cause.

The docstring of a class says whose fault it is and what that person can do. The message of an
exception is written for that person too: it names the value at fault and never holds a secret.
Exceptions of libraries are translated into these once, at the seam where the library is called.
"""

from collections.abc import Mapping


class PrimeflowdError(Exception):
    """Base of all others; never raised itself."""


class OperatorError(PrimeflowdError):
    """The host or the configuration is wrong: the operator mends it and starts the daemon again.

    The command line prints the message as one line, without a traceback, and exits with 1.
    """


class ConfigError(OperatorError):
    """A configuration file cannot be read, or a setting in it is unknown or not allowed."""


class PluginError(OperatorError):
    """A plugin is missing, broken, or asks for something that the host does not offer."""


class MasterKeyError(OperatorError):
    """The master key is missing, unreadable or not the one that this storage was written with."""


class StorageInUse(OperatorError):
    """Daemons use this storage, and what was asked for takes that none does; stop them."""


class SchemaTooNew(OperatorError):
    """The storage was written by a newer primeflowd; install that version or a newer one."""


class StorageUnavailable(PrimeflowdError):
    """The environment failed: disk full, database locked, corrupt or out of reach.

    Nothing of the operation that met it is stored. It may be tried again; clients get a 503.
    """


class UniqueViolation(PrimeflowdError):
    """A row with this key exists, written by somebody else since the operation looked.

    Storage runs the operation once more before it lets this through, so that the operation's own
    check can name the conflict; seen by a caller, it is a bug in that check.
    """


class Overloaded(PrimeflowdError):
    """More work is queued than the daemon may hold; try again after `retry_after` seconds."""

    def __init__(self, message: str, *, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Draining(Overloaded):
    """The daemon is shutting down; another node, or this one restarted, takes the request."""


class Refused(PrimeflowdError):
    """A client asked for something that will not be done; the client changes the request.

    `code` is stable and for machines, `message` is prose, `details` maps strings to strings.
    """

    def __init__(self, code: str, message: str, details: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = dict(details) if details else None


class InvalidRequest(Refused):
    """The request is wrong in itself, whatever the state of the object (400)."""


class NotFound(Refused):
    """No such object in this org; another org's object looks the same (404)."""

    def __init__(self, message: str = "no such object") -> None:
        super().__init__("not_found", message)


class IdempotencyConflict(Refused):
    """The idempotency key is taken by another request, or by one still running (409)."""


class StateRefused(Refused):
    """The request is fine but the state of the object refuses it (422)."""

    def __init__(self, code: str, message: str, details: Mapping[str, str] | None = None) -> None:
        super().__init__(code, message, {"error_type": code, **(details or {})})
