"""`POST /v1/batches/bulk` (contract section 4)."""

from pathlib import Path

from primeflowd.testing.daemon_process import DaemonProcess


def test_a_bulk_costs_one_commit(tmp_path: Path) -> None:
    """4.6: a thousand batches, all durable when it answers, in a single commit."""
    daemon = DaemonProcess(tmp_path / "state")
    key = daemon.create_key()
    with daemon, daemon.client(key) as client:
        before = client.get("/v1/stats").json()["commits"]
        answer = client.post("/v1/batches/bulk", json={"batches": [{"status": "failed"}] * 1000})
        after = client.get("/v1/stats").json()["commits"]
        daemon.kill()
        daemon.start()
        with daemon.client(key) as again:
            for result in answer.json()["results"][::97]:
                found = again.get(f"/v1/batches/{result['id']}")
                assert found.json()["status"] == "failed"
    assert len(answer.json()["results"]) == 1000
    assert after - before == 1
