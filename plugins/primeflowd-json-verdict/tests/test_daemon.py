"""The plugin in a real daemon, with a real receiver: what its answers do to deliveries."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import trio

from primeflowd.testing.daemon_process import DaemonProcess, eventually
from primeflowd.testing.receiver import Answer, Received, Receiver, open_receiver

SETTINGS = """
[delivery.default_policy]
delays = ["100ms"]
max_retries = 2

[plugins]
enable = ["json-verdict"]

[[plugins.json-verdict.rules]]
destination = "http://127.0.0.1:*"
status = [409]
verdict = "success"
"""


def saying(status: int, **body: Any) -> Answer:
    return Answer(
        status=status,
        headers=(("Content-Type", "application/json"),),
        body=json.dumps(body).encode(),
    )


SCRIPTS = {
    "/refuses": [saying(500, retry=False)],
    "/comes-back": [saying(410, retry=True), Answer()],
    "/waits": [saying(422, retry_after=1), Answer()],
    "/header": [Answer(status=404, headers=(("Retry-After", "1"),)), Answer()],
    "/has-it": [Answer(status=409)],
    "/default": [Answer(status=410)],
}


def by_path() -> Any:
    """Each path has a script of its own."""
    scripts = {path: iter(script) for path, script in SCRIPTS.items()}
    return lambda request: next(scripts[request.target])


def deliver_all(directory: Path, receiver: Receiver) -> dict[str, dict[str, Any]]:
    """The ended delivery of a callback to each path."""
    daemon = DaemonProcess(directory, SETTINGS)
    key = daemon.create_key()
    with daemon, daemon.client(key) as client:
        batches = {
            path: client.post(
                "/v1/batches", json={"status": "succeeded", "callback_url": receiver.url(path)}
            ).json()["id"]
            for path in SCRIPTS
        }

        def ended() -> dict[str, dict[str, Any]]:
            deliveries = {
                path: client.get(f"/v1/batches/{batch}/callback").json()[0]
                for path, batch in batches.items()
            }
            waiting = [d for d in deliveries.values() if d["completed_at"] is None]
            return {} if waiting else deliveries

        deliveries: dict[str, dict[str, Any]] = eventually(ended)
        assert daemon.terminate() == 0
    assert daemon.events("plugin_failed") == []
    return deliveries


def gap(requests: list[Received], path: str) -> float:
    """Seconds between the two requests for a path."""
    first, second = (r.arrived_at for r in requests if r.target == path)
    return (second - first) / 1e6


async def test_answers_decide(tmp_path: Path, nursery: trio.Nursery) -> None:
    async with open_receiver(nursery, by_path()) as receiver:
        deliveries = await trio.to_thread.run_sync(deliver_all, tmp_path, receiver)
    seen = {
        path: (d["status_code"], d["failure_reason_code"], d["attempt_count"])
        for path, d in deliveries.items()
    }
    assert seen == {
        "/refuses": ("failed", "http_status", 1),
        "/comes-back": ("succeeded", None, 2),
        "/waits": ("succeeded", None, 2),
        "/header": ("succeeded", None, 2),
        "/has-it": ("succeeded", None, 1),
        "/default": ("failed", "gone", 1),
    }
    assert deliveries["/refuses"]["failure_detail"] == "HTTP 500; the receiver asks for no retry"
    assert gap(receiver.requests, "/comes-back") < 1
    assert gap(receiver.requests, "/waits") >= 1
    assert gap(receiver.requests, "/header") >= 1


def test_a_wrong_setting_stops_the_start(tmp_path: Path) -> None:
    daemon = DaemonProcess(tmp_path, SETTINGS.replace("[409]", "[40]"))
    with pytest.raises(subprocess.CalledProcessError) as caught:
        daemon.command("run")
    assert "plugins.json-verdict: rules[0].status[0]: expected a status" in caught.value.stderr
