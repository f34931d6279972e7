"""Two processes on one SQLite file and one port (contract 5.6, 8): either may die at any moment."""

import random
import socket
import sqlite3
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from primeflowd.testing.audit import Audit
from primeflowd.testing.cluster import Cluster, Node
from primeflowd.testing.daemon_process import eventually
from primeflowd.testing.load import Load, Receivers
from primeflowd.testing.mishaps import Kills, spread
from primeflowd.testing.receiver_process import ReceiverProcess

KILLS = 10
SETTINGS = """
[delivery.default_policy]
delays = ["300ms", "1s"]
max_retries = 20
"""
# An attempt at the slow receiver, and its record, on a machine that is busy.
IN_FLIGHT = 2.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def batch_for(url: str) -> dict[str, str]:
    return {"status": "succeeded", "callback_url": url}


class Shared:
    """Two nodes on one file, on one port or each on its own."""

    def __init__(
        self, directory: Path, settings: str = SETTINGS, *, lease_ttl: float = 2.0, port: int | None
    ) -> None:
        self.path = directory / "primeflowd.db"
        urls = [f"sqlite:///{self.path}"] * 2
        self.cluster = Cluster(directory, urls, settings, lease_ttl=lease_ttl, port=port)

    def claims(self, name: str) -> set[str]:
        """See Kills."""
        query = "SELECT id FROM deliveries WHERE claimed_by LIKE ? || '%'"
        with closing(sqlite3.connect(self.path, timeout=30)) as database:
            return {delivery_id for (delivery_id,) in database.execute(query, (name,))}

    def hold_at_first(self, url: str, count: int) -> tuple[set[str], set[str]]:
        """Have so many retries wait at the first node: the ids of batches and deliveries."""
        with self.cluster.client(1) as client:
            answer = client.post("/v1/batches/bulk", json={"batches": [batch_for(url)] * count})
            accepted = {result["id"] for result in answer.json()["results"]}
            eventually(lambda: client.get("/v1/stats").json()["waiting"] == count)
        held = self.claims(self.cluster.nodes[0].name)
        assert len(held) == count
        return accepted, held

    def pause(self, node: Node) -> None:
        """Pause a node, but not in the middle of a write: with the file locked, no other can."""
        while True:
            node.pause()
            with closing(sqlite3.connect(self.path, timeout=0.5)) as database:
                try:
                    database.execute("BEGIN IMMEDIATE")
                except sqlite3.OperationalError:
                    node.resume()
                else:
                    return


def answering(cluster: Cluster) -> set[str]:
    """Which nodes answered thirty requests, each on a connection of its own."""
    found = set()
    for _ in range(30):
        with cluster.client() as client:
            found.add(client.get("/v1/stats").raise_for_status().json()["node_id"])
    return found


def test_ten_kills_of_two_processes_lose_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """5.6: under load; what a dead process held, the other takes over after the lease."""
    dice = random.Random(20_260_507)
    shared = Shared(tmp_path, port=free_port())
    cluster = shared.cluster
    with Receivers(tmp_path) as receivers, cluster:
        assert len(answering(cluster)) == 2
        kills = Kills(cluster, shared.claims, dice)
        with Load(cluster.urls, cluster.key, receivers.urls, per_second=40) as load, kills:
            for _ in range(KILLS):
                time.sleep(dice.uniform(0.3, 1.5))
                kills.kill_one(down=dice.uniform(0, 1.0))
        cluster.settle()
        with cluster.client() as client:
            audit = Audit.of(client, receivers.arrivals())
        cluster.terminate()
    audit.check(load.accepted, kills.incidents, in_flight=IN_FLIGHT)
    kills.check_strays(audit.strays)
    assert set(audit.by_node()) == {1, 2}
    takeovers = kills.takeovers(audit.sent)
    with capsys.disabled():
        print(
            f"\n{KILLS} kills of 2 processes on one file: {len(load.accepted)} batches accepted, "
            f"0 lost, {len(audit.recorded)} attempts, by process {audit.by_node()}, "
            f"{len(audit.strays)} repeated because a kill cut them; "
            f"takeover (lease {cluster.lease_ttl:g} s) {spread(takeovers)}; "
            f"tries that failed {dict(load.repeats)}, slowest answer {load.slowest:.1f} s",
            file=sys.stderr,
        )
    assert takeovers
    assert len(load.accepted) > 200


