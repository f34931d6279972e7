"""A disk that fills up: clear answers, nothing acknowledged is lost, recovery without a restart."""

import resource
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from primeflowd.testing.daemon_process import DaemonProcess, eventually
from primeflowd.testing.receiver_process import ReceiverProcess


def limit_files(pid: int, size: int) -> None:
    """Let no file of the process grow beyond `size` bytes: what a full disk looks like to it."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def succeeded(client: httpx.Client, batch_id: str) -> list[dict[str, Any]]:
    """The batch's deliveries that have succeeded."""
    deliveries = client.get(f"/v1/batches/{batch_id}/callback").json()
    return [one for one in deliveries if one["status_code"] == "succeeded"]


def test_disk_full_and_back(tmp_path: Path) -> None:
    """2.5, 5.6, 8: 503 and a red readiness while full; after it everything accepted arrives."""
    with ReceiverProcess(tmp_path / "arrivals.jsonl") as receiver:
        daemon = DaemonProcess(tmp_path / "state")
        key = daemon.create_key()
        accepted: list[str] = []
        with daemon:
            with daemon.client(key) as client:
                filler = "x" * 200_000

                def register() -> int:
                    answer = client.post(
                        "/v1/batches",
                        json={
                            "status": "succeeded",
                            "callback_url": receiver.url,
                            "metadata": {"filler": filler},
                        },
                    )
                    if answer.status_code == 201:
                        accepted.append(answer.json()["id"])
                    else:
                        assert answer.status_code == 503
                        assert answer.headers["retry-after"]
                        assert answer.json()["error"] == "unavailable"
                    return answer.status_code

                assert register() == 201
                wal = tmp_path / "state" / "primeflowd.db-wal"
                limit_files(daemon.process.pid, wal.stat().st_size + 1_000_000)
                eventually(lambda: register() == 503, every=0)
                # Asked right after a refusal: the record of an attempt is small, may still find
                # room where a batch does not, and would make the node ready again.
                eventually(lambda: register() == 503 and client.get("/readyz").status_code == 503)
                assert client.get("/healthz").status_code == 200
                assert client.get(f"/v1/batches/{accepted[0]}").status_code == 200
                limit_files(daemon.process.pid, resource.RLIM_INFINITY)
                eventually(lambda: client.get("/readyz").status_code == 200)
                assert register() == 201
                eventually(lambda: receiver.succeeded() >= set(accepted))
                for batch_id in accepted:
                    (delivery,) = eventually(partial(succeeded, client, batch_id))
                    assert delivery["attempt_count"] == len(delivery["attempts"])
            eventually(lambda: daemon.events("storage_recovered"))
            assert daemon.terminate() == 0
