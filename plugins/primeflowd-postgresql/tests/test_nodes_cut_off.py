"""Nodes that lose their database for a while, under load (contract 5.6, 8)."""

import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import httpx
import pytest
from cluster import RETRIES, PostgresCluster, three_nodes
from proxy import Proxy
from server import How, Server

from primeflowd.testing.audit import Audit, Incident
from primeflowd.testing.cluster import Node
from primeflowd.testing.daemon_process import eventually
from primeflowd.testing.load import Load, Receivers
from primeflowd.testing.receiver_process import ReceiverProcess

# What the slow receiver takes, in seconds: attempts that are under way when the lease ends.
SLOW = 2.5
# How late an arrival may be noted on a machine that is busy.
UNDER_WAY = 0.3


@pytest.fixture
def proxies(server: Server) -> Iterator[list[Proxy]]:
    """One before each of three nodes."""
    with ExitStack() as stack:
        yield [stack.enter_context(Proxy(server.port)) for _ in range(3)]


def check_silence(audit: Audit, nodes: list[Node], since: float, until: float) -> None:
    """Nobody sends with a lease that may have expired."""
    labels = {node.label for node in nodes}
    early = [each for each in audit.sent if each.label in labels and since < each.time < until]
    assert not early, f"sent without a lease, {early[-1].time - since:.2f} s too late"


@pytest.mark.parametrize("how", ["fast", "immediate"])
def test_the_database_goes_away_and_comes_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: How
) -> None:
    """5.6, 8: red, silent before the leases end, and by themselves at work again."""
    with (
        Server() as server,
        Receivers(tmp_path, slow=SLOW) as receivers,
        three_nodes(server, tmp_path) as cluster,
    ):
        with Load(cluster.urls, cluster.key, receivers.urls, per_second=50) as load:
            eventually(lambda: len(receivers.arrivals()) > 200)
            stopped = time.time()
            server.stop(how)
            eventually(lambda: not any(node.ready() for node in cluster.nodes))
            red = time.time() - stopped
            # The outage shall outlast the leases, by the clocks of real processes.
            time.sleep(max(0.0, stopped + cluster.lease_ttl + 2 - time.time()))
            started = time.time()
            server.start()
            eventually(lambda: all(node.ready() for node in cluster.nodes), seconds=30)
            green = time.time() - started
            count = len(receivers.arrivals())
            eventually(lambda: len(receivers.arrivals()) > count + 200, seconds=30)
        cluster.settle()
        with cluster.client() as client:
            audit = Audit.of(client, receivers.arrivals())
        cluster.terminate()
    audit.check(load.accepted, [Incident(None, stopped, started + 2)], in_flight=SLOW + 2)
    check_silence(audit, cluster.nodes, stopped + cluster.lease_ttl + UNDER_WAY, started)
    with capsys.disabled():
        print(
            f"\nPostgreSQL stopped ({how}) for {started - stopped:.1f} s under 3 nodes: "
            f"all red after {red:.2f} s, green {green:.2f} s after its return; "
            f"{len(load.accepted)} batches accepted, 0 lost, {len(audit.strays)} attempts "
            f"repeated, {interrupted(audit)} cut short; "
            f"tries that failed {dict(load.repeats)}, slowest answer {load.slowest:.1f} s"
        )


@pytest.mark.parametrize(
    ("who", "how"),
    # All of them cut off is a database that was stopped.
    [("one", "cut"), ("one", "blackhole"), ("one", "deaf"), ("all", "blackhole"), ("all", "deaf")],
)
def test_nodes_are_cut_off_from_the_database(
    server: Server,
    proxies: list[Proxy],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    who: str,
    how: str,
) -> None:
    """5.6, 8: red, silent before its lease ends, its deliveries taken over, and back by itself."""
    ports = [proxy.port for proxy in proxies]
    with (
        Receivers(tmp_path, slow=SLOW) as receivers,
        PostgresCluster(server, tmp_path, ports, RETRIES) as cluster,
    ):
        number = 1 if who == "one" else 3
        cut_off, proxies = cluster.nodes[:number], proxies[:number]
        with Load(cluster.urls, cluster.key, receivers.urls, per_second=50) as load:
            eventually(lambda: len(receivers.arrivals()) > 200)
            lost = time.time()
            for proxy in proxies:
                if how == "cut":
                    proxy.cut()
                else:
                    proxy.blackhole("both" if how == "blackhole" else "to_client")
            silent_from = time.time() + cluster.lease_ttl + UNDER_WAY
            eventually(lambda: not any(node.ready() for node in cut_off))
            red = time.time() - lost
            assert all(node.ready() for node in cluster.nodes[number:])
            # Long enough for the leases of those cut off to end, and for others to take over.
            time.sleep(max(0.0, lost + 2 * cluster.lease_ttl + 1 - time.time()))
            back = time.time()
            for proxy in proxies:
                proxy.restore()
            eventually(lambda: all(node.ready() for node in cluster.nodes), seconds=40)
            green = time.time() - back
            count = len(receivers.arrivals())
            eventually(lambda: len(receivers.arrivals()) > count + 200, seconds=30)
        cluster.settle()
        with cluster.client() as client:
            audit = Audit.of(client, receivers.arrivals())
        cluster.terminate()
    incidents = [Incident(node.label, lost, back + 2) for node in cut_off]
    audit.check(load.accepted, incidents, in_flight=SLOW + 2)
    check_silence(audit, cut_off, silent_from, back)
    for node in cut_off:
        assert any(each.label == node.label and each.time > back for each in audit.sent)
    with capsys.disabled():
        print(
            f"\n{who} of 3 nodes cut off ({how}) for {back - lost:.1f} s: red after {red:.2f} s, "
            f"green {green:.2f} s after the return; {len(load.accepted)} batches accepted, 0 lost, "
            f"{len(audit.strays)} attempts repeated, {interrupted(audit)} cut short; "
            f"tries that failed {dict(load.repeats)}, slowest answer {load.slowest:.1f} s"
        )


