"""Plugins that misbehave in a running daemon: named in the log, and no more than that."""

import time
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from primeflowd.testing.daemon_process import DaemonProcess, eventually
from primeflowd.testing.receiver_process import ReceiverProcess
from tests.distributions import Distributions

REFUSED_URL = "http://10.0.0.1/hook"


@pytest.fixture
def site(tmp_path: Path) -> Distributions:
    return Distributions(tmp_path / "site")


def daemon_with(site: Distributions, *plugins: str, settings: str = "") -> DaemonProcess:
    """A daemon, not started, that makes one attempt for each callback."""
    return DaemonProcess(
        site.directory.parent / "state",
        f"[plugins]\nenable = {list(plugins)}\n[delivery.default_policy]\ndelays = []\n{settings}",
        {"PYTHONPATH": str(site.directory)},
    )


def deliver(client: httpx.Client, url: str) -> dict[str, Any]:
    """The delivery of a callback to `url`, once it has ended."""
    answer = client.post("/v1/batches", json={"status": "succeeded", "callback_url": url})
    return eventually(partial(ended, client, answer.json()["id"]))


def ended(client: httpx.Client, batch_id: str) -> dict[str, Any] | None:
    deliveries = client.get(f"/v1/batches/{batch_id}/callback").json()
    return next((one for one in deliveries if one["completed_at"]), None)


def test_a_signer_that_raises_costs_the_attempt(site: Distributions, tmp_path: Path) -> None:
    """6.2: nothing unsigned is sent; the record names the plugin and holds no secret."""
    site.install(
        "acme",
        """
        class Signer:
            name = "acme-v2"
            def sign(self, request): raise RuntimeError(request.secrets[0])

        @hookimpl
        def register_signers(): return [Signer()]
        """,
    )
    daemon = daemon_with(site, "acme", settings='[signing]\nsigners = ["acme-v2"]\n')
    key = daemon.create_key()
    with ReceiverProcess(tmp_path / "arrivals") as receiver, daemon, daemon.client(key) as client:
        secret = client.post("/v1/callback-secrets", json={}).json()
        delivery = deliver(client, receiver.url)
        assert delivery["failure_reason_code"] == "internal_error"
        [attempt] = delivery["attempts"]
        assert attempt["error_message"].startswith("acme-v2 (plugin acme): RuntimeError at ")
        assert receiver.arrivals() == []
        assert daemon.terminate() == 0
    assert daemon.events("signer_failed")[0]["signer"] == "acme-v2 (plugin acme)"
    plain = next(value for value in secret.values() if str(value).startswith("whsec_"))
    assert plain not in str(delivery)
    assert plain not in str(daemon.log)


def test_classifiers_that_raise_or_talk_nonsense_leave_it_to_the_default(
    site: Distributions, tmp_path: Path
) -> None:
    """5.2: both are named, once, however many attempts there are."""
    site.install("raises", "@hookimpl\ndef classify_outcome(): raise RuntimeError('boom')")
    site.install("babbles", "@hookimpl\ndef classify_outcome(): return Verdict(decision='maybe')")
    daemon = daemon_with(site, "raises", "babbles")
    key = daemon.create_key()
    script = [{"status": 410}, {}]
    with (
        ReceiverProcess(tmp_path / "arrivals", script) as receiver,
        daemon,
        daemon.client(key) as client,
    ):
        assert deliver(client, receiver.url)["failure_reason_code"] == "gone"
        assert deliver(client, receiver.url)["status_code"] == "succeeded"
        assert daemon.terminate() == 0
    faults = [(one["plugin"], one["hook"]) for one in daemon.events("plugin_failed")]
    assert sorted(faults) == [("babbles", "classify_outcome"), ("raises", "classify_outcome")]


def test_listeners_that_raise_or_hang_neither_stop_nor_delay_anything(
    site: Distributions, tmp_path: Path
) -> None:
    """Deliveries, other plugins, drain: all goes on. What was not announced is counted."""
    written = tmp_path / "written"
    site.install("raises", "@hookimpl\ndef attempts_recorded(): raise RuntimeError('boom')")
    site.install("hangs", "import time\n@hookimpl\ndef attempts_recorded(): time.sleep(600)")
    site.install(
        "works",
        f"""
        @hookimpl
        def attempts_recorded(records):
            with open({str(written)!r}, "a") as file:
                for one in records:
                    print(one.attempt.id, one.delivery.org_id, one.delivery.status, file=file)
        """,
    )
    daemon = daemon_with(site, "raises", "hangs", "works")
    key = daemon.create_key()
    with daemon, daemon.client(key) as client:
        for host in range(1, 12):
            # Refused before anything is sent: nothing is quicker than that.
            batch = {"status": "succeeded", "callback_url": f"http://10.0.0.{host}/hook"}
            client.post("/v1/batches/bulk", json={"batches": [batch] * 1000}).raise_for_status()
        eventually(lambda: written.exists() and len(written.read_text().splitlines()) == 11_000)
        lines = written.read_text().splitlines()
        assert len(set(lines)) == 11_000
        assert {line.split(" ", 1)[1] for line in lines} == {"acme failed"}
        # One call in hand, of up to 500, and 10,000 more that wait.
        dropped = client.get("/v1/stats").json()["attempts_not_announced"]
        assert 500 <= dropped < 1000
        [warning] = daemon.events("attempts_not_announced")
        assert warning["plugin"] == "hangs"
        began = time.monotonic()
        assert daemon.terminate() == 0
        assert time.monotonic() - began < 15
    [fault] = daemon.events("plugin_failed")
    assert (fault["plugin"], fault["hook"]) == ("raises", "attempts_recorded")
    [left] = daemon.events("plugin_left_behind")
    assert (left["plugin"], left["attempts"]) == ("hangs", 11_000 - dropped)


def test_drain_tells_plugins_of_the_last_attempts(site: Distributions, tmp_path: Path) -> None:
    """What is on record is passed on before the end, though the plugin is slow."""
    written = tmp_path / "written"
    site.install(
        "slow",
        f"""
        import time

        @hookimpl
        def attempts_recorded(records):
            time.sleep(1)
            with open({str(written)!r}, "a") as file:
                file.writelines(one.attempt.id + "\\n" for one in records)
        """,
    )
    daemon = daemon_with(site, "slow")
    key = daemon.create_key()
    with daemon, daemon.client(key) as client:
        ids = {deliver(client, REFUSED_URL)["attempts"][0]["id"] for _ in range(5)}
        assert daemon.terminate() == 0
    assert set(written.read_text().split()) == ids
    assert daemon.events("plugin_left_behind") == []
