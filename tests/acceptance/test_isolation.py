"""A destination that hangs is its own trouble; a busy daemon is a quiet one."""

import time
from pathlib import Path

from primeflowd.testing.daemon_process import DaemonProcess, eventually
from primeflowd.testing.receiver_process import ReceiverProcess


def test_a_hanging_destination_delays_no_other(tmp_path: Path) -> None:
    """5: with 200 callbacks to a destination that hangs, one to another is sent at once."""
    with (
        ReceiverProcess(tmp_path / "hanging.jsonl", [{"hang": True}]) as hanging,
        ReceiverProcess(tmp_path / "working.jsonl") as working,
    ):
        daemon = DaemonProcess(
            tmp_path / "state",
            '[delivery]\nconcurrency = 16\n[delivery.egress]\nallow = ["127.0.0.0/8"]\n'
            '[drain]\ndeadline = "100ms"\n',
        )
        key = daemon.create_key()
        with daemon:
            with daemon.client(key) as client:
                stuck = [{"status": "succeeded", "callback_url": hanging.url}] * 200
                assert client.post("/v1/batches/bulk", json={"batches": stuck}).status_code == 200
                eventually(hanging.arrivals)
                began = time.monotonic()
                free = {"status": "succeeded", "callback_url": working.url}
                batch = client.post("/v1/batches", json=free).json()
                eventually(lambda: batch["id"] in working.succeeded(), every=0.002)
                assert time.monotonic() - began < 1.0
            assert len(hanging.arrivals()) <= 4, "a quarter of the pool is the most it may have"
            assert daemon.terminate() == 0


def test_a_healthy_daemon_logs_nothing_per_callback(tmp_path: Path) -> None:
    """8: at the default level, a thousand callbacks and their requests leave no line."""
    with ReceiverProcess(tmp_path / "arrivals.jsonl") as receiver:
        daemon = DaemonProcess(tmp_path / "state")
        key = daemon.create_key()
        with daemon:
            with daemon.client(key) as client:
                batch = {"status": "succeeded", "callback_url": receiver.url}
                for _ in range(100):
                    assert client.post("/v1/batches", json=batch).status_code == 201
                many = {"batches": [batch] * 900}
                assert client.post("/v1/batches/bulk", json=many).status_code == 200
            eventually(lambda: len(receiver.succeeded()) == 1000)
            assert daemon.terminate() == 0
        assert [line["event"] for line in daemon.log] == [
            "starting",
            "master_key_created",
            "daemon_ready",
            "drain_started",
            "drain_finished",
        ]


def test_a_destination_that_answers_with_errors_gets_every_attempt_in_time(tmp_path: Path) -> None:
    """3.6, 5.2: a hundred deliveries spend their policies at the pace of their delays."""
    with ReceiverProcess(tmp_path / "arrivals.jsonl", [{"status": 500}]) as receiver:
        daemon = DaemonProcess(
            tmp_path / "state", '[delivery.default_policy]\ndelays = ["200ms", "300ms"]\n'
        )
        key = daemon.create_key()
        with daemon:
            with daemon.client(key) as client:
                batch = {"status": "succeeded", "callback_url": receiver.url}
                client.post("/v1/batches/bulk", json={"batches": [batch] * 100})
                eventually(lambda: len(receiver.arrivals()) == 300, seconds=15)
                path = "/v1/deliveries?status_code=failed&limit=500"
                eventually(lambda: len(client.get(path).json()["items"]) == 100)
                failed = client.get(path).json()["items"]
            assert daemon.terminate() == 0
        assert {delivery["failure_reason_code"] for delivery in failed} == {"http_status"}
        assert {delivery["attempt_count"] for delivery in failed} == {3}
