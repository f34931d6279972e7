"""systemd/monitoring in a real Prometheus, which scrapes a real daemon."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from primeflowd.testing.daemon_process import DaemonProcess, eventually
from primeflowd.testing.receiver_process import ReceiverProcess
from tests.monitoring import MONITORING, alerts, expressions

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="Prometheus is not installed"
)

# Panels that show nothing while all is well.
CALM = {"Suspended destinations", "Since the last purge", "Plugins"}


@contextmanager
def prometheus(directory: Path, daemon: DaemonProcess) -> Iterator[httpx.Client]:
    """A client of one that looks at the daemon every second."""
    with socket.create_server(("127.0.0.1", 0)) as unused:
        address = f"127.0.0.1:{unused.getsockname()[1]}"
    file = directory / "prometheus.yml"
    file.write_text(
        "global: {scrape_interval: 1s, evaluation_interval: 1s}\n"
        f"rule_files: ['{MONITORING / 'alerts.yml'}']\n"
        "scrape_configs:\n"
        "  - job_name: primeflowd\n"
        f"    static_configs: [{{targets: ['{daemon.url.removeprefix('http://')}']}}]\n"
    )
    process = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={file}",
            f"--storage.tsdb.path={directory / 'tsdb'}",
            f"--web.listen-address={address}",
            "--log.level=error",
        ]
    )
    try:
        with httpx.Client(base_url=f"http://{address}/api/v1") as client:
            eventually(lambda: is_up(client))
            yield client
    finally:
        process.terminate()
        process.wait()


def is_up(client: httpx.Client) -> bool:
    try:
        return client.get("/targets").is_success
    except httpx.TransportError:
        return False


def asked(client: httpx.Client, path: str, **parameters: Any) -> Any:
    answer = client.get(path, params=parameters).json()
    assert answer["status"] == "success", answer
    return answer["data"]


def test_rules_and_panels_work_on_what_is_scraped(tmp_path: Path) -> None:
    daemon = DaemonProcess(tmp_path / "state", '[delivery.default_policy]\ndelays = ["100ms"]\n')
    key = daemon.create_key()
    with (
        ReceiverProcess(tmp_path / "arrivals", [{"status": 500}, {}]) as receiver,
        daemon,
        daemon.client(key) as client,
        prometheus(tmp_path, daemon) as monitor,
    ):
        # A counter must be seen before it rises and after; a rate takes two looks.
        eventually(lambda: asked(monitor, "/query", query="primeflowd_ready == 1")["result"])
        end = time.monotonic() + 5
        while time.monotonic() < end:
            for url in (receiver.url, "http://10.0.0.1/never"):
                client.post("/v1/batches", json={"status": "succeeded", "callback_url": url})
            time.sleep(0.1)
        [target] = asked(monitor, "/targets")["activeTargets"]
        assert (target["health"], target["lastError"]) == ("up", "")
        names = {rule["alert"] for rule in alerts()}
        for where, expression in expressions():
            # As Grafana fills it in.
            filled = expression.replace("$__rate_interval", "10s").replace("$job", ".*")
            found = asked(monitor, "/query", query=filled.replace("$instance", ".*"))
            assert found["result"] or where in CALM | names, where
        [group] = asked(monitor, "/rules")["groups"]
        assert {(rule["health"], rule.get("lastError")) for rule in group["rules"]} == {
            ("ok", None)
        }
        assert {rule["name"] for rule in group["rules"]} == names
        # What nobody may be sent to is given up at once, and is the one thing to be told of.
        firing = {rule["name"] for rule in group["rules"] if rule["state"] == "firing"}
        assert firing == {"PrimeflowdDeliveriesGivenUp"}
        assert daemon.terminate() == 0
