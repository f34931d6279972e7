"""Requests at several nodes about one thing: one answer (contract 2.6, 4.1, 4.6, 4.8, 5.4)."""

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx
import pytest
from cluster import PostgresCluster, three_nodes
from server import Server

from primeflowd.testing.audit import Audit
from primeflowd.testing.daemon_process import eventually
from primeflowd.testing.receiver_process import ReceiverProcess

AT_ONCE = 20
SETTINGS = """
[delivery.default_policy]
delays = ["25s"]
max_retries = 9
"""

Call = Callable[[httpx.Client], httpx.Response]


class Site:
    """Three nodes, a client of each, a receiver that refuses and one that takes."""

    def __init__(
        self, cluster: PostgresCluster, refusing: ReceiverProcess, taking: ReceiverProcess
    ) -> None:
        self.cluster, self.refusing, self.taking = cluster, refusing, taking
        self.clients = [cluster.client(number) for number in (1, 2, 3)]
        self._threads = ThreadPoolExecutor(AT_ONCE)

    def close(self) -> None:
        self._threads.shutdown()
        for client in self.clients:
            client.close()

    def at_once(self, calls: list[Call]) -> list[httpx.Response]:
        """Make the calls, each at the next node in turn, all at the same time."""
        made = [
            self._threads.submit(call, self.clients[number % 3])
            for number, call in enumerate(calls)
        ]
        return [each.result(60) for each in made]

    def batch(self, receiver: ReceiverProcess, **fields: Any) -> dict[str, Any]:
        """Register a batch at the first node; by default one that has ended."""
        body = {"callback_url": receiver.url, "status": "succeeded"} | fields
        answer = self.clients[0].post("/v1/batches", json=body).raise_for_status()
        batch: dict[str, Any] = answer.json()
        return batch

    def history(self, batch_id: str) -> list[dict[str, Any]]:
        """Of the batch's deliveries, newest first, as the second node shows them."""
        answer = self.clients[1].get(f"/v1/batches/{batch_id}/callback").raise_for_status()
        deliveries: list[dict[str, Any]] = answer.json()
        return deliveries

    def waiting(self, batch_id: str) -> dict[str, Any]:
        """The batch's newest delivery, once its first attempt has failed."""

        def failed_once() -> dict[str, Any] | None:
            delivery = self.history(batch_id)[0]
            return delivery if delivery["attempt_count"] == 1 else None

        return eventually(failed_once)

    def cancel(self, delivery_id: str, number: int) -> None:
        path = f"/v1/deliveries/{delivery_id}/cancellation"
        assert self.clients[number - 1].post(path).status_code == 201


