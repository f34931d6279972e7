"""7: receivers that misbehave in time or in bytes cost an attempt, never a sender or the memory."""

from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from primeflowd.testing.daemon_process import DaemonProcess, eventually
from primeflowd.testing.receiver_process import ReceiverProcess

SETTINGS = """
[delivery]
timeout = "1s"
connect_timeout = "500ms"
[delivery.egress]
allow = ["127.0.0.0/8"]
[delivery.default_policy]
delays = []
"""

HOSTILE: list[tuple[str, dict[str, Any], str | None]] = [
    ("hangs", {"hang": True}, "timeout"),
    ("drips its head", {"drip": 0.05}, "timeout"),
    ("answers garbage", {"raw": "\x01\x02 nonsense\r\n\r\n"}, "response_error"),
    ("never ends its head", {"endless_head": True}, "response_error"),
    ("floods with interim answers", {"interim": 100_000}, "response_error"),
    ("resets mid-head", {"cut": 12, "reset": True}, "response_error"),
    ("resets at once", {"cut": 0, "reset": True}, "connection_error"),
    ("redirects", {"status": 302, "headers": [["Location", "http://127.0.0.1:1/"]]}, "http_status"),
    ("is gone", {"status": 410}, "gone"),
    ("sends 2 GB", {"body_size": 2_000_000_000}, None),
    ("drips its body", {"status": 200, "body": "x" * 100, "cut": 80, "hang": True}, None),
    (
        "sends a gzip bomb",
        {"headers": [["Content-Encoding", "gzip"]], "body_size": 50_000_000},
        None,
    ),
]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with DaemonProcess(tmp_path_factory.mktemp("state"), SETTINGS) as running:
        yield running
        assert running.terminate() == 0


@pytest.fixture(scope="module")
def key(daemon: DaemonProcess) -> str:
    return daemon.create_key()


def ended(client: httpx.Client, path: str) -> dict[str, Any] | None:
    """The first delivery that has ended."""
    return next((d for d in client.get(path).json() if d["completed_at"]), None)


@pytest.mark.parametrize(("story", "answer", "reason"), HOSTILE, ids=[h[0] for h in HOSTILE])
def test_hostile_receiver(
    daemon: DaemonProcess,
    key: str,
    tmp_path: Path,
    story: str,
    answer: dict[str, Any],
    reason: str | None,
) -> None:
    """5.2, 5.3, 5.5, 7: the outcome is on record, the deadline kept, RSS flat."""
    process = psutil.Process(daemon.process.pid)
    with (
        ReceiverProcess(tmp_path / "arrivals.jsonl", [answer]) as receiver,
        daemon.client(key) as client,
    ):
        before = process.memory_info().rss
        made = client.post(
            "/v1/batches/bulk",
            json={"batches": [{"status": "failed", "callback_url": receiver.url}] * 10},
        )
        for result in made.json()["results"]:
            path = f"/v1/batches/{result['id']}/callback"
            delivery = eventually(partial(ended, client, path))
            (attempt,) = delivery["attempts"]
            assert delivery["failure_reason_code"] == reason, (story, attempt)
            assert delivery["status_code"] == ("failed" if reason else "succeeded")
            assert attempt["response_time_ms"] < 1_500
            assert len((attempt["response_body"] or "").encode()) <= 8_192
        assert process.memory_info().rss - before < 20_000_000
