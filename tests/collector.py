"""An OpenTelemetry collector that keeps what it is sent."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

import msgspec
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

Place = tuple[str, str]
"""Ids of trace and span, in hexadecimal digits."""


class Received(msgspec.Struct, frozen=True):
    """A span as it came over the wire. `took`: nanoseconds."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    links: tuple[Place, ...]
    attributes: dict[str, str | int]
    failed: bool
    started_at: int
    took: int
    service: str

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-01"


class Collector:
    """Listens on a port of its own, in a thread.

    Args:
        hangs: it takes requests and never answers.
    """

    def __init__(self, *, hangs: bool = False) -> None:
        self.hangs = hangs
        self.headers: list[dict[str, str]] = []
        self.asked = threading.Event()
        self._requests: list[bytes] = []
        self._over = threading.Event()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                collector._take(self.path, headers, body)
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1/traces"

    def _take(self, path: str, headers: dict[str, str], body: bytes) -> None:
        assert path == "/v1/traces"
        assert headers["content-type"] == "application/x-protobuf"
        self.asked.set()
        if self.hangs:
            self._over.wait()
            return
        self.headers.append(headers)
        self._requests.append(body)

    @property
    def raw(self) -> bytes:
        """All that came, one after the other."""
        return b"".join(self._requests)

    def spans(self, name: str = "") -> list[Received]:
        """All spans, or those of a name, in the order in which they began."""
        found = [
            _received(span, str(attributes["service.name"]))
            for request in self._requests
            for resource in ExportTraceServiceRequest.FromString(request).resource_spans
            for attributes in [_values(resource.resource.attributes)]
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        found.sort(key=lambda span: span.started_at)
        return [span for span in found if name in ("", span.name)]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _received(span: Span, service: str) -> Received:
    return Received(
        name=span.name,
        kind=Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
        attributes=_values(span.attributes),
        failed=span.status.code == Status.STATUS_CODE_ERROR,
        started_at=span.start_time_unix_nano,
        took=span.end_time_unix_nano - span.start_time_unix_nano,
        service=service,
    )


def _values(attributes: object) -> dict[str, str | int]:
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value"))
        for each in attributes  # type: ignore[attr-defined]  # a repeated field has no exported type
    }
