"""Celery on Redis, delivering with requests: what a Python team builds first.

Prefork workers; no gossip, mingle or heartbeat, which would only cost. Redis keeps the queue.
"""

import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.benchmarks import setup
from tests.benchmarks.contenders import redis
from tests.benchmarks.contenders.contender import (
    REPOSITORY,
    Bench,
    Contender,
    NotInstalled,
    Producer,
)
from tests.benchmarks.machine import Cores, pinned
from tests.benchmarks.processes import ended, environment_with

WORKERS: Final = 8
"""Prefork children. 16 were no faster on a core, and took twice the memory."""

_APP: Final = "tests.benchmarks.contenders.celery_app"


class _Running(redis.Running):
    def complaint(self, accepted: int) -> str | None:
        waiting = self.broker.count("LLEN", "celery")
        under_way = self.broker.count("HLEN", "unacked")
        if waiting or under_way:
            return f"{waiting} tasks waiting and {under_way} not acknowledged"
        return None


@dataclass(frozen=True)
class Celery:
    """A definition."""

    name: str
    cores: Cores
    size: int = 1
    promise: str = redis.PROMISE

    def versions(self, bench: Bench) -> Mapping[str, str]:
        python = setup.python_of(bench.cache)
        if not python.exists():
            raise NotInstalled("Celery is not installed: run with --setup")
        names = ("celery", "redis", "requests")
        code = f"from importlib.metadata import version as v; print(*map(v, {names}))"
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
        if done.returncode:
            raise NotInstalled("Celery is not installed completely: run with --setup")
        found = dict(zip(("Celery", "redis-py", "requests"), done.stdout.split(), strict=True))
        return {"Redis": redis.version(), **found}

    @contextlib.contextmanager
    def start(self, bench: Bench) -> Iterator[Contender]:
        self.versions(bench)
        directory = Path(tempfile.mkdtemp(prefix="celery-", dir=bench.directory))
        python = str(setup.python_of(bench.cache))
        try:
            with redis.running(directory, self.cores) as broker:
                environment = {"BENCHMARK_BROKER": f"redis://127.0.0.1:{broker.port}/0"}
                worker = [
                    *(python, "-m", "celery", "-A", _APP, "worker", "-P", "prefork"),
                    *("-c", str(WORKERS), "-l", "WARNING"),
                    *("--without-gossip", "--without-mingle", "--without-heartbeat"),
                ]
                producer = Producer(
                    [python, "-m", "tests.benchmarks.contenders.celery_producer"],
                    bench.settings(1, 1, {}),
                    self.cores,
                    environment,
                )
                with (directory / "worker.log").open("wb") as log, pinned(self.cores.server):
                    process = subprocess.Popen(
                        worker, cwd=REPOSITORY, stdout=log, stderr=log,
                        env=environment_with(environment),
                    )  # fmt: skip
                with ended(process, directory / "worker.log"), producer:
                    yield _Running(producer, broker, process.pid)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
