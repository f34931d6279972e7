"""Events told to the operator by a real daemon, and that they are the log's."""

import http.server
import json
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
from standardwebhooks import Webhook

from primeflowd.events import KINDS
from primeflowd.testing.daemon_process import DaemonProcess, eventually
from primeflowd.testing.receiver_process import Arrival, ReceiverProcess

OPS = "primeflowd"


class Told:
    """What arrived at the events' URL."""

    def __init__(self, receiver: ReceiverProcess) -> None:
        self._receiver = receiver

    def arrivals(self, kind: str) -> list[Arrival]:
        return [one for one in self._receiver.arrivals() if json.loads(one.body)["event"] == kind]

    def payloads(self, kind: str) -> list[dict[str, Any]]:
        return [json.loads(one.body) for one in self.arrivals(kind)]

    def count(self, kind: str) -> int:
        return sum(payload["count"] for payload in self.payloads(kind))


def settings(url: str, interval: str = "1s", more: str = "") -> str:
    return f"""
[events]
url = "{url}"
interval = "{interval}"
[delivery]
suspend_after = 1
suspend_period = "0s"
suspend_min = "100ms"
suspend_max = "100ms"
window_initial = 1
[delivery.egress]
allow = ["127.0.0.0/8"]
[delivery.default_policy]
delays = []
{more}"""


def fail(client: httpx.Client, url: str, count: int = 1) -> None:
    """Have so many callbacks go to `url`."""
    batches = [{"status": "failed", "callback_url": url}] * count
    assert client.post("/v1/batches/bulk", json={"batches": batches}).is_success


