"""Traces of a real daemon, as a collector and a receiver see them."""

import time
from pathlib import Path
from typing import Any

import pytest

from primeflowd.testing.daemon_process import DaemonProcess, eventually
from primeflowd.testing.receiver_process import ReceiverProcess
from tests.collector import Collector

CLIENT = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{CLIENT}-b7ad6b7169203331-01"

SERVERS = pytest.mark.parametrize("server", ["hypercorn", "lean"])
TWICE = [{"status": 500, "body": "an answer of the receiver"}, {}]


def daemon_with(
    collector: Collector,
    directory: Path,
    settings: str = "",
    server: str = "lean",
    **environment: str,
) -> DaemonProcess:
    return DaemonProcess(
        directory / "state",
        f'[api]\nbind = "127.0.0.1:0"\nserver = "{server}"\n'
        f'[tracing]\nendpoint = "{collector.url}"\n{settings}\n'
        '[delivery.default_policy]\ndelays = ["100ms"]\n',
        {
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "OTEL_EXPORTER_OTLP_HEADERS": "api-key=sesame",
            **environment,
        },
    )


def batch(receiver: ReceiverProcess, **more: Any) -> dict[str, Any]:
    return {"status": "succeeded", "callback_url": f"{receiver.url}?token=geheim", **more}


def has_packages(daemon: DaemonProcess) -> bool:
    """Whether the process has loaded protobuf, which nothing else here needs."""
    return "_upb" in Path(f"/proc/{daemon.process.pid}/maps").read_text(encoding="utf-8")


@SERVERS
def test_one_trace_from_the_request_to_the_last_attempt(server: str, tmp_path: Path) -> None:
    with (
        Collector() as collector,
        ReceiverProcess(tmp_path / "arrivals", TWICE) as receiver,
        daemon_with(collector, tmp_path, "pass_on = true", server) as daemon,
    ):
        key = daemon.create_key()
        with daemon.client(key) as client:
            secret = client.post("/v1/callback-secrets", json={}).json()["plain_secret"]
            answer = client.post("/v1/batches", json=batch(receiver, output={"name": "Erika"}))
            assert client.get("/healthz").is_success
            eventually(lambda: len(collector.spans("callback attempt")) == 2)
            eventually(lambda: collector.spans("POST /v1/batches"))
        [request] = collector.spans("POST /v1/batches")
        [accepted] = collector.spans("callback accepted")
        attempts = collector.spans("callback attempt")
        made = answer.json()["id"]
        assert {each.trace_id for each in (request, accepted, *attempts)} == {made.replace("-", "")}
        assert request.parent_id == ""
        assert request.kind == "server"
        assert accepted.parent_id == request.span_id
        assert [each.parent_id for each in attempts] == [accepted.span_id] * 2
        assert len({each.span_id for each in (request, accepted, *attempts)}) == 4
        # What the receiver was told is where it belongs.
        assert [a.headers["traceparent"] for a in receiver.arrivals()] == [
            each.traceparent for each in attempts
        ]
        assert [each.failed for each in attempts] == [True, False]
        assert [each.attributes["primeflow.attempt_number"] for each in attempts] == [1, 2]
        assert [each.attributes["http.response.status_code"] for each in attempts] == [500, 200]
        assert attempts[0].attributes["error.type"] == "http_status"
        assert attempts[1].attributes["primeflow.delivery_status"] == "succeeded"
        assert [a.headers["primeflow-request-id"] for a in receiver.arrivals()] == [
            each.attributes["primeflow.attempt_id"] for each in attempts
        ]
        assert request.attributes == {
            "http.request.method": "POST",
            "http.route": "/v1/batches",
            "http.response.status_code": 201,
            "primeflow.request_id": answer.headers["x-request-id"],
        }
        assert all(0 <= each.took < 20e9 for each in collector.spans())
        assert attempts[1].started_at - attempts[0].started_at >= 100e6
        assert abs(request.started_at - time.time_ns()) < 60e9
        assert {each.service for each in collector.spans()} == {"primeflowd"}
        # No health check, and nothing that is nobody else's business.
        assert len(collector.spans()) == 5
        for word in (key, secret, "geheim", "Erika", "an answer of the receiver", "sesame"):
            assert word.encode() not in collector.raw
        assert {each["api-key"] for each in collector.headers} == {"sesame"}
        assert daemon.terminate() == 0


