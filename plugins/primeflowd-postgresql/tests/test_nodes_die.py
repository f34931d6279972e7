"""Nodes that are killed, stand still or are drained, on one PostgreSQL (contract 5.6, 8)."""

import random
import signal
import time
from pathlib import Path

import pytest
from cluster import IN_FLIGHT, three_nodes
from server import Server

from primeflowd.testing.audit import Audit, Incident
from primeflowd.testing.daemon_process import eventually
from primeflowd.testing.load import Load, Receivers
from primeflowd.testing.mishaps import Kills, spread
from primeflowd.testing.receiver_process import ReceiverProcess

KILLS = 20


def test_twenty_kills_of_three_nodes_lose_nothing(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """5.6: under load; what a dead node held, the others take over after its lease."""
    dice = random.Random(20_260_508)
    with Receivers(tmp_path) as receivers, three_nodes(server, tmp_path) as cluster:
        kills = Kills(cluster, cluster.claims, dice)
        with Load(cluster.urls, cluster.key, receivers.urls, per_second=50) as load, kills:
            for _ in range(KILLS):
                time.sleep(dice.uniform(0.2, 1.5))  # at any moment of the work of real processes
                kills.kill_one(down=dice.uniform(0, 1.0))
        cluster.settle()
        with cluster.client() as client:
            audit = Audit.of(client, receivers.arrivals())
        cluster.terminate()
    audit.check(load.accepted, kills.incidents, in_flight=IN_FLIGHT)
    kills.check_strays(audit.strays)
    assert set(audit.by_node()) == {1, 2, 3}
    takeovers = kills.takeovers(audit.sent)
    with capsys.disabled():
        print(
            f"\n{KILLS} kills of 3 nodes on one PostgreSQL: {len(load.accepted)} batches accepted, "
            f"0 lost, {len(audit.recorded)} attempts, by node {audit.by_node()}, "
            f"{len(audit.strays)} repeated because a kill cut them; "
            f"{len(takeovers)} takeovers (lease {cluster.lease_ttl:g} s): {spread(takeovers)}; "
            f"tries that failed {dict(load.repeats)}, slowest answer {load.slowest:.1f} s"
        )
    assert len(load.accepted) > 500
    assert len(takeovers) > KILLS / 2
    # A third of the lease until somebody looks, and what a busy machine takes to start sending.
    assert max(takeovers) < 2 * cluster.lease_ttl + 1


@pytest.mark.parametrize("resumed_when", ["the others are at it", "the others are done"])
def test_a_node_that_stands_still_sends_nothing_of_another(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], resumed_when: str
) -> None:
    """5.6: `kill -STOP` for longer than the lease, then `-CONT`: nothing is sent or written of
    what others hold by then, and the node takes part again."""
    retries = '[delivery.default_policy]\ndelays = ["6s"]\n'
    failing = [{"status": 503}, {}]
    with (
        ReceiverProcess(tmp_path / "failing.jsonl", failing, by_attempt=True) as waited_for,
        ReceiverProcess(tmp_path / "slow.jsonl", [{"delay": 1.5}]) as slow,
        three_nodes(server, tmp_path, retries) as cluster,
    ):
        node = cluster.nodes[0]
        waiting = {"status": "succeeded", "callback_url": waited_for.url}
        sending = {"status": "succeeded", "callback_url": slow.url}
        with cluster.client(1) as client:
            made = client.post("/v1/batches/bulk", json={"batches": [waiting] * 300}).json()
            eventually(lambda: client.get("/v1/stats").json()["waiting"] == 300)
            made["results"] += client.post(
                "/v1/batches/bulk", json={"batches": [sending] * 20}
            ).json()["results"]
            accepted = {result["id"] for result in made["results"]}
            eventually(slow.arrivals)
        held = cluster.claims(node.name)
        node.pause()
        stopped = time.time()
        # What has left it arrives all the same, and nobody can tell that it was the last.
        time.sleep(0.3)
        arrived = time.time()
        cut = {a.headers["primeflow-request-id"] for a in slow.arrivals()}
        assert len(held) == 320
        eventually(lambda: not cluster.claims(node.name))
        freed = time.time() - stopped
        if resumed_when == "the others are at it":
            # Some sent, some under way, some still to be sent; it finds its lease gone at once.
            eventually(lambda: len(waited_for.arrivals()) > 350)
            node.resume()
        else:
            # All are long due on its wheel, and it is long in finding out that they are not its.
            eventually(lambda: len(waited_for.arrivals()) == 600)
            cluster.refuse_writes(node)
            node.resume()
            eventually(lambda: node.events("lease_lapsed"))
            eventually(lambda: len(node.events("lease_not_renewed")) > 2)
            cluster.allow_writes()
        paused = time.time() - stopped
        eventually(lambda: node.events("lease_lost"))
        cluster.settle()
        with cluster.client(1) as client:
            batch = client.post("/v1/batches", json=sending).json()
        eventually(lambda: batch["id"] in slow.succeeded())
        assert node.ready()
        cluster.settle()
        with cluster.client(2) as client:
            audit = Audit.of(client, [*waited_for.arrivals(), *slow.arrivals()])
        cluster.terminate()
    audit.check(
        accepted | {batch["id"]}, [Incident(node.label, stopped, arrived)], in_flight=IN_FLIGHT
    )
    assert {stray.attempt_id for stray in audit.strays} == cut
    assert audit.sent[-1].label == node.label, "it does not take part again"
    with capsys.disabled():
        print(
            f"\n1 of 3 nodes stood still for {paused:.1f} s with 320 deliveries, {len(cut)} of "
            f"them being sent, and woke when {resumed_when}: they had them after {freed:.2f} s "
            f"(lease {cluster.lease_ttl:g} s), by node {audit.by_node()}; none was sent twice"
        )


