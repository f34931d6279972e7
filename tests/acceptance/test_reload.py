"""Contract section 8: SIGHUP reloads what can be reloaded; a bad file changes nothing."""

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from primeflowd.testing.daemon_process import DaemonProcess, eventually
from primeflowd.testing.receiver_process import ReceiverProcess
from tests.cli.api_commands import Desk
from tests.network import closed_port
from tests.systemd import NotifySocket

RETRY_LATE = '[delivery.default_policy]\ndelays = ["1h"]\n'


def told(daemon: DaemonProcess, event: str, act: Callable[[], None]) -> dict[str, Any]:
    """The next line of the log with this event, once this was done."""
    before = len(daemon.events(event))
    act()
    eventually(lambda: len(daemon.events(event)) > before)
    return daemon.events(event)[before]


def hang_up(daemon: DaemonProcess) -> Callable[[], None]:
    return lambda: daemon.process.send_signal(signal.SIGHUP)


def reloaded(daemon: DaemonProcess, settings: str) -> dict[str, Any]:
    """Write another file, send SIGHUP; what the daemon says of it."""
    daemon.configure(settings)
    return told(daemon, "reloaded", hang_up(daemon))


def send(client: httpx.Client, url: str) -> str:
    """Make a batch that has ended; its id."""
    batch = {"status": "succeeded", "callback_url": url}
    identifier: str = client.post("/v1/batches", json=batch).raise_for_status().json()["id"]
    return identifier


def callback(client: httpx.Client, batch_id: str) -> Any:
    [delivery] = client.get(f"/v1/batches/{batch_id}/callback").raise_for_status().json()
    return delivery


def ended(client: httpx.Client, batch_id: str) -> Any:
    return eventually(
        lambda: (
            done
            if (done := callback(client, batch_id))["status_code"] in ("succeeded", "failed")
            else None
        )
    )


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[ReceiverProcess]:
    with ReceiverProcess(tmp_path / "arrivals.jsonl") as receiver:
        yield receiver


def test_next_delivery_has_the_new_default_policy(
    tmp_path: Path, receiver: ReceiverProcess
) -> None:
    """8, 3.5: those made before keep theirs."""
    daemon = DaemonProcess(tmp_path / "state")
    key = daemon.create_key()
    with daemon, daemon.client(key) as client:
        before = send(client, receiver.url)
        event = reloaded(daemon, '[delivery.default_policy]\ndelays = ["1s", "2s"]\n')
        assert event["changed"] == ["delivery.default_policy.delays"]
        assert event["needs_restart"] == []
        after = send(client, receiver.url)
        assert callback(client, before)["max_attempts"] == 4
        assert callback(client, after)["max_attempts"] == 3
        effective = client.get("/v1/policies/retry/effective", headers={"X-Org-Id": "acme"})
        assert effective.json()["delays"] == ["1s", "2s"]
        assert (
            reloaded(daemon, '[delivery.default_policy]\ndelays = ["1s", "2s"]\n')["changed"] == []
        )
        assert daemon.terminate() == 0


BAD_FILES: tuple[tuple[str | bytes | None, str], ...] = (
    ("[delivery]\ntimeout = 5\n", "delivery.timeout: expected a duration in quotes"),
    ("[delivery]\ntimeuot = '5s'\n", "delivery.timeuot: unknown key"),
    ("[delivery\n", "not TOML"),
    (b"\xff", "not UTF-8"),
    (None, "cannot be read: No such file or directory"),
    ('[signing]\nsigners = ["nobody"]\n', 'there is no signer "nobody"'),
    ('[delivery]\nca_file = "/nowhere.pem"\n', "delivery.ca_file: /nowhere.pem"),
    ('[plugins]\nenable = ["nobody"]\n', 'no plugin "nobody" is installed'),
    ("[plugins.nobody]\na = 1\n", "plugins.nobody: no such plugin"),
)


