"""The story of contract section 1, with a real daemon and a receiver in a process of its own."""

import hashlib
import hmac
import itertools
from pathlib import Path
from typing import Any

import httpx
from standardwebhooks import Webhook

from primeflowd.testing.daemon_process import DaemonProcess, eventually
from primeflowd.testing.receiver_process import Arrival, ReceiverProcess


def verify(arrival: Arrival, secret: str) -> None:
    """Both default signatures, by the public package and by the plainest code there is (6.2)."""
    Webhook(secret).verify(arrival.body, arrival.headers)
    plain = hmac.new(secret.encode(), arrival.body, hashlib.sha256).hexdigest()
    assert arrival.headers["primeflow-signature"] == plain


def history(client: httpx.Client, batch_id: str) -> list[dict[str, Any]]:
    answer = client.get(f"/v1/batches/{batch_id}/callback")
    assert answer.status_code == 200
    deliveries: list[dict[str, Any]] = answer.json()
    return deliveries


def test_batch_to_callback_through_failures_and_a_kill(tmp_path: Path) -> None:
    """1, 4.5, 5.5, 5.6, 6.2: the frozen bytes arrive, after failures and after kill -9."""
    with ReceiverProcess(tmp_path / "arrivals.jsonl", [{"status": 500}] * 2 + [{}]) as receiver:
        daemon = DaemonProcess(tmp_path / "state")
        key = daemon.create_key()
        with daemon:
            with daemon.client(key) as client:
                policy = {"plan_id": "gold", "delays": ["300ms", "2s"]}
                headers = {"X-Org-Id": "acme"}
                assert client.post("/v1/policies/retry", json=policy, headers=headers).is_success
                secret = client.post("/v1/callback-secrets", json={}).json()["plain_secret"]
                batch = client.post(
                    "/v1/batches",
                    json={
                        "plan_id": "gold",
                        "callback_url": receiver.url,
                        "metadata": {"größe": 1.0, "n": 12345678901234567890},
                        "items": [{"client_ref": "a"}, {"client_ref": "b"}],
                    },
                ).json()
                reports = [
                    {"client_ref": "a", "status_code": "succeeded", "output": {"x": 1}},
                    {"client_ref": "b", "status_code": "failed", "error": "no such file"},
                ]
                ended = client.patch(f"/v1/batches/{batch['id']}/items", json={"items": reports})
                assert ended.json()["status"] == "partial_succeeded"
                eventually(lambda: len(receiver.arrivals()) == 2)
                eventually(lambda: history(client, batch["id"])[0]["attempt_count"] == 2)
                waiting = history(client, batch["id"])[0]
            daemon.kill()
            assert waiting["status_code"] == "pending"
            daemon.start()
            with daemon.client(key) as client:
                eventually(lambda: history(client, batch["id"])[0]["status_code"] == "succeeded")
                (delivery,) = history(client, batch["id"])
                again = client.post(f"/v1/batches/{batch['id']}/callback-redeliveries")
                assert again.status_code == 201
                eventually(lambda: len(receiver.arrivals()) == 4)
                eventually(lambda: history(client, batch["id"])[0]["status_code"] == "succeeded")
            assert daemon.terminate() == 0

        assert [a["status_code"] for a in delivery["attempts"]] == [500, 500, 200]
        assert [a["attempt_number"] for a in delivery["attempts"]] == [1, 2, 3]
        arrivals = receiver.arrivals()
        assert {a.body.decode() for a in arrivals} == {delivery["payload_bytes"]}
        assert '"metadata":{"größe":1.0,"n":12345678901234567890}' in delivery["payload_bytes"]
        assert [a.headers["primeflow-attempt"] for a in arrivals] == ["1", "2", "3", "1"]
        for arrival in arrivals:
            verify(arrival, secret)
            assert arrival.headers["webhook-id"] == batch["id"]
            assert arrival.headers["content-type"] == "application/json"
            assert arrival.headers["user-agent"].startswith("primeflowd/")
        for number, attempt in enumerate(delivery["attempts"]):
            assert arrivals[number].headers["primeflow-request-id"] == attempt["id"]


def test_retries_are_never_early(tmp_path: Path) -> None:
    """3.6: retry k waits its delay from the end of the attempt before it."""
    with ReceiverProcess(
        tmp_path / "arrivals.jsonl", [{"status": 500, "delay": 0.1}] * 3 + [{}]
    ) as receiver:
        daemon = DaemonProcess(
            tmp_path / "state",
            '[delivery.default_policy]\ndelays = ["200ms", "400ms"]\nmax_retries = 3\n',
        )
        key = daemon.create_key()
        with daemon:
            with daemon.client(key) as client:
                batch = client.post(
                    "/v1/batches", json={"status": "failed", "callback_url": receiver.url}
                ).json()
            eventually(lambda: batch["id"] in receiver.succeeded())
            assert daemon.terminate() == 0
        times = [a.time for a in receiver.arrivals()]
        waits = [later - earlier for earlier, later in itertools.pairwise(times)]
        # The receiver takes 0.1 s to answer, and the delay starts after that.
        for wait, delay in zip(waits, (0.2, 0.4, 0.4), strict=True):
            assert wait >= 0.1 + delay - 0.002
            assert wait < 0.1 + delay + 1.0
