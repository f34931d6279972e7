"""Books and arrivals compared: what the nodes say of deliveries against what receivers got."""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from itertools import pairwise
from typing import Any, Self

import httpx
import msgspec

from primeflowd.testing.receiver_process import Arrival

# What a record may be off by: it rounds to milliseconds.
_ROUNDING = 0.002


class Sent(msgspec.Struct, frozen=True):
    """An attempt as a receiver saw it; `label` is that of the node's run, `time` as in Arrival."""

    delivery_id: str
    batch_id: str
    number: int
    attempt_id: str
    label: str
    time: float
    body: bytes


class Incident(msgspec.Struct, frozen=True):
    """A stretch of time in which a run was killed, paused or cut off; label None: each run.

    What it sent meanwhile, and so long before that it may not have been on record yet, may be
    sent again by another.
    """

    label: str | None
    start: float
    end: float

    def explains(self, sent: Sent, in_flight: float) -> bool:
        return self.label in (None, sent.label) and self.start - in_flight <= sent.time <= self.end


def sent(arrivals: Iterable[Arrival]) -> list[Sent]:
    """What nodes of a Cluster sent."""
    return [
        Sent(
            delivery_id=arrival.headers["primeflow-delivery-id"],
            batch_id=str(json.loads(arrival.body)["batch_id"]),
            number=int(arrival.headers["primeflow-attempt"]),
            attempt_id=arrival.headers["primeflow-request-id"],
            label=arrival.headers["primeflow-signature"].partition("=")[0],
            time=arrival.time,
            body=arrival.body,
        )
        for arrival in arrivals
    ]


def pages(client: httpx.Client, path: str) -> list[dict[str, Any]]:
    """All of a list, newest first."""
    found: list[dict[str, Any]] = []
    query = {"limit": "500"}
    while True:
        page = client.get(path, params=query).raise_for_status().json()
        found += page["items"]
        if page["next"] is None:
            return found
        query["cursor"] = page["next"]


def epoch(instant: str) -> float:
    """A timestamp of the API in seconds since the epoch."""
    return datetime.fromisoformat(instant).timestamp()


class Audit:
    """The state of things at the end of a test: every request answered, every delivery ended.

    Attributes:
        batches: the ids of all.
        deliveries: as the API shows them.
        sent: all that arrived, in that order.
        recorded: attempts as the API shows them, by id.
        strays: what arrived and is on no record.
    """

    def __init__(
        self,
        batches: Collection[str],
        deliveries: Sequence[dict[str, Any]],
        arrivals: Iterable[Arrival],
    ) -> None:
        self.batches = set(batches)
        self.deliveries = deliveries
        self.sent = sorted(sent(arrivals), key=lambda each: each.time)
        self.recorded = {
            attempt["id"]: attempt for each in self.deliveries for attempt in each["attempts"]
        }
        self.strays = [each for each in self.sent if each.attempt_id not in self.recorded]

    @classmethod
    def of(cls, client: httpx.Client, arrivals: Iterable[Arrival]) -> Self:
        """Of all that the client's org has, and of what its callbacks' receivers got."""
        batches = {batch["id"] for batch in pages(client, "/v1/batches")}
        return cls(batches, pages(client, "/v1/deliveries"), arrivals)

    def check(
        self,
        accepted: Collection[str],
        incidents: Sequence[Incident] = (),
        *,
        in_flight: float,
        also: Collection[str] = (),
    ) -> None:
        """Everything that must hold after a load, whatever befell the nodes.

        Args:
            accepted: batches that were answered with a 2xx, all to be delivered once.
            in_flight: seconds that an attempt may take from its arrival until it is on record.
            also: other batches that the test has made, with any deliveries or none.

        Raises:
            AssertionError: something does not; the message shows what.
        """
        lost = set(accepted) - self.batches
        assert not lost, f"accepted, and not in storage: {sorted(lost)[:5]}"
        surplus = self.batches - set(accepted) - set(also)
        assert not surplus, f"made twice: {sorted(surplus)[:5]}"
        of_load = [each for each in self.deliveries if each["batch_id"] not in also]
        times = Counter(each["batch_id"] for each in of_load)
        assert set(times) == set(accepted)
        assert not (twice := [batch for batch, count in times.items() if count > 1]), twice[:5]
        for each in of_load:
            assert each["status_code"] == "succeeded", each
        for each in self.deliveries:
            check_attempts(each)
        self.check_arrivals()
        unexplained = [
            stray
            for stray in self.strays
            if not any(incident.explains(stray, in_flight) for incident in incidents)
        ]
        assert not unexplained, f"sent without need, {len(unexplained)} times: {unexplained[:5]}"

    def check_arrivals(self) -> None:
        """What is on record as answered arrived, once, as it is on record."""
        arrived: Counter[str] = Counter(each.attempt_id for each in self.sent)
        assert not [one for one, count in arrived.items() if count > 1]
        answered = {
            attempt_id
            for attempt_id, attempt in self.recorded.items()
            if attempt["status_code"] is not None
        }
        assert not answered - set(arrived), "on record as answered, and never arrived"
        payloads = {each["id"]: each["payload_bytes"].encode() for each in self.deliveries}
        for each in self.sent:
            assert each.body == payloads[each.delivery_id], "not the frozen bytes"
            attempt = self.recorded.get(each.attempt_id)
            assert attempt is None or attempt["attempt_number"] == each.number, (each, attempt)

    def by_node(self) -> dict[int, int]:
        """How many attempts arrived from each node, by its number."""
        return dict(sorted(Counter(int(s.label.partition(".")[0]) for s in self.sent).items()))


def check_attempts(delivery: dict[str, Any]) -> None:
    """The attempts of an ended delivery are numbered without gaps, and followed each other.

    Raises:
        AssertionError: they are not, or did not; or it has not ended.
    """
    attempts = delivery["attempts"]
    numbers = [attempt["attempt_number"] for attempt in attempts]
    assert numbers == list(range(1, delivery["attempt_count"] + 1)), delivery
    assert delivery["completed_at"] is not None, delivery
    assert delivery["next_attempt_at"] is None, delivery
    for earlier, later in pairwise(attempts):
        end = epoch(earlier["created_at"]) + earlier["response_time_ms"] / 1000
        assert epoch(later["created_at"]) > end - _ROUNDING, ("attempts overlap", delivery)
