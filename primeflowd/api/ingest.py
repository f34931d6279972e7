"""The two routes by which batches come in, answered without the framework.

    request id -> gate -> handler -> answer or envelope

What is particular to the routes (validation, idempotency, the answer) is the handlers', and what
comes before them is the gate's: the same code that the application calls. Only the framework
around it is left out, which costs several times as much as all the rest of a request.
"""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, Final, Self, TypeAlias

import outcome
import structlog
import trio

from primeflowd.api import batches, errors, request_id
from primeflowd.api.answer import Answer
from primeflowd.api.call import Route
from primeflowd.api.gate import Gate
from primeflowd.api.http_request import Malformed
from primeflowd.api.incoming import Passed
from primeflowd.api.known_heads import Head
from primeflowd.errors import Refused
from primeflowd.model import ApiKey

ROUTES: Final = {
    (b"POST", route.path.encode()): route for route in batches.ROUTES if route.change is not None
}
"""By method and request target, spelt exactly so; any other spelling takes the long way."""

BodyPart: TypeAlias = Callable[[], Awaitable[tuple[bytes, bool]]]
"""Gives what has come of a body since the last time, and whether there is more of it."""

_NO_NAMES: Final[Mapping[str, str]] = {}


class IngestRequest:
    """A request to one of these routes; see incoming.Incoming. It is its own body's iterator.

    One whose body has not `arrived` gives the `rest` of it.
    """

    __slots__ = (
        "_rest",
        "answer_headers",
        "arrived",
        "content_length",
        "headers",
        "method",
        "passed",
        "path",
    )

    query_string = b""

    def __init__(
        self,
        route: Route,
        head: Head,
        arrived: bytes | None,
        rest: BodyPart | None = None,
    ) -> None:
        self.method = route.method
        self.path = route.path
        self.headers = head.text
        self.passed = head.text.passed
        self.content_length = head.content_length
        self.arrived = arrived
        self.answer_headers: errors.Headers = ()
        self._rest = rest

    @property
    def body(self) -> Self:
        return self

    def __aiter__(self) -> Self:
        return self

    def remember(self, passed: Passed) -> None:
        # The same head names the same route.
        self.headers.passed = passed

    async def __anext__(self) -> bytes:
        if self._rest is None:
            raise StopAsyncIteration
        part, more = await self._rest()
        if not more:
            self._rest = None
        return part


def known_key(gate: Gate, head: Head) -> ApiKey | None:
    """Whose request this is; None if a task is needed to find out, or for anything else."""
    if gate.tracing is not None:
        return None
    with suppress(Refused):
        return gate.known_key(head.text, head.text.passed)
    return None


def begin(
    gate: Gate,
    route: Route,
    request: IngestRequest,
    key: ApiKey,
    on_answer: Callable[[Answer, str], None],
) -> None:
    """As `answer`, for a request that is all here, by somebody known, without a task that waits.

    `on_answer` is called once, perhaps before this returns; it must not raise.
    """
    chosen = request_id.choose(request.headers.get(request_id.HEADER))

    def ended(result: outcome.Maybe[Any]) -> None:
        try:
            given = render(result.unwrap())
        except Exception as error:  # noqa: BLE001 - one place makes answers of all of them
            given = _answer_to(error, chosen)
        on_answer(_told(gate, route, request, given, chosen), chosen)

    try:
        render = gate.begin(route, request, key, ended)
    except Exception as error:  # noqa: BLE001 - likewise
        on_answer(_told(gate, route, request, _answer_to(error, chosen), chosen), chosen)


def _answer_to(error: Exception, chosen: str) -> Answer:
    # Whoever calls us has a context of his own.
    with structlog.contextvars.bound_contextvars(request_id=chosen):
        return errors.answer_to(error)


async def answer(gate: Gate, route: Route, request: IngestRequest) -> tuple[Answer, str]:
    """The answer, and the request's id. Whatever goes wrong becomes an envelope (contract 2.5);
    only cancellation passes."""
    chosen = request_id.choose(request.headers.get(request_id.HEADER))
    # The context is the connection's; its next request binds another.
    structlog.contextvars.bind_contextvars(request_id=chosen)
    traced = None if gate.tracing is None else gate.tracing.begin(request.headers)
    try:
        given = await gate.answer(route, request, _NO_NAMES)
    except Malformed as error:
        given = errors.for_status(error.status)
    except Exception as error:  # noqa: BLE001 - one place makes answers of all of them
        given = errors.answer_to(error)
    except trio.Cancelled:
        if traced is not None:
            traced.end(route.method, route.path, None, chosen)
        raise
    if traced is not None:
        traced.end(route.method, route.path, given.status, chosen)
    return _told(gate, route, request, given, chosen), chosen


def _told(gate: Gate, route: Route, request: IngestRequest, given: Answer, chosen: str) -> Answer:
    """The answer with all of its headers, counted and logged."""
    if request.answer_headers:
        given = Answer(given.status, given.body, given.headers + request.answer_headers)
    gate.requests.count(route.method, route.path, given.status)
    gate.log.debug(
        "answered",
        method=request.method,
        path=request.path,
        status=given.status,
        request_id=chosen,
    )
    return given
