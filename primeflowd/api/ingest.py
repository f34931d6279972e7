"""The two routes by which batches come in, answered without the framework.

    request id -> gate -> handler -> answer or envelope

What is particular to the routes (validation, idempotency, the answer) is the handlers', and what
comes before them is the gate's: the same code that the application calls. Only the framework
around it is left out, which costs several times as much as all the rest of a request.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Final, Self

import structlog
import trio

from primeflowd.api import batches, errors, request_id
from primeflowd.api.answer import Answer
from primeflowd.api.call import Route
from primeflowd.api.gate import Gate
from primeflowd.api.http_request import Malformed
from primeflowd.api.incoming import Passed
from primeflowd.api.known_heads import Head

ROUTES: Final = {
    (b"POST", route.path.encode()): route
    for route in batches.ROUTES
    if route.handler in (batches.create, batches.create_bulk)
}
"""By method and request target, spelt exactly so; any other spelling takes the long way."""

_NO_NAMES: Final[Mapping[str, str]] = {}


class IngestRequest:
    """A request to one of these routes; see incoming.Incoming. It is its own body's iterator."""

    __slots__ = (
        "_body_part",
        "_more",
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
        body_part: Callable[[], Awaitable[tuple[bytes, bool]]],
    ) -> None:
        self.method = route.method
        self.path = route.path
        self.headers = head.text
        self.passed = head.text.passed
        self.content_length = head.content_length
        self.arrived = arrived
        self.answer_headers: errors.Headers = ()
        self._body_part = body_part
        self._more = arrived is None

    @property
    def body(self) -> Self:
        return self

    def __aiter__(self) -> Self:
        return self

    def remember(self, passed: Passed) -> None:
        # The same head names the same route.
        self.headers.passed = passed

    async def __anext__(self) -> bytes:
        if not self._more:
            raise StopAsyncIteration
        part, self._more = await self._body_part()
        return part


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
    if request.answer_headers:
        given = Answer(given.status, given.body, given.headers + request.answer_headers)
    gate.requests.count(route.method, route.path, given.status)
    gate.log.debug("answered", method=request.method, path=request.path, status=given.status)
    return given, chosen
