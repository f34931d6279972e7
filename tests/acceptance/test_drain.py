"""Contract section 8: SIGTERM finishes what is being sent, releases the rest durably, exits 0."""

import signal
import time
from pathlib import Path

from primeflowd.testing.daemon_process import DaemonProcess, eventually
from primeflowd.testing.receiver_process import ReceiverProcess

BATCH = {"status": "succeeded"}


def test_drain_cuts_nothing_that_ends_in_time(tmp_path: Path) -> None:
    """8: under load, no attempt is cut that ends within the deadline; nothing is sent twice."""
    with ReceiverProcess(tmp_path / "arrivals.jsonl", [{"delay": 0.3}]) as receiver:
        daemon = DaemonProcess(tmp_path / "state", '[drain]\ndeadline = "10s"\n')
        key = daemon.create_key()
        with daemon:
            with daemon.client(key) as client:
                answer = client.post(
                    "/v1/batches/bulk",
                    json={"batches": [{**BATCH, "callback_url": receiver.url}] * 300},
                )
            ids = {result["id"] for result in answer.json()["results"]}
            eventually(lambda: len(receiver.arrivals()) > 20)
            assert daemon.terminate() == 0
            finished = daemon.events("drain_finished")
            assert finished[-1]["cut_short"] == 0
            before = len(receiver.arrivals())
            assert before < 300, "all were sent before the drain: it was not tested"
            daemon.start()
            eventually(lambda: receiver.succeeded() == ids)
            assert daemon.terminate() == 0
        assert len(receiver.arrivals()) == 300


def test_drain_records_what_it_cuts(tmp_path: Path) -> None:
    """5.6: a cut attempt is on record as interrupted, uses up no retry, and is due at once."""
    with ReceiverProcess(tmp_path / "arrivals.jsonl", [{"hang": True}, {}]) as receiver:
        daemon = DaemonProcess(
            tmp_path / "state",
            '[drain]\ndeadline = "200ms"\n[delivery.default_policy]\ndelays = []\n',
        )
        key = daemon.create_key()
        with daemon:
            with daemon.client(key) as client:
                batch = client.post("/v1/batches", json={**BATCH, "callback_url": receiver.url})
            eventually(receiver.arrivals)
            began = time.monotonic()
            assert daemon.terminate() == 0
            assert time.monotonic() - began < 10
            daemon.start()
            eventually(lambda: batch.json()["id"] in receiver.succeeded())
            with daemon.client(key) as client:
                path = f"/v1/batches/{batch.json()['id']}/callback"
                done = eventually(
                    lambda: [d for d in client.get(path).json() if d["status_code"] == "succeeded"]
                )
            assert daemon.terminate() == 0
        (delivery,) = done
        assert delivery["max_attempts"] == 1
        assert [a["attempt_number"] for a in delivery["attempts"]] == [1, 2]
        assert "interrupted" in delivery["attempts"][0]["error_message"]
        assert delivery["attempts"][1]["status_code"] == 200
        assert [a.headers["primeflow-attempt"] for a in receiver.arrivals()] == ["1", "2"]


def test_second_signal_cuts_at_once(tmp_path: Path) -> None:
    """8: a second signal does not wait for the deadline; the exit is clean all the same."""
    with ReceiverProcess(tmp_path / "arrivals.jsonl", [{"hang": True}, {}]) as receiver:
        daemon = DaemonProcess(tmp_path / "state", '[drain]\ndeadline = "60s"\n')
        key = daemon.create_key()
        with daemon:
            with daemon.client(key) as client:
                client.post("/v1/batches", json={**BATCH, "callback_url": receiver.url})
                eventually(receiver.arrivals)
                daemon.process.send_signal(signal.SIGINT)
                eventually(lambda: client.get("/readyz").status_code == 503)
                refused = client.post("/v1/batches", json={**BATCH, "callback_url": receiver.url})
                assert refused.status_code == 503
                assert refused.headers["retry-after"]
                assert client.get("/v1/batches").status_code == 200
            began = time.monotonic()
            assert daemon.terminate() == 0
            assert time.monotonic() - began < 10