def test_bad_file_changes_nothing(tmp_path: Path, receiver: ReceiverProcess) -> None:
    """8: and says why; what else stands in the file is not taken, either."""
    other = '[delivery.default_policy]\ndelays = ["1s", "2s"]\n'
    daemon = DaemonProcess(tmp_path / "state", RETRY_LATE)
    key = daemon.create_key("*")
    with daemon, daemon.client(key) as client:
        client.headers["X-Org-Id"] = "acme"
        for text, reason in BAD_FILES:
            if text is None:
                daemon.config.unlink()
            elif isinstance(text, bytes):
                daemon.config.write_bytes(text)
            else:
                daemon.configure(other + text)
            assert reason in told(daemon, "reload_failed", hang_up(daemon))["reason"]
            refused = client.post("/v1/reload")
            assert (refused.status_code, refused.json()["code"]) == (422, "reload_failed")
            assert reason in refused.json()["message"]
            assert callback(client, send(client, receiver.url))["max_attempts"] == 2
        assert not daemon.events("reloaded")
        # Mended, it is taken.
        assert reloaded(daemon, other)["changed"] == ["delivery.default_policy.delays"]
        assert callback(client, send(client, receiver.url))["max_attempts"] == 3
        assert daemon.terminate() == 0


def test_denied_address_is_not_used_again(tmp_path: Path, receiver: ReceiverProcess) -> None:
    """8, 7: not over a connection that was kept, either."""
    daemon = DaemonProcess(tmp_path / "state", "[delivery.egress]\nallow = ['127.0.0.0/8']\n")
    key = daemon.create_key()
    with daemon, daemon.client(key) as client:
        assert ended(client, send(client, receiver.url))["status_code"] == "succeeded"
        assert "primeflowd_connections" in client.get("/metrics").text
        event = reloaded(daemon, "[delivery.egress]\ndeny = ['127.0.0.1/32']\n")
        assert event["changed"] == ["delivery.egress.allow", "delivery.egress.deny"]
        refused = ended(client, send(client, receiver.url))
        assert refused["failure_reason_code"] == "url_not_allowed"
        assert len(receiver.arrivals()) == 1
        reloaded(daemon, "")
        assert ended(client, send(client, receiver.url))["status_code"] == "succeeded"
        assert daemon.terminate() == 0


def test_connection_in_use_is_not_kept(tmp_path: Path) -> None:
    """8, 7: an attempt under way ends as it began; its connection is not used again."""
    with ReceiverProcess(tmp_path / "arrivals.jsonl", [{}, {"delay": 2}, {}]) as receiver:
        daemon = DaemonProcess(tmp_path / "state")
        key = daemon.create_key()
        with daemon, daemon.client(key) as client:
            ended(client, send(client, receiver.url))
            slow = send(client, receiver.url)
            eventually(lambda: len(receiver.arrivals()) == 2)
            reloaded(daemon, "[delivery.egress]\ndeny = ['127.0.0.1/32']\n")
            assert callback(client, slow)["status_code"] == "delivering"
            assert ended(client, slow)["status_code"] == "succeeded"
            refused = ended(client, send(client, receiver.url))
            assert refused["failure_reason_code"] == "url_not_allowed"
            assert daemon.terminate() == 0


def test_log_level_and_signers(tmp_path: Path, receiver: ReceiverProcess) -> None:
    """8: loggers that were used before follow; a signer that was added signs the next attempt."""
    daemon = DaemonProcess(tmp_path / "state", "[signing]\nsigners = ['hmac-sha256']\n")
    key = daemon.create_key()
    with daemon, daemon.client(key) as client:
        client.post("/v1/callback-secrets", json={}).raise_for_status()
        ended(client, send(client, receiver.url))
        assert not daemon.events("answered")
        level = 'level = "debug"\n'
        signing = "[signing]\nhmac_header = 'X-Ours'\nsigners = ['hmac-sha256', 'ed25519']\n"
        event = reloaded(daemon, level + signing)
        assert event["changed"] == ["signing.signers", "signing.hmac_header", "log.level"]
        ended(client, send(client, receiver.url))
        eventually(lambda: daemon.events("answered"))
        reloaded(daemon, signing)
        count = len(daemon.events("answered"))
        ended(client, send(client, receiver.url))
        time.sleep(0.2)
        assert len(daemon.events("answered")) == count
        assert daemon.terminate() == 0
    first, second, _ = [arrival.headers for arrival in receiver.arrivals()]
    assert "primeflow-signature" in first
    assert "webhook-signature" not in first
    assert "x-ours" in second
    assert "primeflow-signature" not in second
    assert second["webhook-signature"].startswith("v1a,")