def test_commits_whose_answer_is_lost(
    server: Server,
    proxies: list[Proxy],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """5.6: the database did what it was told and its node never learns, time and again; no claim
    that was made so stays with a node that does not know of it."""
    ports = [proxy.port for proxy in proxies]
    dice = random.Random(20_260_510)
    with (
        Receivers(tmp_path) as receivers,
        PostgresCluster(server, tmp_path, ports, lease_ttl=30) as cluster,
    ):
        # So that what is cut off is a commit, most of the time.
        cluster.slow_commits(0.15)
        with Load(cluster.urls, cluster.key, receivers.urls, per_second=50) as load:
            began = time.time()
            for proxy in proxies * 3:
                eventually(partial(_has_accepted, load, len(load.accepted) + 20))
                time.sleep(dice.uniform(0, 0.2))  # at any moment of a commit
                proxy.cut()
                proxy.restore()
            ended = time.time()
        cluster.settle()
        with cluster.client() as client:
            audit = Audit.of(client, receivers.arrivals())
        assert not any(node.events("lease_lost") for node in cluster.nodes)
        cluster.terminate()
    audit.check(load.accepted, [Incident(None, began, ended + 1)], in_flight=2)
    with capsys.disabled():
        print(
            f"\n9 connections cut in the middle of a commit, most of them: {len(load.accepted)} "
            f"batches accepted, 0 lost, {load.replayed} of them by a commit that was taken for "
            f"failed; {len(audit.strays)} attempts repeated; "
            f"tries that failed {dict(load.repeats)}, slowest answer {load.slowest:.1f} s"
        )
    assert load.replayed > 0


def test_a_node_that_can_only_read(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """5.6, 8: as when its database is demoted. It sees the payloads of what is due and yet sends
    nothing once its lease may have expired, and the others have its retries."""
    later = '[delivery.default_policy]\ndelays = ["3500ms"]\n'
    failing = [{"status": 503}, {}]
    with (
        ReceiverProcess(tmp_path / "failing.jsonl", failing, by_attempt=True) as receiver,
        PostgresCluster(server, tmp_path, [server.port] * 3, later) as cluster,
    ):
        node, *others = cluster.nodes
        batch = {"status": "succeeded", "callback_url": receiver.url}
        with cluster.client(1) as client:
            made = client.post("/v1/batches/bulk", json={"batches": [batch] * 100}).json()
            accepted = {result["id"] for result in made["results"]}
            eventually(lambda: client.get("/v1/stats").json()["waiting"] == 100)
        held = cluster.claims(node.name)
        assert len(held) == 100
        cluster.refuse_writes(node)
        lost = time.time()
        eventually(lambda: not node.ready())
        assert httpx.get(f"{node.url}/healthz").status_code == 200
        eventually(lambda: held <= claimed_by(cluster, others))
        taken = time.time() - lost
        eventually(lambda: len(receiver.arrivals()) >= 200)
        cluster.allow_writes()
        back = time.time()
        eventually(node.ready, seconds=30)
        cluster.settle()
        with cluster.client(1) as client:
            accepted.add(client.post("/v1/batches", json=batch).json()["id"])
        cluster.settle()
        with cluster.client() as client:
            audit = Audit.of(client, receiver.arrivals())
        cluster.terminate()
    audit.check(accepted, [Incident(node.label, lost, back)], in_flight=2)
    check_silence(audit, [node], lost + cluster.lease_ttl + UNDER_WAY, back)
    assert audit.sent[-1].label == node.label, "it does not take part again"
    with capsys.disabled():
        print(
            f"\n1 of 3 nodes could only read, with 100 retries waiting: the others had claimed "
            f"them after {taken:.2f} s (lease {cluster.lease_ttl:g} s), attempts by node "
            f"{audit.by_node()}, {len(audit.strays)} repeated"
        )


def interrupted(audit: Audit) -> int:
    """How many attempts are on record as interrupted."""
    return sum(
        "interrupted" in (attempt["error_message"] or "") for attempt in audit.recorded.values()
    )


def claimed_by(cluster: PostgresCluster, nodes: list[Node]) -> set[str]:
    return set().union(*(cluster.claims(node.name) for node in nodes))


def _has_accepted(load: Load, more_than: int) -> bool:
    return len(load.accepted) > more_than
