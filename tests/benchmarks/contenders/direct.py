"""The receiver alone: the producer POSTs straight to it. Shows what the load side can take."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tests.benchmarks.contenders.contender import Bench, Contender, Producer, http_producer
from tests.benchmarks.machine import Cores


@dataclass
class _Running:
    producer: Producer
    receiver: int

    def roots(self) -> list[int]:
        return [self.receiver]

    def complaint(self, accepted: int) -> str | None:
        return None


@dataclass(frozen=True)
class ReceiverAlone:
    """Calibration: the receiver on the load's core as ever, the producer on the other."""

    cores: Cores
    name: str = "(the receiver alone)"
    size: int = 1
    promise: str = "nothing"

    def versions(self, bench: Bench) -> Mapping[str, str]:
        return {"receiver": bench.receiver.kind}

    @contextlib.contextmanager
    def start(self, bench: Bench) -> Iterator[Contender]:
        receiver = bench.receiver
        target = {"kind": "receiver", "nodes": [{"port": receiver.port, "key": ""}]}
        # The other way round than for contenders: here the producer has a core of its own.
        opposite = Cores(server=self.cores.load, load=self.cores.server)
        with http_producer(bench.settings(1, 64, target), opposite) as producer:
            yield _Running(producer, receiver.pid)