def test_what_takes_a_restart_is_named_each_time(tmp_path: Path) -> None:
    """8: and stays as it was, until then."""
    daemon = DaemonProcess(tmp_path / "state")
    key = daemon.create_key("*")
    with daemon, daemon.client(key) as client:
        text = (
            f'[storage]\nurl = "sqlite:///{tmp_path}/other.db?hush"\nmax_backlog = 7\n'
            "[secrets]\nmaster_key_file = '/nowhere'\n[plugins]\nenable = []\n"
        )
        event = reloaded(daemon, text)
        assert event["changed"] == ["storage.max_backlog"]
        assert event["needs_restart"] == ["storage.url", "secrets.master_key_file"]
        answer = client.post("/v1/reload").raise_for_status().json()
        assert answer["changed"] == []
        assert list(answer["needs_restart"]) == ["storage.url", "secrets.master_key_file"]
        assert "hush" not in str(daemon.log)
        assert not (tmp_path / "other.db").exists()
        assert client.get("/readyz").status_code == 200
        assert reloaded(daemon, "")["needs_restart"] == []
        assert daemon.terminate() == 0


def test_limits_of_the_api(tmp_path: Path) -> None:
    """8, 2.10, 2.11: of both ways by which requests come in."""
    daemon = DaemonProcess(tmp_path / "state")
    key = daemon.create_key()
    api = '[api]\nbind = "127.0.0.1:0"\n'
    big = {"metadata": {"text": "x" * 5000}}
    many = {"batches": [big] * 3}
    with daemon, daemon.client(key) as client:
        assert client.post("/v1/batches", json=big).status_code == 201
        reloaded(daemon, api + "max_body = 2000\nmax_bulk_body = 4000\nrate_limit = 0.001\n")
        answer = client.post("/v1/batches", json=big)
        assert (answer.status_code, answer.headers["x-ratelimit-limit"]) == (413, "100")
        assert client.post("/v1/batches/bulk", json=many).status_code == 413
        assert client.post("/v1/callback-secrets", json={"label": "x" * 3000}).status_code == 413
        reloaded(daemon, api + "max_body = 30_000_000\nmax_bulk_body = 30_000_000\n")
        assert client.post("/v1/batches", json=big).status_code == 201
        huge = {"batches": [{"metadata": {"text": "x" * 1_000_000}}] * 20}
        assert client.post("/v1/batches/bulk", json=huge).status_code == 200
        # Too long for a label, but not for a body.
        label = {"label": "x" * 20_000_000}
        assert client.post("/v1/callback-secrets", json=label).status_code == 400
        assert daemon.terminate() == 0


def test_shorter_timeout_counts_for_the_next_attempt(tmp_path: Path) -> None:
    """8: no part sees half of a new configuration within one attempt."""
    with ReceiverProcess(tmp_path / "arrivals.jsonl", [{"delay": 3}, {"hang": True}]) as receiver:
        daemon = DaemonProcess(tmp_path / "state")
        key = daemon.create_key()
        with daemon, daemon.client(key) as client:
            first = send(client, receiver.url)
            eventually(receiver.arrivals)
            reloaded(daemon, "[delivery]\ntimeout = '500ms'\n" + RETRY_LATE)
            began = time.monotonic()
            second = send(client, receiver.url)
            eventually(lambda: callback(client, second)["attempts"])
            assert time.monotonic() - began < 2
            [attempt] = callback(client, second)["attempts"]
            assert "500ms" in attempt["error_message"]
            assert ended(client, first)["status_code"] == "succeeded"
            assert daemon.terminate() == 0


