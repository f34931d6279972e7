"""Spans to an OpenTelemetry collector, over OTLP/HTTP: the one module that knows the SDK.

A span is put into the SDK's queue, which its own thread empties. When the collector is slow or
gone the queue fills, and then spans are dropped, with a warning in the log; nothing ever waits for
the collector but `aclose`, for as long as `LAST_SPANS` at most.

What is not a setting of ours is the SDK's, by its environment variables: OTEL_EXPORTER_OTLP_HEADERS
(for a collector that wants a key), OTEL_EXPORTER_OTLP_CERTIFICATE, OTEL_RESOURCE_ATTRIBUTES,
OTEL_BSP_SCHEDULE_DELAY, OTEL_BSP_MAX_QUEUE_SIZE and so on.

Fails with ConfigError at the start, if the packages are missing.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Final

import structlog
import trio

from primeflowd import __version__
from primeflowd.config import TracingSettings
from primeflowd.errors import ConfigError
from primeflowd.trace_context import TraceContext
from primeflowd.tracing import Span

if TYPE_CHECKING:
    from opentelemetry.trace import SpanContext

log = structlog.get_logger()

QUEUE: Final = 16_384
"""Spans that wait for the collector: some 16 MB. The SDK's own limit, an eighth of that, is less
than a single bulk request makes."""

_QUEUE_VARIABLE: Final = "OTEL_BSP_MAX_QUEUE_SIZE"

LAST_SPANS: Final = 2.0
"""Seconds that the collector has to take what is left at the end."""


def open_export(settings: TracingSettings) -> "SpanExport | None":
    """An exporter as the settings have it; None if they want none.

    Raises:
        ConfigError: it is wanted, and its packages are not installed.
    """
    check(settings)
    return SpanExport(settings) if settings.endpoint else None


def check(settings: TracingSettings) -> None:
    """See whether there could be an exporter, and make none.

    Raises:
        ConfigError: as open_export.
    """
    if not settings.endpoint:
        return
    for package in ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"):
        try:
            import_module(package)
        except ImportError as error:
            raise ConfigError(
                f"tracing.endpoint: {package} is not installed; install primeflowd with its "
                "extra, as primeflowd[otel], or remove the setting"
            ) from error


class SpanExport:
    """A tracing.Sink. Starts its thread when made."""

    def __init__(self, settings: TracingSettings) -> None:
        # Here, because whoever traces nothing needs neither these packages nor the third of a
        # second in which they are imported.
        from opentelemetry import trace
        from opentelemetry.context import Context
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.id_generator import IdGenerator
        from opentelemetry.sdk.trace.sampling import ALWAYS_ON

        class ChosenIds(IdGenerator):
            """Gives a span the ids that were chosen for it."""

            context = TraceContext(0, 0, is_sampled=False)

            def generate_trace_id(self) -> int:
                return self.context.trace_id

            def generate_span_id(self) -> int:
                return self.context.span_id

        self._api = trace
        # Empty: the context of the task that a span comes from is none of its business.
        self._nowhere = Context()
        self._ids = ChosenIds()
        # Not at exit either: the thread would be waited for there, for half a minute.
        self._provider = TracerProvider(
            # What is not sampled does not get here.
            sampler=ALWAYS_ON,
            resource=Resource.create(
                {"service.name": settings.service_name, "service.version": __version__}
            ),
            id_generator=self._ids,
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                OTLPSpanExporter(endpoint=settings.endpoint),
                max_queue_size=None if _QUEUE_VARIABLE in os.environ else QUEUE,
            )
        )
        self._tracer = self._provider.get_tracer("primeflowd", __version__)
        self._kinds = {
            "server": trace.SpanKind.SERVER,
            "producer": trace.SpanKind.PRODUCER,
            "client": trace.SpanKind.CLIENT,
        }

    def take(self, span: Span) -> None:
        """See tracing.Sink."""
        try:
            self._take(span)
        except Exception:  # somebody else's code: callbacks go on without spans
            log.exception("span_not_exported")

    def _take(self, span: Span) -> None:
        api = self._api
        self._ids.context = span.context
        surrounding = self._nowhere
        if span.parent is not None:
            surrounding = api.set_span_in_context(
                api.NonRecordingSpan(self._there(span.parent)), surrounding
            )
        made = self._tracer.start_span(
            span.name,
            surrounding,
            self._kinds[span.kind],
            span.attributes,
            [api.Link(self._there(link)) for link in span.links],
            start_time=span.started_at * 1_000,
        )
        if span.failed:
            made.set_status(api.StatusCode.ERROR)
        made.end(end_time=max(span.started_at, span.ended_at) * 1_000)

    def _there(self, place: TraceContext) -> "SpanContext":
        api = self._api
        flags = api.TraceFlags(api.TraceFlags.SAMPLED if place.is_sampled else 0)
        there: SpanContext = api.SpanContext(
            place.trace_id, place.span_id, is_remote=True, trace_flags=flags
        )
        return there

    async def aclose(self) -> None:
        """Have the collector take what is left, and give up what it does not take in time."""
        with trio.move_on_after(LAST_SPANS) as scope:
            # Left to itself if it takes longer: it is a daemon's thread, as that of the SDK is.
            await trio.to_thread.run_sync(self._provider.shutdown, abandon_on_cancel=True)
        if scope.cancelled_caught:
            log.warning("spans_lost", hint="the collector did not take the last ones in time")