@pytest.fixture(scope="module")
def site(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("site")
    with (
        ReceiverProcess(directory / "refusing.jsonl", [{"status": 503}]) as refusing,
        ReceiverProcess(directory / "taking.jsonl") as taking,
        three_nodes(server, directory, SETTINGS) as cluster,
    ):
        site = Site(cluster, refusing, taking)
        yield site
        path = "/v1/deliveries?status_code=pending&limit=500"
        for delivery in site.clients[0].get(path).json()["items"]:
            site.cancel(delivery["id"], 1)
        cluster.settle()
        audit = Audit.of(site.clients[2], [*refusing.arrivals(), *taking.arrivals()])
        site.close()
        cluster.terminate()
        audit.check((), in_flight=0, also=audit.batches)


def test_one_of_many_redeliveries_is_made(site: Site) -> None:
    """4.8: of twenty at once, to three nodes, one gets 201 and nineteen 422; five times over."""
    batch = site.batch(site.refusing)
    path = f"/v1/batches/{batch['id']}/callback-redeliveries"
    for number in range(5):
        site.cancel(site.waiting(batch["id"])["id"], number % 3 + 1)
        answers = site.at_once([lambda client: client.post(path)] * AT_ONCE)
        assert Counter(answer.status_code for answer in answers) == {201: 1, 422: AT_ONCE - 1}
        refused = [answer.json() for answer in answers if answer.status_code == 422]
        assert {(each["error"], each["code"]) for each in refused} == {
            ("validation_error", "conflict")
        }
    assert len(site.history(batch["id"])) == 6


def test_one_idempotency_key_has_one_effect(site: Site) -> None:
    """2.6: the same bytes for all, or 409 for who comes while the first is still at it."""
    for number in range(10):
        headers = {"Idempotency-Key": f"once-{number}"}
        body = {"callback_url": site.taking.url, "status": "succeeded", "metadata": {"n": number}}
        post: Call = partial(_post, path="/v1/batches", json=body, headers=headers)
        answers = site.at_once([post] * AT_ONCE)
        codes = Counter(answer.status_code for answer in answers)
        assert codes[201] >= 1
        assert codes[201] + codes[409] == AT_ONCE
        made = [answer for answer in answers if answer.status_code == 201]
        assert len({answer.content for answer in made}) == 1
        assert sum("idempotency-replayed" not in answer.headers for answer in made) == 1
        for answer in answers:
            if answer.status_code == 409:
                assert answer.json()["code"] == "idempotency_in_progress"
        for client in site.clients:
            again = post(client)
            assert again.content == made[0].content
            assert again.headers["idempotency-replayed"] == "true"
    batches = site.clients[0].get("/v1/batches?limit=500").json()["items"]
    metadata = [each["metadata"]["n"] for each in batches if each["metadata"]]
    assert sorted(metadata) == list(range(10))


def _post(client: httpx.Client, path: str, **arguments: Any) -> httpx.Response:
    return client.post(path, **arguments)


def _patch(client: httpx.Client, path: str, json: object) -> httpx.Response:
    return client.patch(path, json=json)


def reports(batch_id: str, size: int, each: int, dice: random.Random) -> tuple[list[Call], int]:
    """Reports of a batch's items, some at a time, in any order; how many of them succeeded."""
    items = [
        {"sequence_index": index, "status_code": dice.choice(["succeeded", "failed"])}
        for index in range(size)
    ]
    succeeded = sum(item["status_code"] == "succeeded" for item in items)
    dice.shuffle(items)
    path = f"/v1/batches/{batch_id}/items"
    calls: list[Call] = [
        partial(_patch, path=path, json={"items": items[start : start + each]})
        for start in range(0, size, each)
    ]
    return calls, succeeded


def test_items_reported_to_several_nodes_add_up(site: Site) -> None:
    """4.1, 4.6: the last report ends the batch, whoever gets it; one delivery is made of it."""
    dice = random.Random(1)
    for _ in range(5):
        batch = site.batch(site.taking, status="running", items_total=60)
        calls, succeeded = reports(batch["id"], 60, 3, dice)
        assert {answer.status_code for answer in site.at_once(calls)} == {200}
        ended = site.clients[2].get(f"/v1/batches/{batch['id']}").json()
        assert ended["status"] == "partial_succeeded"
        (delivery,) = site.history(batch["id"])
        assert delivery["is_automatic"]
        output = delivery["payload"]["output"]
        assert (output["succeeded"], output["failed"]) == (succeeded, 60 - succeeded)
        assert len(output["items"]) == output["total"] == 60


def test_reports_and_completions_at_several_nodes_end_a_batch_once(site: Site) -> None:
    """4.1, 4.6: whichever comes first; later reports and other ends are refused, the batch, its
    payload and its one delivery agree."""
    dice = random.Random(2)
    for _ in range(8):
        batch = site.batch(site.taking, status="running", items_total=12)
        calls, _ = reports(batch["id"], 12, 1, dice)
        path = f"/v1/batches/{batch['id']}/completion"
        calls += [
            partial(_post, path=path, json={"status": status})
            for status in ("succeeded", "failed") * 3
        ]
        calls.append(partial(_post, path=f"/v1/batches/{batch['id']}/cancellation", json={}))
        dice.shuffle(calls)
        answers = site.at_once(calls)
        assert {answer.status_code for answer in answers} <= {200, 201, 422}
        ended = site.clients[2].get(f"/v1/batches/{batch['id']}").json()
        (delivery,) = site.history(batch["id"])
        assert delivery["payload"]["status"] == ended["status"]
        output = delivery["payload"]["output"]
        reported = sum(
            answer.status_code == 200 and answer.request.method == "PATCH" for answer in answers
        )
        counted = output["succeeded"] + output["failed"] if output else 0
        assert counted == reported, "a report was answered 200 and is not in the payload"
        transitions = [answer for answer in answers if answer.status_code == 201]
        assert len(transitions) == (0 if reported == 12 else 1)
        assert {answer.json()["status"] for answer in transitions} <= {ended["status"]}


def test_attempt_now_through_another_node(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """5.4: the order reaches the node that holds the delivery."""
    times = []
    for number in (1, 2, 3):
        batch = site.batch(site.refusing)
        delivery = site.waiting(batch["id"])
        assert delivery["id"] in site.cluster.claims(site.cluster.nodes[0].name)
        path = f"/v1/deliveries/{delivery['id']}/attempt-now"
        began = time.monotonic()
        assert site.clients[number - 1].post(path).status_code == 202
        eventually(partial(has_attempts, site, batch["id"], 2))
        times.append(time.monotonic() - began)
        site.cancel(delivery["id"], 1)
    with capsys.disabled():
        print(
            f"\nattempt-now: on record after {times[0]:.2f} s through the node that holds the "
            f"delivery, {times[1]:.2f} s and {times[2]:.2f} s through others"
        )
    assert max(times) < 3


def has_attempts(site: Site, batch_id: str, count: int) -> bool:
    return bool(site.history(batch_id)[0]["attempt_count"] == count)


def test_cancellation_through_another_node(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    """5.4: nothing is sent after it, and the node that held the delivery lets go of it."""
    holder = site.cluster.nodes[0].name
    batches = [site.batch(site.refusing) for _ in range(10)]
    deliveries = {site.waiting(batch["id"])["id"] for batch in batches}
    assert site.cluster.claims(holder) >= deliveries

    def let_go() -> bool:
        claims = site.cluster.claims(holder)
        held = site.clients[0].get("/v1/stats").json()["held"]
        return claims.isdisjoint(deliveries) and held == len(claims)

    began = time.monotonic()
    for delivery_id in deliveries:
        site.cancel(delivery_id, 2)
    eventually(let_go, seconds=5)
    took = time.monotonic() - began
    for batch in batches:
        (delivery,) = site.history(batch["id"])
        assert (delivery["status_code"], delivery["attempt_count"]) == ("failed", 1)
        assert delivery["failure_reason_code"] == "cancelled"
    with capsys.disabled():
        print(f"\n10 cancellations through another node: the holder let go after {took:.2f} s")
    assert took < 3