@SERVERS
def test_a_clients_trace_goes_on_with_its_request(server: str, tmp_path: Path) -> None:
    with (
        Collector() as collector,
        ReceiverProcess(tmp_path / "arrivals") as receiver,
        daemon_with(collector, tmp_path, server=server) as daemon,
        daemon.client(daemon.create_key()) as client,
    ):
        body, sent = batch(receiver), {"traceparent": TRACEPARENT}
        made = client.post("/v1/batches", json=body, headers=sent).json()["id"]
        many = {"batches": [body] * 3}
        assert client.post("/v1/batches/bulk", json=many, headers=sent).is_success
        eventually(lambda: len(collector.spans("callback attempt")) == 4)
        again = client.post(f"/v1/batches/{made}/callback-redeliveries").json()["id"]
        # The client does not have this one sampled.
        client.get("/v1/batches", headers={"traceparent": TRACEPARENT[:-1] + "0"})
        eventually(lambda: len(collector.spans("callback attempt")) == 5)
        assert daemon.terminate() == 0
    [request] = collector.spans("POST /v1/batches")
    [bulk] = collector.spans("POST /v1/batches/bulk")
    assert {each.trace_id for each in (request, bulk)} == {CLIENT}
    assert {each.parent_id for each in (request, bulk)} == {"b7ad6b7169203331"}
    spans = collector.spans("callback accepted")
    assert len(spans) == len({each.trace_id for each in spans}) == 5
    assert not any(each.trace_id == CLIENT for each in spans)
    [origin] = [each for each in spans if each.trace_id == made.replace("-", "")]
    assert origin.links == ((CLIENT, request.span_id),)
    assert sum(each.links == ((CLIENT, bulk.span_id),) for each in spans) == 3
    # A redelivery is a trace of its own.
    [redelivery] = [each for each in spans if each.trace_id == again.replace("-", "")]
    assert redelivery.links == ((origin.trace_id, origin.span_id),)
    [asked] = collector.spans("POST /v1/batches/<batch_id>/callback-redeliveries")
    assert (asked.trace_id, asked.span_id) == (redelivery.trace_id, redelivery.parent_id)
    assert collector.spans("GET /v1/batches") == []
    # Nothing is passed on unless that was asked for.
    assert not any("traceparent" in arrival.headers for arrival in receiver.arrivals())


def test_a_trace_goes_on_after_a_restart(tmp_path: Path) -> None:
    """Also after a kill, of which the daemon knows nothing."""
    with (
        Collector() as collector,
        ReceiverProcess(tmp_path / "arrivals", [{"status": 500}, {"hang": True}, {}]) as receiver,
    ):
        daemon = daemon_with(collector, tmp_path, "pass_on = true")
        key = daemon.create_key()
        with daemon:
            with daemon.client(key) as client:
                made = client.post("/v1/batches", json=batch(receiver)).json()["id"]
            eventually(lambda: len(receiver.arrivals()) == 2)
            eventually(lambda: len(collector.spans("callback attempt")) == 1)
            daemon.kill()
            daemon.start()
            eventually(lambda: len(collector.spans("callback attempt")) == 2)
            assert daemon.terminate() == 0
    [accepted] = collector.spans("callback accepted")
    attempts = collector.spans("callback attempt")
    assert {each.trace_id for each in (accepted, *attempts)} == {made.replace("-", "")}
    assert {each.parent_id for each in attempts} == {accepted.span_id}
    told = [arrival.headers["traceparent"] for arrival in receiver.arrivals()]
    assert [told[0], told[2]] == [each.traceparent for each in attempts]
    # Of the one that the kill cut short there is no span, but it had said where it belonged.
    assert told[1].split("-")[1] == accepted.trace_id


