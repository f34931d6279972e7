"""What `--growth` reads of a daemon: lists, a batch's history, `why`, the shape of the queue."""

import contextlib
import http.client
import random
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.benchmarks.contenders.node import Node
from tests.benchmarks.figures import percentile

NAMES: Final = {
    "list": "`GET /v1/deliveries`, newest 50, ms",
    "middle": "`GET /v1/deliveries`, 50 from the middle, ms",
    "history": "`GET /v1/batches/{id}/callback`, ms",
    "why": "`GET /v1/deliveries/{id}/explain`, ms",
}

_SHAPE: Final = "/v1/deliveries/shape"
_READS: Final = 100


class Reader:
    """One connection to a daemon, and what is asked over it: from all over its tables."""

    def __init__(self, node: Node) -> None:
        self._key = node.key
        self._client = http.client.HTTPConnection("127.0.0.1", node.port, timeout=60)
        batches, deliveries, before = _chosen(node.directory / "primeflowd.db")
        self.paths = {
            "list": ["/v1/deliveries?limit=50"] * _READS,
            "middle": [f"/v1/deliveries?limit=50&created_before={before}"] * _READS,
            "history": [f"/v1/batches/{each}/callback" for each in batches],
            "why": [f"/v1/deliveries/{each}/explain" for each in deliveries],
        }

    def close(self) -> None:
        self._client.close()

    def shape(self) -> float:
        """Milliseconds of one look at the shape of the queue."""
        return self.read("/v1/deliveries/shape")

    def read(self, path: str) -> float:
        """Milliseconds of one GET."""
        began = time.perf_counter()
        self._client.request("GET", path, headers={"Authorization": f"Bearer {self._key}"})
        answer = self._client.getresponse()
        answer.read()
        if answer.status != 200:
            raise SystemExit(f"GET {path} answered {answer.status}")
        return (time.perf_counter() - began) * 1e3


def typical(readers: Sequence[Reader]) -> list[dict[str, float]]:
    """For each of them the medians in ms of the reads in NAMES.

    One read of each in turns, so that what disturbs the machine disturbs all.
    """
    found: list[dict[str, float]] = [{} for _ in readers]
    for name in NAMES:
        taken: list[list[float]] = [[] for _ in readers]
        for k in range(_READS):
            for each, reader in zip(taken, readers, strict=True):
                each.append(reader.read(reader.paths[name][k]))
        for result, each in zip(found, taken, strict=True):
            result[name] = percentile(each, 0.5)
    return found


def _chosen(database: Path) -> tuple[list[str], list[str], str]:
    """Ids of batches and of deliveries, and an instant in the middle."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        # Without reading it all: rowids have no gaps but at the end.
        (last,) = connection.execute("SELECT max(rowid) FROM deliveries").fetchone()
        chosen = [random.randint(1, last) for _ in range(_READS * 2)]
        marks = ",".join("?" * len(chosen))
        query = f"SELECT batch_id, id FROM deliveries WHERE rowid IN ({marks})"
        found = connection.execute(query, chosen).fetchall()
        (middle,) = connection.execute(
            "SELECT created_at FROM deliveries WHERE rowid >= ? ORDER BY rowid LIMIT 1",
            (last // 2,),
        ).fetchone()
    if not found:
        raise SystemExit(f"{database} has no deliveries to look at")
    random.shuffle(found)
    picked = [found[k % len(found)] for k in range(_READS)]
    before = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(middle / 1e6 + 1))
    return [batch for batch, _ in picked], [delivery for _, delivery in picked], before