def test_drain_of_one_of_two_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """8: under load, each drained in turn: nothing is lost, nothing is sent twice, and the other
    has the waiting retries at once."""
    cluster = Shared(tmp_path, lease_ttl=30, port=free_port()).cluster
    with Receivers(tmp_path) as receivers, cluster:
        with Load(cluster.urls, cluster.key, receivers.urls, per_second=40) as load:
            for node in cluster.nodes * 2:
                before = len(receivers.arrivals())
                eventually(lambda before=before: len(receivers.arrivals()) > before + 60)  # type: ignore[misc]  # mypy infers no lambda with a default
                assert node.terminate() == 0
                node.start()
        began = time.monotonic()
        cluster.settle(seconds=20)  # less than a lease: nobody waited for one to expire
        settled = time.monotonic() - began
        with cluster.client() as client:
            audit = Audit.of(client, receivers.arrivals())
        cluster.terminate()
    audit.check(load.accepted, in_flight=0)
    cut = sum(
        "interrupted" in (attempt["error_message"] or "") for attempt in audit.recorded.values()
    )
    with capsys.disabled():
        print(
            f"\n4 drains of 2 processes on one port: {len(load.accepted)} batches accepted, "
            f"all delivered {settled:.1f} s after the last; {cut} attempts cut short; "
            f"tries that failed {dict(load.repeats)}, slowest answer {load.slowest:.1f} s",
            file=sys.stderr,
        )
    assert cut == 0


@pytest.mark.parametrize(("how", "lease_ttl"), [("drained", 60.0), ("killed", 2.0)])
def test_waiting_retries_of_one_process_go_to_the_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str, lease_ttl: float
) -> None:
    """5.6, 8: of one that was drained soon, of one that was killed when its lease is over."""
    settings = '[delivery.default_policy]\ndelays = ["8s"]\n'
    shared = Shared(tmp_path, settings, lease_ttl=lease_ttl, port=None)
    cluster, (node, other) = shared.cluster, shared.cluster.nodes
    script = [{"status": 503}, {}]
    with ReceiverProcess(tmp_path / "a.jsonl", script, by_attempt=True) as receiver, cluster:
        accepted, held = shared.hold_at_first(receiver.url, 200)
        began = time.monotonic()
        if how == "drained":
            assert node.terminate() == 0
        else:
            node.kill()
        eventually(lambda: shared.claims(other.name) == held)
        taken = time.monotonic() - began
        cluster.settle()
        with cluster.client(2) as client:
            audit = Audit.of(client, receiver.arrivals())
        cluster.terminate()
    audit.check(accepted, in_flight=0)
    assert audit.by_node() == {1: 200, 2: 200}
    with capsys.disabled():
        print(
            f"\n1 of 2 processes was {how} with 200 retries waiting: the other had them after "
            f"{taken:.2f} s (lease {cluster.lease_ttl:g} s)",
            file=sys.stderr,
        )
    # Processes cannot tell each other: each looks every five seconds. It looks for dead ones every
    # third of a lease, and then takes at once what it finds.
    assert taken < (6.5 if how == "drained" else lease_ttl * 4 / 3 + 1)


def test_a_process_that_stands_still_sends_nothing_of_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """5.6: `kill -STOP` for longer than the lease, then `-CONT`: what it held is the other's."""
    settings = '[delivery.default_policy]\ndelays = ["5s"]\n'
    shared = Shared(tmp_path, settings, port=None)
    cluster, (node, other) = shared.cluster, shared.cluster.nodes
    script = [{"status": 503}, {}]
    with ReceiverProcess(tmp_path / "a.jsonl", script, by_attempt=True) as receiver, cluster:
        accepted, held = shared.hold_at_first(receiver.url, 200)
        shared.pause(node)
        stopped = time.time()
        eventually(lambda: shared.claims(other.name) == held)
        taken = time.time() - stopped
        eventually(lambda: len(receiver.arrivals()) == 400)
        node.resume()
        eventually(lambda: node.events("lease_lost"))
        # It takes part again.
        with cluster.client(1) as client:
            accepted.add(client.post("/v1/batches", json=batch_for(receiver.url)).json()["id"])
        eventually(lambda: len(receiver.arrivals()) == 402)
        cluster.settle()
        with cluster.client(2) as client:
            audit = Audit.of(client, receiver.arrivals())
        cluster.terminate()
    audit.check(accepted, in_flight=0)
    labels = [sent.label for sent in audit.sent]
    assert labels == [node.label] * 200 + [other.label] * 200 + [node.label] * 2
    with capsys.disabled():
        print(
            f"\n1 of 2 processes stood still with 200 retries waiting: the other had them after "
            f"{taken:.2f} s (lease {cluster.lease_ttl:g} s); nothing was sent twice",
            file=sys.stderr,
        )
