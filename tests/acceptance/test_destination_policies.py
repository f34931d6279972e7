"""Policies of destinations with a real daemon: what the receiver sees of them."""

import time
from pathlib import Path
from typing import Any

import httpx

from primeflowd.testing.daemon_process import DaemonProcess, eventually
from primeflowd.testing.receiver_process import ReceiverProcess

CALLBACK = {"status": "succeeded"}
PATH = "/v1/destinations/policy"


def send(client: httpx.Client, url: str, count: int = 1) -> list[str]:
    """Register batches that have ended; their ids."""
    body = {"batches": [CALLBACK | {"callback_url": url}] * count}
    results = client.post("/v1/batches/bulk", json=body).raise_for_status().json()["results"]
    return [each["id"] for each in results]


def statuses(client: httpx.Client) -> dict[str, int]:
    found: dict[str, int] = {}
    for each in client.get("/v1/deliveries?limit=500").raise_for_status().json()["items"]:
        found[each["status_code"]] = found.get(each["status_code"], 0) + 1
    return found


def change(client: httpx.Client, url: str, **body: Any) -> Any:
    destination = url.rpartition("/")[0]
    response = client.patch(PATH, params={"destination": destination}, json=body)
    return response.raise_for_status().json()


def test_limits_headers_and_being_disabled_across_a_restart(tmp_path: Path) -> None:
    """5.6: what waits for a disabled destination is durable, and goes once it is enabled."""
    with ReceiverProcess(tmp_path / "arrivals.jsonl", [{}]) as receiver:
        daemon = DaemonProcess(tmp_path / "state")
        key, operator = daemon.create_key(), daemon.create_key("*")
        with daemon, daemon.client(key) as client, daemon.client(operator) as operating:
            change(operating, receiver.url, rate=20, burst=2, headers={"X-Token": "t0ken"})
            began = time.time()
            send(client, receiver.url, 30)
            eventually(lambda: statuses(client) == {"succeeded": 30})
            arrivals = receiver.arrivals()
            assert all(each.headers["x-token"] == "t0ken" for each in arrivals)
            assert arrivals[-1].time - began >= 28 / 20 - 0.1
            assert arrivals[-1].time - began < 5
            change(operating, receiver.url, disabled_reason="moves", rate=None)
            send(client, receiver.url, 5)
            time.sleep(0.3)
            assert statuses(client) == {"succeeded": 30, "pending": 5}
            assert operating.get("/v1/stats").json()["held"] == 0
            before = operating.get("/v1/stats").json()["commits"]
            time.sleep(1)
            # Nobody claims them, again and again, only to give them back.
            assert operating.get("/v1/stats").json()["commits"] - before < 5
            daemon.kill()
            daemon.start()
            with daemon.client(key) as again, daemon.client(operator) as operating_again:
                time.sleep(0.5)
                assert statuses(again) == {"succeeded": 30, "pending": 5}
                change(operating_again, receiver.url, disabled_reason=None)
                eventually(lambda: statuses(again) == {"succeeded": 35})
            assert receiver.arrivals()[-1].headers["x-token"] == "t0ken"
            assert daemon.terminate() == 0
        for file in (tmp_path / "state").rglob("*.db*"):
            assert b"t0ken" not in file.read_bytes()


def test_a_table_of_the_file_and_a_410(tmp_path: Path) -> None:
    """5.2, 5.3: as a 410 is the end where the table says so; `fail` ends what comes after."""
    with ReceiverProcess(tmp_path / "arrivals.jsonl", [{"status": 410}]) as receiver:
        daemon = DaemonProcess(tmp_path / "state")
        daemon.configure(
            f"""
            [api]
            bind = "127.0.0.1:0"
            [delivery.egress]
            allow = ["127.0.0.0/8"]
            [destinations."{receiver.url.rpartition("/")[0]}"]
            disable_when_gone = true
            while_disabled = "fail"
            timeout = "2s"
            """
        )
        key, operator = daemon.create_key(), daemon.create_key("*")
        with daemon, daemon.client(key) as client, daemon.client(operator) as operating:
            send(client, receiver.url)
            (policy,) = eventually(
                lambda: [
                    each
                    for each in operating.get("/v1/destinations").json()["items"]
                    if each["disabled_reason"]
                ]
            )
            assert (policy["source"], policy["timeout"]) == ("file", "2s")
            assert policy["disabled_reason"] == "it answered 410"
            (event,) = eventually(lambda: daemon.events("destination_disabled"))
            assert event["reason"] == "it answered 410"
            metric = "primeflowd_destinations_disabled 1.0"
            eventually(lambda: metric in client.get("/metrics").text.splitlines())
            eventually(lambda: not operating.get("/v1/stats").json()["sending"])
            time.sleep(0.2)
            send(client, receiver.url, 3)
            eventually(lambda: statuses(client) == {"failed": 4})
            reasons = [
                each["failure_reason_code"] for each in client.get("/v1/deliveries").json()["items"]
            ]
            assert reasons == ["url_not_allowed"] * 3 + ["gone"]
            assert len(receiver.arrivals()) == 1
            assert daemon.terminate() == 0