def test_tables_of_destinations(tmp_path: Path, receiver: ReceiverProcess) -> None:
    """8: one that is new, changed, refused and gone; what the API had set counts where none is."""
    daemon = DaemonProcess(tmp_path / "state")
    key, operator = daemon.create_key(), daemon.create_key("*")
    name = receiver.url.rpartition("/")[0]
    setting = f"destinations.{name}"
    policy = ("/v1/destinations/policy", {"destination": name})

    def table(text: str) -> str:
        return f'[destinations."{name}"]\n{text}\n'

    def arrived(batch_id: str) -> dict[str, str]:
        assert ended(client, batch_id)["status_code"] == "succeeded"
        return receiver.arrivals()[-1].headers

    with (
        daemon,
        daemon.client(key) as client,
        daemon.client(operator) as operating,
    ):
        stored = operating.patch(policy[0], params=policy[1], json={"headers": {"X-By": "api"}})
        assert stored.raise_for_status().json()["source"] == "api"
        assert arrived(send(client, receiver.url))["x-by"] == "api"

        event = reloaded(daemon, table('headers = { "X-By" = "file" }'))
        assert (event["changed"], event["needs_restart"]) == ([setting], [])
        assert arrived(send(client, receiver.url))["x-by"] == "file"
        assert operating.get(policy[0], params=policy[1]).json()["source"] == "file"

        waits = table('disabled = "moves"')
        assert reloaded(daemon, waits)["changed"] == [setting]
        waiting = send(client, receiver.url)
        for bad, reason in (
            ("rate = -1", "rate"),
            ("disabled = 5", "disabled"),
            ('headers = { "webhook-id" = "1" }', "webhook-id is primeflowd's to set"),
        ):
            daemon.configure(table(bad))
            failed = told(daemon, "reload_failed", hang_up(daemon))
            assert f'destinations."{name}"' in failed["reason"]
            assert reason in failed["reason"]
        assert reloaded(daemon, waits)["changed"] == []
        explained = client.get(f"/v1/deliveries/{callback(client, waiting)['id']}/explain").json()
        assert [hold["kind"] for hold in explained["held_back_by"]] == ["disabled"]
        assert len(receiver.arrivals()) == 2

        daemon.configure(table('disabled = "for good"\nwhile_disabled = "fail"'))
        assert operating.post("/v1/reload").json()["changed"] == [setting]
        assert ended(client, waiting)["failure_reason_code"] == "url_not_allowed"

        assert reloaded(daemon, "")["changed"] == [setting]
        assert arrived(send(client, receiver.url))["x-by"] == "api"
        assert len(receiver.arrivals()) == 3
        assert daemon.terminate() == 0


def test_what_is_held_and_the_pace_of_recoveries(tmp_path: Path) -> None:
    """8: a wider window onto storage is filled at once; a job under way goes on at the new pace."""
    policy = "[delivery.default_policy]\ndelays = {}\n"
    narrow = "[delivery]\nactive_limit = 20\nrecovery_rate = 1\ndestination_share = 1.0\n"
    url = f"http://127.0.0.1:{closed_port()}/"
    daemon = DaemonProcess(tmp_path / "state", narrow + policy.format([]))
    key = daemon.create_key()
    with daemon, daemon.client(key) as client:

        def bulk(url: str) -> None:
            batch = {"status": "succeeded", "callback_url": url}
            client.post("/v1/batches/bulk", json={"batches": [batch] * 60}).raise_for_status()

        def failed() -> int:
            query: dict[str, str | int] = {"status_code": "failed", "limit": 500}
            return len(client.get("/v1/deliveries", params=query).json()["items"])

        bulk(url)
        eventually(lambda: failed() == 60)
        since = {"since": "2020-01-01T00:00:00Z"}
        client.post("/v1/deliveries/recover", json=since).raise_for_status()
        time.sleep(2)
        assert failed() < 70
        reloaded(daemon, narrow.replace("rate = 1", "rate = 1000") + policy.format(["20s"]))
        eventually(lambda: client.get("/v1/stats").json()["held"] >= 10)
        time.sleep(1)
        assert client.get("/v1/stats").json()["held"] <= 20
        reloaded(daemon, policy.format(["20s"]))
        eventually(lambda: client.get("/v1/stats").json()["held"] > 40)
        assert daemon.terminate() == 0


