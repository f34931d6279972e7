"""A real daemon on PostgreSQL: the way of a callback, a database that goes away, odd texts."""

import subprocess
from typing import Any

import httpx
import pytest
from server import Server

from primeflowd.testing.daemon_process import DaemonProcess, eventually
from primeflowd.testing.receiver_process import ReceiverProcess


@pytest.fixture
def daemon_settings(url: str) -> str:
    return f"""
        [storage]
        url = "{url}"

        [plugins]
        enable = ["postgresql"]

        [plugins.postgresql]
        timeout = "2s"

        [delivery.default_policy]
        delays = ["100ms"]
    """


def ended(client: httpx.Client, batch_id: str) -> dict[str, Any] | None:
    found: list[dict[str, Any]] = client.get(f"/v1/batches/{batch_id}/callback").json()
    return found[0] if found[0]["completed_at"] else None


@pytest.mark.parametrize("receiver_script", [[{"status": 503}, {}]])
def test_callback_is_delivered_and_on_record(
    daemon: DaemonProcess, receiver: ReceiverProcess, server: Server, database: str
) -> None:
    with daemon.client(daemon.create_key()) as client:
        batch = {"status": "succeeded", "callback_url": receiver.url, "metadata": {"a": "\u20ac"}}
        batch_id = client.post("/v1/batches", json=batch).json()["id"]
        delivery = eventually(lambda: ended(client, batch_id))
    assert delivery["status_code"] == "succeeded"
    assert [attempt["status_code"] for attempt in delivery["attempts"]] == [503, 200]
    assert server.execute("SELECT count(*) FROM attempts", database) == [(2,)]
    assert daemon.terminate() == 0


def test_daemon_outlives_its_database(
    daemon: DaemonProcess, receiver: ReceiverProcess, server: Server
) -> None:
    """5.6: 503 while it is away, and by itself all is well afterwards."""
    batch = {"status": "succeeded", "callback_url": receiver.url}
    with daemon.client(daemon.create_key()) as client:
        assert client.post("/v1/batches", json=batch).status_code == 201
        server.stop()
        try:
            assert client.post("/v1/batches", json=batch).status_code == 503
            assert client.get("/readyz").status_code == 503
        finally:
            server.start()
        again = eventually(lambda: accepted(client, batch))
        eventually(lambda: ended(client, again))
        eventually(lambda: client.get("/readyz").status_code == 200)


def accepted(client: httpx.Client, batch: dict[str, str]) -> str | None:
    answer = client.post("/v1/batches", json=batch)
    return str(answer.json()["id"]) if answer.status_code == 201 else None


def test_texts_that_postgresql_cannot_hold(daemon: DaemonProcess) -> None:
    """A NUL is text to SQLite; whoever sends one is told so, and it breaks nothing."""
    with daemon.client(daemon.create_key()) as client:
        asked = [
            client.get("/v1/batches/%00"),
            client.get("/v1/batches?plan_id=%00"),
            client.get("/v1/batches/a%00b/items"),
            client.get("/v1/deliveries?destination=%00"),
            client.get("/v1/deliveries/%00"),
            client.get("/v1/policies/retry/effective?plan_id=%00"),
            client.post("/v1/batches/%00/cancellation", headers={"Idempotency-Key": "k"}, json={}),
            client.post("/v1/batches", json={"id": "\0"}),
            client.post("/v1/batches", json={"plan_id": "\0"}),
            client.post("/v1/callback-secrets", json={"label": "\0"}),
            client.post("/v1/policies/retry", json={"plan_id": "\0", "delays": ["1m"]}),
        ]
    for answer in asked:
        assert 400 <= answer.status_code < 500, (answer.request.url, answer.text)


def test_commands(daemon: DaemonProcess) -> None:
    assert "postgresql" in daemon.command("plugins")
    daemon.command("check-config")
    daemon.create_key("acme")
    assert "acme" in daemon.command("keys", "list")


def test_password_is_in_no_message(tmp_path: Any) -> None:
    process = DaemonProcess(
        tmp_path,
        '[storage]\nurl = "postgresql://u:hunter2@127.0.0.1:1/d"\n'
        '[plugins]\nenable = ["postgresql"]\n',
    )
    with pytest.raises(subprocess.CalledProcessError) as caught:
        process.command("keys", "list")
    assert "PostgreSQL database d at 127.0.0.1 cannot be used" in caught.value.stderr
    assert "hunter2" not in caught.value.stderr
