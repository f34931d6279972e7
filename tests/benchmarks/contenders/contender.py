"""What a contender is to the benchmark: a definition that can be started, and what then runs."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

from tests.benchmarks.machine import Cores, pinned
from tests.benchmarks.producer import Job, Reply, Settings
from tests.benchmarks.receiver import Receiver

REPOSITORY: Final = Path(__file__).parents[3]
HOSTS: Final = 50


class NotInstalled(Exception):
    """A contender cannot run here; the message says what is missing and how to get it."""


class Failed(SystemExit):
    """A contender broke its promise, or did not work at all; the message says how."""


@dataclass(frozen=True)
class Bench:
    """What contenders are given.

    Attributes:
        directory: for databases and sockets; on the disk that is measured.
        cache: where --setup puts what contenders need.
        tree: the checkout that primeflowd is run from.
    """

    directory: Path
    cache: Path
    receiver: Receiver
    tree: Path = REPOSITORY

    def settings(
        self, size: int, connections: int, target: dict[str, Any], hosts: int = HOSTS
    ) -> Settings:
        return Settings(
            arrivals=str(self.receiver.arrivals.path),
            stamps=str(self.receiver.stamps),
            size=size,
            connections=connections,
            receiver_port=self.receiver.port,
            hosts=hosts,
            target=target,
        )


class Contender(Protocol):
    """A running contender."""

    producer: "Producer"

    def roots(self) -> list[int]:
        """Its server side: processes whose trees hold all that it consists of."""
        ...

    def complaint(self, accepted: int) -> str | None:
        """What its own books say against `accepted` callbacks, since its start, all being done.

        Asked again and again until it is None or time is up.
        """
        ...


class Definition(Protocol):
    """A row of the table."""

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int:
        """Callbacks handed in at once."""
        ...

    @property
    def cores(self) -> Cores: ...

    @property
    def promise(self) -> str:
        """What is on disk when a callback was accepted."""
        ...

    def versions(self, bench: Bench) -> Mapping[str, str]:
        """Of its parts.

        Raises:
            NotInstalled: a part is missing.
        """
        ...

    def start(self, bench: Bench) -> AbstractContextManager[Contender]:
        """Raises NotInstalled, or Failed."""
        ...


@dataclass
class Producer:
    """A producer process, see producer.py."""

    argv: list[str]
    settings: Settings
    cores: Cores
    environment: Mapping[str, str] = field(default_factory=dict)

    def __enter__(self) -> Self:
        with pinned(self.cores.load):
            self._process = subprocess.Popen(
                self.argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=REPOSITORY,
                env={**os.environ, **self.environment},
            )
        self._send(asdict(self.settings))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        if error is not None:
            self._process.kill()
        self._process.wait(30)
        assert self._process.stdout is not None
        self._process.stdout.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def begin(self, job: Job) -> None:
        self._send(asdict(job))

    def finish(self) -> Reply:
        """Wait for the end of the job."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Failed(f"the producer ended: {' '.join(self.argv)}")
        return Reply(**json.loads(line))

    def _send(self, value: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(value) + "\n")
        self._process.stdin.flush()


def http_producer(settings: Settings, cores: Cores) -> Producer:
    return Producer([sys.executable, "-m", "tests.benchmarks.http_producer"], settings, cores)
