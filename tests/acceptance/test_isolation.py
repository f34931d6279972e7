"""A destination that hangs is its own trouble; a busy daemon is a quiet one."""

import time
from pathlib import Path

from primeflowd.testing.daemon_process import DaemonProcess, eventually
from tests.acceptance.receiver_process import ReceiverProcess


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