def test_nodes_that_stand_still_under_load(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """5.6: paused at any moment, as in the middle of a commit, and for less than the lease or for
    more: what it has begun blocks nobody, and nothing is lost."""
    dice = random.Random(20_260_509)
    incidents = []
    with Receivers(tmp_path) as receivers, three_nodes(server, tmp_path) as cluster:
        with Load(cluster.urls, cluster.key, receivers.urls, per_second=50) as load:
            for pause in (0.5, 3.5, 1.9, 5.0):
                time.sleep(dice.uniform(0.5, 1.5))  # at any moment of the work of real processes
                node = dice.choice(cluster.nodes)
                node.pause()
                began = time.time()
                time.sleep(pause)  # by the clock of the others, whose leases go on
                node.resume()
                incidents.append(Incident(node.label, began, time.time() + 1))
                eventually(node.ready)
        cluster.settle()
        with cluster.client() as client:
            audit = Audit.of(client, receivers.arrivals())
        cluster.terminate()
    audit.check(load.accepted, incidents, in_flight=IN_FLIGHT)
    lost = sum(len(node.events("lease_lost")) for node in cluster.nodes)
    with capsys.disabled():
        print(
            f"\n4 pauses of 3 nodes under load, {lost} longer than a lease: "
            f"{len(load.accepted)} batches accepted, 0 lost, {len(audit.recorded)} attempts, "
            f"{len(audit.strays)} repeated; "
            f"tries that failed {dict(load.repeats)}, slowest answer {load.slowest:.1f} s"
        )
    assert lost >= 2


def test_a_drained_node_leaves_its_retries_to_the_others_at_once(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """8: it gives up what waits before what is under way has ended, and the others have it long
    before any lease could expire."""
    retries = '[delivery.default_policy]\ndelays = ["15s"]\n'
    failing = [{"status": 503}, {}]
    with (
        ReceiverProcess(tmp_path / "failing.jsonl", failing, by_attempt=True) as waited_for,
        ReceiverProcess(tmp_path / "slow.jsonl", [{"delay": 5}]) as slow,
        three_nodes(server, tmp_path, retries, lease_ttl=60) as cluster,
    ):
        node, *others = cluster.nodes
        waiting = {"status": "succeeded", "callback_url": waited_for.url}
        sending = {"status": "succeeded", "callback_url": slow.url}
        with cluster.client(1) as client:
            made = client.post("/v1/batches/bulk", json={"batches": [waiting] * 500}).json()
            accepted = {result["id"] for result in made["results"]}
            eventually(lambda: client.get("/v1/stats").json()["waiting"] == 500)
            held = cluster.claims(node.name)
            accepted.add(client.post("/v1/batches", json=sending).json()["id"])
        assert len(held) == 500
        eventually(slow.arrivals)
        began = time.monotonic()
        node.process.send_signal(signal.SIGTERM)

        def taken_over() -> bool:
            return set().union(*(cluster.claims(each.name) for each in others)) >= held

        eventually(taken_over)
        had = time.monotonic() - began
        assert node.running(), "it has waited until all was over"
        assert node.wait() == 0
        drained = time.monotonic() - began
        assert cluster.execute("SELECT count(*) FROM nodes") == [(2,)]
        cluster.settle()
        with cluster.client() as client:
            audit = Audit.of(client, [*waited_for.arrivals(), *slow.arrivals()])
        cluster.terminate()
    audit.check(accepted, in_flight=0)
    assert len(audit.sent) == 1001
    with capsys.disabled():
        print(
            f"\ndrain of 1 of 3 nodes with 500 waiting retries: the others had them all after "
            f"{had:.2f} s, while it finished what was under way ({drained:.2f} s); attempts by "
            f"node {audit.by_node()}"
        )
