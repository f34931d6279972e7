"""BullMQ on Redis, delivering with undici: the fast end of what is usually built."""

import contextlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.benchmarks import setup
from tests.benchmarks.contenders import redis
from tests.benchmarks.contenders.contender import Bench, Contender, NotInstalled, Producer
from tests.benchmarks.machine import Cores, pinned
from tests.benchmarks.processes import ended, environment_with
from tests.benchmarks.producer import Body

CONCURRENCY: Final = 64
CONNECTIONS: Final = {1: 64, 100: 8}
_HERE: Final = Path(__file__).parent
_PREFIX: Final = "bull:callbacks"
_LEFT: Final = (
    ("LLEN", "wait"),
    ("LLEN", "active"),
    ("ZCARD", "delayed"),
    ("ZCARD", "failed"),
)


class _Running(redis.Running):
    def complaint(self, accepted: int) -> str | None:
        added = self.broker.count("GET", f"{_PREFIX}:id")
        left = {name: self.broker.count(how, f"{_PREFIX}:{name}") for how, name in _LEFT}
        if added == accepted and not any(left.values()):
            return None
        return f"{accepted} accepted, {added} jobs made, left of them: {left}"


@dataclass(frozen=True)
class BullMQ:
    """A definition; `size` above 1 means addBulk(), `unix` that Redis is reached by its socket."""

    name: str
    size: int
    cores: Cores
    unix: bool = False
    promise: str = redis.PROMISE

    def versions(self, bench: Bench) -> Mapping[str, str]:
        if shutil.which("node") is None:
            raise NotInstalled("no node")
        found = {"Redis": redis.version()}
        for name, package in (("BullMQ", "bullmq"), ("undici", "undici")):
            about = setup.node_modules_of(bench.cache) / package / "package.json"
            if not about.exists():
                raise NotInstalled(f"{package} is not installed: run with --setup")
            found[name] = json.loads(about.read_text())["version"]
        done = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True)
        return {**found, "Node": done.stdout.strip().removeprefix("v")}

    @contextlib.contextmanager
    def start(self, bench: Bench) -> Iterator[Contender]:
        self.versions(bench)
        directory = Path(tempfile.mkdtemp(prefix="bullmq-", dir=bench.directory))
        try:
            with redis.running(directory, self.cores) as broker:
                way = {"path": str(broker.socket)} if self.unix else {"port": broker.port}
                environment = {
                    "NODE_PATH": str(setup.node_modules_of(bench.cache)),
                    "BENCHMARK_BROKER": json.dumps(way),
                    "BENCHMARK_CONCURRENCY": str(CONCURRENCY),
                }
                log = directory / "worker.log"
                with log.open("wb") as output, pinned(self.cores.server):
                    process = subprocess.Popen(
                        ["node", str(_HERE / "bullmq_worker.js")],
                        stdout=output, stderr=output, env=environment_with(environment),
                    )  # fmt: skip
                target = {"broker": way, "body": Body().template}
                producer = Producer(
                    ["node", str(_HERE / "bullmq_producer.js")],
                    bench.settings(self.size, CONNECTIONS[self.size], target),
                    self.cores,
                    environment,
                )
                with ended(process, log), producer:
                    yield _Running(producer, broker, process.pid)
        finally:
            shutil.rmtree(directory, ignore_errors=True)
