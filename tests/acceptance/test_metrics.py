"""`GET /metrics` of a real daemon, after callbacks of which it is known what became of them."""

from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from primeflowd.testing.daemon_process import DaemonProcess, eventually
from primeflowd.testing.receiver_process import ReceiverProcess

CALLBACKS = 40


def scrape(url: str) -> dict[tuple[str, ...], float]:
    """Every sample: its name and the values of its labels, in the order of their names."""
    response = httpx.get(f"{url}/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


@pytest.mark.parametrize("server", ["hypercorn", "lean"])
def test_the_numbers_add_up(server: str, tmp_path: Path) -> None:
    """8: of callbacks that arrive, of one that fails first, and of one that nobody takes."""
    daemon = DaemonProcess(
        tmp_path / "state",
        f'[api]\nbind = "127.0.0.1:0"\nserver = "{server}"\n'
        '[delivery.default_policy]\ndelays = ["100ms"]\n',
    )
    key = daemon.create_key()
    script = [{"status": 500}, {}]
    with ReceiverProcess(tmp_path / "arrivals", script) as receiver, daemon:
        with daemon.client(key) as client:
            for url in [receiver.url] * CALLBACKS + ["http://10.0.0.1/hook"]:
                body = {"status": "succeeded", "callback_url": url}
                assert client.post("/v1/batches", json=body).status_code == 201
            eventually(
                lambda: (
                    scrape(daemon.url)["primeflowd_deliveries_ended_total", "", "succeeded"]
                    == CALLBACKS
                )
            )
        eventually(lambda: scrape(daemon.url)["primeflowd_loop_lag_seconds_count",] > 0)
        found = scrape(daemon.url)
        attempts = sum(value for name, value in found.items() if name[0].endswith("attempts_total"))
        refused = found["primeflowd_attempts_total", "url_not_allowed"]
        assert found["primeflowd_deliveries_accepted_total",] == CALLBACKS + 1
        assert found["primeflowd_attempts_total", "2xx"] == CALLBACKS
        assert found["primeflowd_attempts_total", "5xx"] == 1
        assert refused > 0
        assert attempts == CALLBACKS + 1 + refused
        assert found["primeflowd_attempt_duration_seconds_count",] == attempts
        assert found["primeflowd_first_attempt_delay_seconds_count",] == CALLBACKS + 1
        assert found["primeflowd_retry_lateness_seconds_count",] >= 1
        assert found["primeflowd_retry_lateness_seconds_sum",] >= 0
        connects = found["primeflowd_connects_total",]
        assert connects + found["primeflowd_connection_reuses_total",] == CALLBACKS + 1
        assert found["primeflowd_api_requests_total", "POST", "/v1/batches", "2xx"] == CALLBACKS + 1
        assert found["primeflowd_storage_operations_total",] > CALLBACKS
        commits = found["primeflowd_storage_commits_total",]
        assert commits <= found["primeflowd_storage_commit_seconds_count",] <= commits + 1
        assert 0 < found["primeflowd_storage_commit_seconds_sum",] < 60
        for name in ("ready", "storage_healthy", "lease_held", "eldest"):
            assert found[f"primeflowd_{name}",] == 1
        assert daemon.terminate() == 0


def test_a_cancelled_delivery_is_counted_once(tmp_path: Path) -> None:
    """5.4: by the order, also while its attempt is under way."""
    daemon = DaemonProcess(tmp_path / "state")
    key = daemon.create_key()
    with ReceiverProcess(tmp_path / "arrivals", [{"delay": 1.0}]) as receiver, daemon:
        with daemon.client(key) as client:
            body = {"status": "succeeded", "callback_url": receiver.url}
            batch = client.post("/v1/batches", json=body).json()
            eventually(lambda: receiver.arrivals() or None)
            [delivery] = client.get(f"/v1/batches/{batch['id']}/callback").json()
            assert client.post(f"/v1/deliveries/{delivery['id']}/cancellation").is_success
        eventually(lambda: scrape(daemon.url)["primeflowd_attempts_total", "2xx"] == 1)
        found = scrape(daemon.url)
        ended = {
            name[1:]: value
            for name, value in found.items()
            if name[0] == "primeflowd_deliveries_ended_total" and value
        }
        assert ended == {("cancelled", "failed"): 1}
        assert daemon.terminate() == 0