@contextmanager
def asleep() -> Iterator[http.server.HTTPServer]:
    """A receiver with an address, where nobody listens until it is activated."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
    server.server_bind()
    try:
        yield server
    finally:
        server.server_close()


def test_every_kind_is_told_and_logged(tmp_path: Path) -> None:
    """4.5, 6.1, 6.2, 6.3: signed, on record, sent again on request; under the names of the log."""
    with (
        ReceiverProcess(tmp_path / "ops.jsonl") as ops,
        ReceiverProcess(tmp_path / "bad.jsonl", [{"status": 500}]) as bad,
        asleep() as away,
    ):
        told = Told(ops)
        daemon = DaemonProcess(tmp_path / "state", settings(ops.url))
        ops_key, key = daemon.create_key(OPS), daemon.create_key()
        with daemon, daemon.client(ops_key) as operator, daemon.client(key) as client:
            assert daemon.events("events_unsigned")
            secret = operator.post("/v1/callback-secrets", json={}).json()["plain_secret"]

            fail(client, bad.url, 60)
            eventually(lambda: told.count("delivery.failed") == 60)
            assert len(told.arrivals("delivery.failed")) < 10
            data = told.payloads("delivery.failed")[0]["data"]
            assert (data["org_id"], data["failure_reason_code"]) == ("acme", "http_status")
            assert client.get(f"/v1/deliveries/{data['delivery_id']}").json()["attempt_count"] == 1

            made = [client.post("/v1/callback-secrets", json={}).json()["id"] for _ in range(2)]
            policy: dict[str, Any] = {"plan_id": "slow", "delays": ["1h"]}
            client.post("/v1/policies/retry", json=policy, headers={"X-Org-Id": "acme"})
            batch = {"status": "failed", "callback_url": bad.url, "plan_id": "slow"}
            path = f"/v1/batches/{client.post('/v1/batches', json=batch).json()['id']}/callback"
            eventually(lambda: client.get(path).json()[0]["attempt_count"] == 1)
            change = {"is_current": True}
            assert client.patch(f"/v1/callback-secrets/{made[1]}", json=change).is_success
            eventually(lambda: told.payloads("secret.rotated"))
            (rotated,) = told.payloads("secret.rotated")
            assert rotated["data"]["secret_id"] == made[1]
            assert rotated["data"]["former_secret_id"] == made[0]
            assert client.delete(f"/v1/callback-secrets/{made[0]}").status_code == 204
            delivery_id = client.get(path).json()[0]["id"]
            assert client.post(f"/v1/deliveries/{delivery_id}/attempt-now").status_code == 202
            eventually(lambda: told.payloads("secret.disabled_in_use"))
            (in_use,) = told.payloads("secret.disabled_in_use")
            assert in_use["data"]["secret_id"] == made[0]
            assert in_use["data"]["signed_with"] == made[1]
            assert in_use["data"]["delivery_id"] == delivery_id

            policy = {"delays": ["50ms"], "max_retries": 100}
            client.post("/v1/policies/retry", json=policy, headers={"X-Org-Id": "acme"})
            fail(client, f"http://127.0.0.1:{away.server_port}/")
            eventually(lambda: told.payloads("destination.suspended"))
            away.server_activate()
            threading.Thread(target=away.serve_forever, args=(0.05,)).start()
            eventually(lambda: told.payloads("destination.recovered"))
            away.shutdown()
            (suspended,) = told.payloads("destination.suspended")
            (recovered,) = told.payloads("destination.recovered")
            assert suspended["subject"] == f"http://127.0.0.1:{away.server_port}"
            assert recovered["data"]["suspended_at"] == suspended["first_at"]

            with daemon.client(daemon.create_key("*")) as anybody:
                named = {"destination": "https://moved.example"}
                for reason in ("moves", None):
                    body = {"disabled_reason": reason}
                    answer = anybody.patch("/v1/destinations/policy", params=named, json=body)
                    assert answer.status_code == 200
            eventually(lambda: told.payloads("destination.disabled"))
            (disabled,) = told.payloads("destination.disabled")
            assert disabled["data"] == {
                "destination": "https://moved.example:443",
                "reason": "moves",
            }

            before = datetime.now(UTC)
            wal = tmp_path / "state" / "primeflowd.db-wal"
            limit = wal.stat().st_size + 10_000
            resource.prlimit(
                daemon.process.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY)
            )
            filler = {"status": "failed", "metadata": "x" * 20_000}
            eventually(lambda: client.post("/v1/batches", json=filler).status_code == 503)
            eventually(lambda: daemon.events("storage_unavailable"))
            resource.prlimit(
                daemon.process.pid,
                resource.RLIMIT_FSIZE,
                (resource.RLIM_INFINITY, resource.RLIM_INFINITY),
            )
            eventually(lambda: told.payloads("storage.recovered"))
            outage = told.payloads("storage.recovered")[0]["data"]
            since = datetime.fromisoformat(outage["since"])
            assert (
                before <= since <= datetime.now(UTC) - timedelta(milliseconds=outage["lasted_ms"])
            )
            assert outage["cause"]

            # As any callback: on record, for keys of that org only, and again on request.
            page = operator.get("/v1/batches", params={"plan_id": "secret.rotated"}).json()
            assert [one["id"] for one in page["items"]] == [rotated["event_id"]]
            path = f"/v1/batches/{rotated['event_id']}"
            assert client.get(path).status_code == 404
            eventually(lambda: operator.get(f"{path}/callback").json()[0]["completed_at"])
            assert operator.post(f"{path}/callback-redeliveries").status_code == 201
            eventually(lambda: len(told.arrivals("secret.rotated")) == 2)
            first, again = told.arrivals("secret.rotated")
            assert first.body == again.body
            assert daemon.terminate() == 0

        arrivals = ops.arrivals()
        assert {json.loads(one.body)["event"] for one in arrivals} == set(KINDS)
        for arrival in arrivals:
            Webhook(secret).verify(arrival.body, arrival.headers)
            assert arrival.headers["webhook-id"] == json.loads(arrival.body)["event_id"]
        for kind in KINDS:
            assert daemon.events(kind.replace(".", "_")), kind


def test_an_events_url_that_is_down_makes_no_loop(tmp_path: Path) -> None:
    """Its own failures are logged and on record; nobody is told of them."""
    with ReceiverProcess(tmp_path / "bad.jsonl", [{"status": 500}]) as bad, asleep() as away:
        url = f"http://127.0.0.1:{away.server_port}/"
        daemon = DaemonProcess(tmp_path / "state", settings(url))
        ops_key, key = daemon.create_key(OPS), daemon.create_key()
        with daemon, daemon.client(ops_key) as operator, daemon.client(key) as client:

            def failed(at_least: int) -> list[dict[str, Any]] | None:
                where = {"status_code": "failed"}
                found: list[dict[str, Any]] = operator.get("/v1/deliveries", params=where).json()[
                    "items"
                ]
                return found if len(found) >= at_least else None

            for number in range(1, 6):
                fail(client, bad.url)
                eventually(partial(failed, number))
            ended = failed(5) or []
            assert {one["payload"]["event"] for one in ended} == {"delivery.failed"}
            assert {one["payload"]["data"]["org_id"] for one in ended} == {"acme"}
            assert {one["failure_reason_code"] for one in ended} == {"connection_error"}
            assert len(operator.get("/v1/batches").json()["items"]) == 5
            # It was suspended, and that is in the log only.
            assert daemon.events("destination_suspended")
            assert len(daemon.events("delivery_failed")) == 10
            assert daemon.terminate() == 0
        assert len(bad.arrivals()) == 5


def test_a_drain_keeps_what_was_only_counted(tmp_path: Path) -> None:
    """8: it is told after the next start."""
    with (
        ReceiverProcess(tmp_path / "ops.jsonl") as ops,
        ReceiverProcess(tmp_path / "bad.jsonl", [{"status": 500}]) as bad,
    ):
        told = Told(ops)
        daemon = DaemonProcess(tmp_path / "state", settings(ops.url, "1h"))
        key = daemon.create_key()
        with daemon:
            with daemon.client(key) as client:
                fail(client, bad.url)
                eventually(lambda: told.count("delivery.failed") == 1)
                fail(client, bad.url, 4)
                eventually(lambda: len(daemon.events("delivery_failed")) == 5)
            assert daemon.terminate() == 0
            assert told.count("delivery.failed") == 1
            daemon.start()
            eventually(lambda: told.count("delivery.failed") == 5)
            assert daemon.terminate() == 0
        assert [one["count"] for one in told.payloads("delivery.failed")] == [1, 4]


def test_egress_holds_for_events_too(tmp_path: Path) -> None:
    """7: an address that is not allowed is refused, whoever named it."""
    with (
        ReceiverProcess(tmp_path / "ops.jsonl") as ops,
        ReceiverProcess(tmp_path / "bad.jsonl", [{"status": 500}]) as bad,
    ):
        port = ops.url.split(":")[2].split("/")[0]
        others = bad.url.split(":")[2].split("/")[0]
        more = settings(ops.url).replace(
            'allow = ["127.0.0.0/8"]', f'allow = ["127.0.0.0/8"]\nallowed_ports = [{others}]'
        )
        assert port != others
        daemon = DaemonProcess(tmp_path / "state", more)
        ops_key, key = daemon.create_key(OPS), daemon.create_key()
        with daemon:
            with daemon.client(ops_key) as operator, daemon.client(key) as client:
                fail(client, bad.url)
                path = "/v1/deliveries?failure_reason_code=url_not_allowed"
                (refused,) = eventually(lambda: operator.get(path).json()["items"])
                assert refused["callback_url"] == ops.url
            assert daemon.terminate() == 0
        assert ops.arrivals() == []