def test_a_callback_that_nobody_asked_for_has_a_trace(tmp_path: Path) -> None:
    """An event for the operator: that a delivery has failed."""
    with (
        Collector() as collector,
        ReceiverProcess(tmp_path / "arrivals") as receiver,
        daemon_with(collector, tmp_path, f'[events]\nurl = "{receiver.url}"') as daemon,
        daemon.client(daemon.create_key()) as client,
    ):
        failing = {"status": "succeeded", "callback_url": "http://10.0.0.1/never"}
        made = client.post("/v1/batches", json=failing).json()["id"]
        eventually(receiver.arrivals)
        assert daemon.terminate() == 0
    [event] = [
        each
        for each in collector.spans("callback accepted")
        if each.trace_id != made.replace("-", "")
    ]
    assert (event.parent_id, event.links) == ("", ())
    [attempt] = [
        each for each in collector.spans("callback attempt") if each.trace_id == event.trace_id
    ]
    assert attempt.parent_id == event.span_id


def test_a_collector_that_hangs_holds_nobody(tmp_path: Path) -> None:
    """Also when there are more spans than are kept for it."""
    few = {"OTEL_BSP_MAX_QUEUE_SIZE": "100", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "50"}
    with (
        Collector(hangs=True) as collector,
        ReceiverProcess(tmp_path / "arrivals") as receiver,
        daemon_with(collector, tmp_path, **few) as daemon,
    ):
        with daemon.client(daemon.create_key()) as client:
            made = {client.post("/v1/batches", json=batch(receiver)).json()["id"]}
            assert collector.asked.wait(10)
            many = client.post("/v1/batches/bulk", json={"batches": [batch(receiver)] * 1000})
            made |= {result["id"] for result in many.json()["results"]}
            eventually(lambda: receiver.succeeded() == made)
        began = time.monotonic()
        assert daemon.terminate() == 0
        assert time.monotonic() - began < 10
        assert daemon.events("spans_lost")
        assert daemon.events("Queue full, dropping Span.")


def test_a_collector_that_is_gone_is_a_line_in_the_log(tmp_path: Path) -> None:
    with Collector() as collector:
        pass  # nobody listens there any more
    with (
        ReceiverProcess(tmp_path / "arrivals") as receiver,
        daemon_with(collector, tmp_path) as daemon,
    ):
        with daemon.client(daemon.create_key()) as client:
            made = client.post("/v1/batches", json=batch(receiver)).json()["id"]
            eventually(lambda: made in receiver.succeeded())
        began = time.monotonic()
        assert daemon.terminate() == 0
        assert time.monotonic() - began < 10
    assert any("opentelemetry" in str(line.get("logger")) for line in daemon.log)


def test_what_is_not_sampled_is_passed_on_as_such(tmp_path: Path) -> None:
    with (
        Collector() as collector,
        ReceiverProcess(tmp_path / "arrivals") as receiver,
        daemon_with(collector, tmp_path, "pass_on = true\nsample_ratio = 0.0") as daemon,
        daemon.client(daemon.create_key()) as client,
    ):
        made = client.post("/v1/batches", json=batch(receiver)).json()["id"]
        eventually(lambda: made in receiver.succeeded())
        assert has_packages(daemon)
        assert daemon.terminate() == 0
        [arrival] = receiver.arrivals()
        assert arrival.headers["traceparent"].startswith(f"00-{made.replace('-', '')}-")
        assert arrival.headers["traceparent"].endswith("-00")
        assert collector.spans() == []


def test_off_means_off(tmp_path: Path) -> None:
    """The default, though the other settings are there: no header, and no package is imported."""
    with (
        ReceiverProcess(tmp_path / "arrivals") as receiver,
        DaemonProcess(tmp_path / "state", "[tracing]\npass_on = true\n") as daemon,
        daemon.client(daemon.create_key()) as client,
    ):
        made = client.post("/v1/batches", json=batch(receiver)).json()["id"]
        eventually(lambda: made in receiver.succeeded())
        assert "traceparent" not in receiver.arrivals()[0].headers
        assert not has_packages(daemon)
        assert daemon.terminate() == 0
