"""Every answer that is not a success, in one envelope (contract 2.5).

`answer_to(exception)` is the only place that turns exceptions into statuses. The rest of the API
raises: errors.Refused and its kin from operations, `Rejected` for what only HTTP knows.
"""

from collections.abc import Mapping
from typing import Final

import msgspec
import structlog
import trio
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from primeflowd.api.answer import Answer
from primeflowd.errors import (
    Draining,
    IdempotencyConflict,
    InvalidRequest,
    NotFound,
    Overloaded,
    Refused,
    StateRefused,
    StorageUnavailable,
)

log = structlog.get_logger()

Headers = tuple[tuple[str, str], ...]

TYPES: Final = {
    400: "invalid_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    409: "idempotency_error",
    413: "payload_too_large",
    415: "unsupported_media_type",
    422: "validation_error",
    429: "rate_limited",
    500: "internal_error",
    503: "unavailable",
}
"""The `error` of each status; any other 4xx counts as 400, any other 5xx as 500."""

_STATUS_OF: Final = (
    (InvalidRequest, 400),
    (NotFound, 404),
    (IdempotencyConflict, 409),
    (StateRefused, 422),
)
# What the framework finds wrong by itself, in our words.
_FRAMEWORK: Final = {
    404: ("not_found", "no such resource"),
    405: ("method_not_allowed", "this resource does not have that method"),
    408: ("request_timeout", "the body of the request did not arrive in time"),
    413: ("body_too_large", "the body of the request is too large"),
    431: ("headers_too_large", "the head of the request is too large"),
}


class Envelope(msgspec.Struct, frozen=True, omit_defaults=True):
    """A's error shape; `details` is left out where there are none."""

    error: str
    code: str
    message: str
    details: dict[str, str] | None = None


class Rejected(Refused):
    """A request that was refused for how it came rather than for what it asks."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        details: Mapping[str, str] | None = None,
        headers: Headers = (),
    ) -> None:
        super().__init__(code, message, details)
        self.status = status
        self.headers = headers


def status_of(refused: Refused) -> int:
    """The HTTP status that says what `refused` says."""
    if isinstance(refused, Rejected):
        return refused.status
    for kind, status in _STATUS_OF:
        if isinstance(refused, kind):
            return status
    return 400


def envelope(refused: Refused) -> Envelope:
    """A refusal as an object, for an answer of its own or an entry of a bulk answer."""
    return Envelope(_type(status_of(refused)), refused.code, refused.message, refused.details)


def answer_to(error: BaseException) -> Answer:
    """The answer to a request that raised `error`.

    What is nobody's request's fault is logged here, a bug with its traceback.

    Raises:
        BaseException: `error` itself, if it is not for us: Cancelled and the like.
    """
    if isinstance(error, BaseExceptionGroup):
        # A nursery on the way wraps what it lets through; a cancelled request gets no answer.
        if not isinstance(error, Exception) or error.subgroup(trio.Cancelled):
            raise error
        if len(error.exceptions) == 1:
            return answer_to(error.exceptions[0])
    if isinstance(error, Refused):
        headers = error.headers if isinstance(error, Rejected) else ()
        return _answer(status_of(error), envelope(error), headers)
    if isinstance(error, Overloaded):
        code = "draining" if isinstance(error, Draining) else "overloaded"
        return unavailable(code, str(error), error.retry_after)
    if isinstance(error, StorageUnavailable):
        # The message is the operator's: it may name files and hosts.
        log.warning("request_failed", reason=str(error))
        return unavailable("storage_unavailable", "the storage is out of reach; try again")
    if isinstance(error, HTTPException):
        return _framework_answer(error)
    if not isinstance(error, Exception):
        raise error
    log.error("request_failed", exc_info=error)
    return plain(500, "internal_error", "an internal error; its cause is in the daemon's log")


def unavailable(code: str, message: str, retry_after: int = 1) -> Answer:
    """A 503; `retry_after` in seconds."""
    return plain(503, code, message, (("Retry-After", str(retry_after)),))


def plain(status: int, code: str, message: str, headers: Headers = ()) -> Answer:
    """An answer with an envelope without details."""
    return _answer(status, Envelope(_type(status), code, message), headers)


def for_status(status: int) -> Answer:
    """The answer for a bare status that the server or the framework came up with."""
    code, message = _FRAMEWORK.get(status, (None, None))
    if code is None or message is None:
        if status >= 500:
            code, message = "internal_error", "an internal error"
        else:
            code, message = "malformed_request", "this is no request that can be answered"
    return plain(status, code, message)


def _framework_answer(error: HTTPException) -> Answer:
    answer = for_status(error.code or 500)
    if isinstance(error, MethodNotAllowed) and error.valid_methods:
        allow = ", ".join(sorted(error.valid_methods))
        return msgspec.structs.replace(answer, headers=(("Allow", allow),))
    return answer


def _answer(status: int, body: Envelope, headers: Headers) -> Answer:
    return Answer(status, msgspec.json.encode(body), headers)


def _type(status: int) -> str:
    return TYPES.get(status) or (TYPES[500] if status >= 500 else TYPES[400])
