"""Traces: a span for each API request, for each callback that came of it, and for each attempt.

    request ──> callback accepted ──> callback attempt, callback attempt ...

A request continues its client's trace, if it sent a `traceparent`. If it sent none and made one
callback, it is the beginning of that callback's trace; else callbacks have traces of their own,
linked to the request. Which trace is whose follows from ids: see trace_context.py.

Spans are made when what they tell of is over, and durable: a span is never of something that did
not happen, while what a crash cut short has none. They hold ids, numbers and destinations, never
URLs, bodies or secrets.

For the Trio thread. Blocks on nothing: the sink takes spans and returns at once.
"""

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from secrets import randbits
from typing import Final, Literal, Protocol, TypeAlias

import msgspec

from primeflowd import trace_context
from primeflowd.clock import Clock
from primeflowd.config import TracingSettings
from primeflowd.hookspecs import RecordedAttempt
from primeflowd.instants import MILLISECOND, Micros
from primeflowd.model import Delivery
from primeflowd.trace_context import TraceContext

Attributes: TypeAlias = Mapping[str, str | int]

_TRACED: Final = "/v1/"


class Span(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is over.

    Attributes:
        parent: None if its trace begins with it, or in a part that is not ours to tell of.
        links: spans of other traces that it has to do with.
        failed: it went wrong.
    """

    name: str
    kind: Literal["server", "producer", "client"]
    context: TraceContext
    parent: TraceContext | None = None
    links: tuple[TraceContext, ...] = ()
    started_at: Micros
    ended_at: Micros
    attributes: Attributes
    failed: bool = False


class Sink(Protocol):
    """Where spans go."""

    def take(self, span: Span) -> None:
        """Must neither block nor raise."""
        ...


class Fields(Protocol):
    """What is needed of the headers of a request."""

    def getlist(self, name: str, /) -> list[str]: ...


class TracedRequest:
    """One API request under way.

    Attributes:
        trace_id: None until it is known: without a client's trace, it may become that of the
            callback which it makes.
    """

    __slots__ = ("_tracing", "client", "span_id", "started_at", "trace_id")

    def __init__(self, tracing: "Tracing", client: TraceContext | None, now: Micros) -> None:
        self._tracing = tracing
        self.client = client
        self.trace_id = client.trace_id if client else None
        self.span_id = _random(64)
        self.started_at = now

    def context(self) -> TraceContext:
        """Where it belongs; decided by now at the latest."""
        if self.trace_id is None:
            self.trace_id = _random(128)
        sampled = self.client.is_sampled if self.client else self._tracing.samples(self.trace_id)
        return TraceContext(self.trace_id, self.span_id, sampled)

    def end(self, method: str, route: str | None, status: int | None, request_id: str) -> None:
        """It is answered, or with `status` None: the client has hung up before that."""
        self._tracing.ended(self, method, route, status, request_id)


class Tracing:
    """Makes spans and gives them to `sink`."""

    def __init__(self, settings: TracingSettings, sink: Sink, clock: Clock) -> None:
        self._ratio = settings.sample_ratio
        self._passes_on = settings.pass_on
        self._sink = sink
        self._clock = clock
        # The request that a task works for.
        self._current: ContextVar[TracedRequest | None] = ContextVar("request", default=None)

    def samples(self, trace_id: int) -> bool:
        return trace_context.is_sampled(trace_id, self._ratio)

    def begin(self, headers: Fields) -> TracedRequest:
        """A request has come; what its task does from now on is done for it."""
        client = trace_context.parse(headers.getlist(trace_context.HEADER))
        request = TracedRequest(self, client, self._clock.now())
        self._current.set(request)
        return request

    def ended(
        self,
        request: TracedRequest,
        method: str,
        route: str | None,
        status: int | None,
        request_id: str,
    ) -> None:
        """For TracedRequest. Of health checks, scrapes and the like there is no span."""
        context = request.context()
        if not context.is_sampled or route is None or not route.startswith(_TRACED):
            return
        attributes: dict[str, str | int] = {
            "http.request.method": method,
            "http.route": route,
            "primeflow.request_id": request_id,
        }
        if status is not None:
            attributes["http.response.status_code"] = status
        self._sink.take(
            Span(
                name=f"{method} {route}",
                kind="server",
                context=context,
                parent=request.client,
                started_at=request.started_at,
                ended_at=self._clock.now(),
                attributes=attributes,
                failed=status is None or status >= 500,
            )
        )

    def follow(self) -> Callable[[Sequence[Delivery]], None]:
        """What is to be told of the deliveries that the present request makes, once they are
        durable; be the request over by then."""
        request = self._current.get()

        def made(deliveries: Sequence[Delivery]) -> None:
            if request is not None and request.trace_id is None and len(deliveries) == 1:
                request.trace_id = trace_context.of_callback(deliveries[0], self._ratio).trace_id
            for delivery in deliveries:
                self._accepted(delivery, request)

        return made

    def _accepted(self, delivery: Delivery, request: TracedRequest | None) -> None:
        context = trace_context.of_callback(delivery, self._ratio)
        if not context.is_sampled:
            return
        parent, links = None, []
        if request is not None:
            asked_for_by = request.context()
            if asked_for_by.trace_id == context.trace_id:
                parent = asked_for_by
            else:
                links.append(asked_for_by)
        if not delivery.is_automatic:
            links.append(trace_context.of_batch(delivery, self._ratio))
        self._sink.take(
            Span(
                name="callback accepted",
                kind="producer",
                context=context,
                parent=parent,
                links=tuple(links),
                started_at=delivery.created_at,
                ended_at=self._clock.now(),
                attributes=_about(delivery),
            )
        )

    def recording(
        self, tell: Callable[[Sequence[RecordedAttempt]], None]
    ) -> Callable[[Sequence[RecordedAttempt]], None]:
        """`tell`, with a span made before of each attempt on record."""

        def recorded(records: Sequence[RecordedAttempt]) -> None:
            for record in records:
                self._attempted(record)
            tell(records)

        return recorded

    def _attempted(self, record: RecordedAttempt) -> None:
        attempt, delivery = record.attempt, record.delivery
        callback = trace_context.of_callback(delivery, self._ratio)
        if not callback.is_sampled:
            return
        attributes = _about(delivery) | {
            "primeflow.attempt_number": attempt.attempt_number,
            "primeflow.attempt_id": attempt.id,
            "primeflow.delivery_status": delivery.status,
            "http.request.method": "POST",
        }
        if attempt.status_code is not None:
            attributes["http.response.status_code"] = attempt.status_code
        if attempt.failure_reason is not None:
            attributes["error.type"] = attempt.failure_reason
        self._sink.take(
            Span(
                name="callback attempt",
                kind="client",
                context=trace_context.of_attempt(delivery, attempt.id, self._ratio),
                parent=callback,
                started_at=attempt.created_at,
                ended_at=attempt.created_at + attempt.response_time * MILLISECOND,
                attributes=attributes,
                failed=attempt.failure_reason is not None,
            )
        )

    @property
    def headers(self) -> Callable[[Delivery, str], tuple[tuple[str, str], ...]] | None:
        """What an attempt carries, from its delivery and its id; None: nothing is passed on."""
        return self._headers if self._passes_on else None

    def _headers(self, delivery: Delivery, attempt_id: str) -> tuple[tuple[str, str], ...]:
        context = trace_context.of_attempt(delivery, attempt_id, self._ratio)
        return ((trace_context.HEADER, context.header()),)


def _about(delivery: Delivery) -> dict[str, str | int]:
    return {
        "primeflow.org_id": delivery.org_id,
        "primeflow.batch_id": delivery.batch_id,
        "primeflow.delivery_id": delivery.id,
        "primeflow.destination": delivery.destination,
    }


def _random(bits: int) -> int:
    return randbits(bits) or 1
