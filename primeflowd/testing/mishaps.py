"""Nodes of a cluster killed at random, and who took over what they held, and when."""

import random
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from statistics import median
from typing import Final, Self

from primeflowd.testing.audit import Incident, Sent
from primeflowd.testing.cluster import Cluster, Node
from primeflowd.testing.daemon_process import eventually

# What a dead node has sent may lie in the receiver's socket for a moment.
_UNDER_WAY: Final = 1.0


class Kills:
    """`kill -9` of one node after the other, each started again a little later; in the `with`
    block, which is left once all of them run.

    Args:
        claims: the ids of the deliveries claimed by the nodes whose id begins with this.

    Attributes:
        incidents: the kills so far.
        held: to each of them, the deliveries that the dead node held.
    """

    def __init__(
        self, cluster: Cluster, claims: Callable[[str], set[str]], dice: random.Random
    ) -> None:
        self.incidents: list[Incident] = []
        self.held: list[set[str]] = []
        self._cluster, self._claims, self._dice = cluster, claims, dice
        self._starting = ThreadPoolExecutor(len(cluster.nodes))
        self._started: list[Future[None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._starting.shutdown()
        for each in self._started:
            each.result()

    def kill_one(self, *, down: float) -> None:
        """Kill a random one of the nodes that serve, and have it started again after so many
        seconds. Waits until another one serves, too."""
        nodes = eventually(self._several)
        node = self._dice.choice(nodes)
        node.kill()
        now = time.time()
        self.held.append(self._claims(node.name))
        self.incidents.append(Incident(node.label, now, now + _UNDER_WAY))
        self._started.append(self._starting.submit(_start_after, down, node))

    def _several(self) -> list[Node] | None:
        nodes = [node for node in self._cluster.running() if node.ready()]
        return nodes if len(nodes) > 1 else None

    def takeovers(self, sent: Iterable[Sent]) -> list[float]:
        """For each kill, how many seconds later another first attempted what the dead one held.

        A kill is left out if nothing that it held was attempted later.
        """
        by_time = sorted(sent, key=lambda each: each.time)
        found = []
        for incident, held in zip(self.incidents, self.held, strict=True):
            times = [
                each.time - incident.start
                for each in by_time
                if each.delivery_id in held
                and each.label != incident.label
                and each.time > incident.start
            ]
            found += times[:1]
        return found

    def check_strays(self, strays: Iterable[Sent]) -> None:
        """What was sent and is on no record was in the hands of a node that was killed then.

        Raises:
            AssertionError: it was not.
        """
        held = {
            incident.label: held for incident, held in zip(self.incidents, self.held, strict=True)
        }
        for stray in strays:
            assert stray.delivery_id in held.get(stray.label, ()), stray


def _start_after(seconds: float, node: Node) -> None:
    time.sleep(seconds)
    node.start()


def spread(seconds: list[float]) -> str:
    """Minimum, median and maximum, for the log of a test."""
    if not seconds:
        return "none"
    return f"min {min(seconds):.2f} s, median {median(seconds):.2f} s, max {max(seconds):.2f} s"