def test_nothing_is_lost_under_load(tmp_path: Path) -> None:
    """8: reloads between and during attempts neither lose a callback nor send one twice."""
    with ReceiverProcess(tmp_path / "arrivals.jsonl", [{"delay": 0.05}]) as receiver:
        daemon = DaemonProcess(tmp_path / "state")
        key = daemon.create_key()
        ids: set[str] = set()
        with daemon, daemon.client(key) as client:
            for round_ in range(12):
                batch = {"status": "succeeded", "callback_url": receiver.url}
                answer = client.post("/v1/batches/bulk", json={"batches": [batch] * 100})
                ids |= {result["id"] for result in answer.json()["results"]}
                reloaded(
                    daemon,
                    f"[delivery]\nconcurrency = {(4, 256, 32)[round_ % 3]}\n"
                    f"active_limit = {(40, 20_000)[round_ % 2]}\n"
                    f"max_idle_per_destination = {round_ % 3}\ntimeout = '{20 + round_}s'\n"
                    f"max_response_body = {round_}\nhorizon = '{1 + round_}s'\n",
                )
            reloaded(daemon, "")
            eventually(lambda: receiver.succeeded() >= ids, 60)
            assert daemon.terminate() == 0
        assert len(ids) == 1200
        assert len(receiver.arrivals()) == 1200


def test_service_manager_is_told(tmp_path: Path) -> None:
    """8: RELOADING with the time, then READY, whether the file is good or bad."""
    with NotifySocket(str(tmp_path / "notify")) as notify:
        daemon = DaemonProcess(tmp_path / "state", "", {"NOTIFY_SOCKET": notify.name})
        with daemon:
            notify.wait_for("READY")
            for settings, event in (("[drain]\ndeadline = '1s'\n", "reloaded"), ("[", None)):
                daemon.configure(settings)
                asked = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
                told(daemon, event or "reload_failed", hang_up(daemon))
                found = eventually(lambda: [*notify.messages] if notify.wait_for("READY") else None)
                reloading, ready = [one for one in found if "STATUS" not in one or "READY" in one][
                    -2:
                ]
                assert reloading["RELOADING"] == "1"
                now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
                assert asked <= int(reloading["MONOTONIC_USEC"]) <= now
                assert ready == {"READY": "1", "STATUS": "ready: 0 held, 0 due, 0 sending"}
            assert daemon.terminate() == 0
        # The deadline of the good file was taken.
        [stopping] = [one for one in notify.receive() if "STOPPING" in one]
        assert int(stopping["EXTEND_TIMEOUT_USEC"]) == 61_000_000


def test_command(tmp_path: Path) -> None:
    """`primeflowd reload` says what changed, and what takes a restart; it takes an operator key."""
    daemon = DaemonProcess(tmp_path / "state")
    key, other = daemon.create_key("*"), daemon.create_key("acme")
    with daemon, daemon.client(key) as client:
        desk = Desk(daemon.url, key, client)
        daemon.configure("[drain]\ndeadline = '1s'\n[storage]\nlease_ttl = '1m'\n")
        assert desk.told("reload") == (
            "changed: drain.deadline\n"
            "needs a restart: storage.lease_ttl (other nodes go by the one that this node began "
            "with)\n"
        )
        assert list(desk.json("reload")["needs_restart"]) == ["storage.lease_ttl"]
        daemon.configure("[drain]\ndeadline = '1s'\n")
        assert desk.told("reload") == "nothing has changed\n"
        daemon.configure("[drain]\ndeadline = 1\n")
        refused = desk.refused("reload")
        assert f"{daemon.config}: drain.deadline: expected a duration" in refused
        assert "; nothing has changed (422 reload_failed, " in refused
        # Found by its own file, which is refused: that is no reason not to ask.
        port = daemon.url.rpartition(":")[2]
        daemon.configure(f"[api]\nbind = '127.0.0.1:{port}'\n[drain]\ndeadline = 1\n")
        words = ("reload", "--config", str(daemon.config))
        assert "422 reload_failed" in desk.refused(*words, PRIMEFLOWD_API_URL="")
        daemon.configure("[")
        unreadable = desk.refused(*words, PRIMEFLOWD_API_URL="")
        assert "not TOML" in unreadable
        assert "no daemon was asked" in unreadable
        assert "operator key" in desk.refused("reload", PRIMEFLOWD_API_KEY=other)
        assert daemon.terminate() == 0
