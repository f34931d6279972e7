"""Which spans are made, and where they belong; acceptance/test_traces.py has all of it at work."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from primeflowd.builtin.memory import MemoryStorage, open_memory
from primeflowd.config import Config, TracingSettings, from_mapping
from primeflowd.errors import ConfigError
from primeflowd.hookspecs import RecordedAttempt
from primeflowd.instants import MILLISECOND
from primeflowd.intake import Intake
from primeflowd.lifecycle import NewBatch, create_batch, create_batches
from primeflowd.model import Batch
from primeflowd.redelivery import redeliver
from primeflowd.span_export import check, open_export
from primeflowd.testing.factories import make_attempt, make_delivery
from primeflowd.trace_context import TraceContext, of_attempt, of_batch, of_callback
from primeflowd.tracing import Span, Tracing
from tests.node import ACME, URL, HandClock, Record
from tests.spans import Sink

ENDED = NewBatch(callback_url=URL, status="succeeded")
CLIENT = TraceContext(0xC, 0x1, is_sampled=True)


class Headers:
    """Those of a request that has at most a `traceparent`."""

    def __init__(self, context: TraceContext | None = None) -> None:
        self._values = [] if context is None else [context.header()]

    def getlist(self, name: str, /) -> list[str]:
        return self._values


class Desk:
    """An intake that is traced, over the memory storage."""

    def __init__(self, storage: MemoryStorage, settings: TracingSettings) -> None:
        self.storage = storage
        self.clock = HandClock()
        self.sink = Sink()
        self.tracing = Tracing(settings, self.sink, self.clock)
        self.schedule = Record()
        self.intake = Intake(storage, self.schedule, self.clock, Config(), self.tracing.follow)

    async def register(self, *, client: TraceContext | None = None) -> Batch:
        """As a request does."""
        request = self.tracing.begin(Headers(client))
        made = await self.intake.perform(lambda unit: create_batch(unit, ACME, ENDED))
        request.end("POST", "/v1/batches", 201, "r")
        return made

    def taken(self) -> list[Span]:
        spans, self.sink.spans = self.sink.spans, []
        return spans


@asynccontextmanager
async def open_desk(settings: TracingSettings | None = None) -> AsyncIterator[Desk]:
    async with open_memory() as storage:
        yield Desk(storage, settings or TracingSettings())


async def test_a_request_that_makes_one_callback_begins_its_trace() -> None:
    async with open_desk() as desk:
        batch = await desk.register()
        accepted, request = desk.taken()
        assert accepted.context.trace_id == request.context.trace_id
        assert accepted.context.trace_id == int(batch.id.replace("-", ""), 16)
        assert (accepted.parent, request.parent) == (request.context, None)
        assert accepted.links == request.links == ()


async def test_a_client_keeps_its_trace() -> None:
    async with open_desk() as desk:
        await desk.register(client=CLIENT)
        accepted, request = desk.taken()
        assert (request.context.trace_id, request.parent) == (CLIENT.trace_id, CLIENT)
        assert request.context.span_id != CLIENT.span_id
        assert accepted.context.trace_id != CLIENT.trace_id
        assert (accepted.parent, accepted.links) == (None, (request.context,))


async def test_requests_that_make_several_callbacks_or_none_have_a_trace_of_their_own() -> None:
    async with open_desk() as desk:
        request = desk.tracing.begin(Headers())
        await desk.intake.perform(lambda unit: create_batches(unit, ACME, [ENDED] * 3))
        request.end("POST", "/v1/batches/bulk", 200, "r")
        *accepted, bulk = desk.taken()
        traces = {each.context.trace_id for each in (*accepted, bulk)}
        assert len(traces) == 4
        assert all(each.links == (bulk.context,) for each in accepted)
        desk.tracing.begin(Headers()).end("GET", "/v1/batches", 200, "r")
        [lonely] = desk.taken()
        assert lonely.context.trace_id not in traces


async def test_a_redelivery_is_linked_to_the_first_delivery_of_its_batch() -> None:
    async with open_desk() as desk:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(desk.register)
        first, _ = desk.taken()
        [(delivery, _)] = desk.schedule.admitted
        ended = msgspec.structs.replace(delivery, status="succeeded", due_at=None)
        await desk.storage.write(lambda tx: tx.update_delivery(ended))
        # As a recovery does it: there is no request that this task works for.
        again = await desk.intake.perform(lambda unit: redeliver(unit, ACME, ended.batch_id))
        [accepted] = desk.taken()
        assert accepted.context == of_callback(again, 1.0)
        assert (accepted.parent, accepted.links) == (None, (first.context,))


async def test_a_client_that_hangs_up_leaves_no_gap() -> None:
    """Its request is over before the commit is, and both have their spans."""
    async with open_desk() as desk, trio.open_nursery() as nursery:
        desk.storage.hold()

        async def hang_up() -> None:
            request = desk.tracing.begin(Headers())
            try:
                await desk.intake.perform(lambda unit: create_batch(unit, ACME, ENDED))
            except trio.Cancelled:
                request.end("POST", "/v1/batches", None, "r")
                raise

        nursery.start_soon(hang_up)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        await trio.lowlevel.cancel_shielded_checkpoint()
        with trio.CancelScope(shield=True):
            await wait_all_tasks_blocked()
        desk.storage.resume()
    request, accepted = desk.taken()
    assert request.failed
    assert "http.response.status_code" not in request.attributes
    assert accepted.links == (request.context,)


async def test_one_request_has_nothing_to_do_with_the_next_of_its_connection() -> None:
    async with open_desk() as desk:
        await desk.register(client=CLIENT)
        await desk.register()
        *_, accepted, request = desk.taken()
        assert accepted.parent == request.context
        assert request.parent is None


@pytest.mark.parametrize("route", [None, "/healthz", "/metrics"])
async def test_there_are_no_spans_of_what_is_not_the_api(route: str | None) -> None:
    async with open_desk() as desk:
        desk.tracing.begin(Headers(CLIENT)).end("GET", route, 200, "r")
        assert desk.taken() == []


@pytest.mark.parametrize(("status", "failed"), [(200, False), (422, False), (500, True)])
async def test_whose_fault_it_was(status: int, failed: bool) -> None:
    async with open_desk() as desk:
        desk.tracing.begin(Headers()).end("GET", "/v1/batches", status, "r")
        [span] = desk.taken()
        assert span.failed is failed
        assert span.attributes["http.response.status_code"] == status


async def test_nothing_is_made_of_what_is_not_sampled() -> None:
    """But of a request that its client has sampled; and the other way round."""
    async with open_desk(TracingSettings(sample_ratio=0.0)) as desk:
        await desk.register()
        desk.tracing.recording(lambda _: None)([RecordedAttempt(make_attempt(), make_delivery())])
        assert desk.taken() == []
        await desk.register(client=CLIENT)
        [request] = desk.taken()
        assert request.kind == "server"
    async with open_desk() as desk:
        await desk.register(client=CLIENT._replace(is_sampled=False))
        [accepted] = desk.taken()
        assert accepted.kind == "producer"


def test_attempts() -> None:
    sink, told = Sink(), list[RecordedAttempt]()
    tracing = Tracing(TracingSettings(pass_on=True), sink, HandClock())
    delivery = make_delivery(attempt_count=2)
    attempt = make_attempt(
        attempt_number=2,
        status_code=None,
        failure_reason="timeout",
        error_message="no answer",
        response_body=None,
        response_time=1_500,
    )
    record = RecordedAttempt(attempt, delivery)
    tracing.recording(told.extend)([record])
    assert told == [record]
    [span] = sink.spans
    assert (span.context, span.parent) == (
        of_attempt(delivery, attempt.id, 1.0),
        of_callback(delivery, 1.0),
    )
    assert span.parent == of_batch(delivery, 1.0)
    assert span.ended_at - span.started_at == 1_500 * MILLISECOND
    assert span.failed
    assert span.attributes["error.type"] == "timeout"
    assert "http.response.status_code" not in span.attributes
    assert delivery.callback_url not in span.attributes.values()
    assert tracing.headers is not None
    assert tracing.headers(delivery, attempt.id) == (("traceparent", span.context.header()),)


def test_nothing_is_passed_on_unless_asked_for() -> None:
    assert Tracing(TracingSettings(), Sink(), HandClock()).headers is None


def test_without_an_endpoint_there_is_no_exporter() -> None:
    assert open_export(TracingSettings(pass_on=True)) is None
    check(TracingSettings())


@pytest.mark.parametrize(
    "endpoint", ["localhost:4318", "ftp://a/v1/traces", "http://u:p@a/v1/traces", "http://a:4318"]
)
def test_endpoints_that_are_none(endpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"tracing\.endpoint"):
        from_mapping({"tracing": {"endpoint": endpoint}})
