"""A Redis server of one contender's own: append-only file synced every second, no snapshots.

Contenders reach it over the loopback, as its clients do by themselves, and as PostgreSQL is reached
here; who wants to save that has a Unix socket.
"""

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.benchmarks.contenders.contender import Failed, NotInstalled, Producer
from tests.benchmarks.machine import Cores, pinned

PROMISE: Final = "Redis AOF, appendfsync everysec: up to a second can be lost; no attempt recorded"


@dataclass(frozen=True)
class Redis:
    """A running server."""

    pid: int
    port: int
    socket: Path

    def count(self, *command: str) -> int:
        """The answer to a command that answers with a number; 0 for nothing."""
        request = f"*{len(command)}\r\n" + "".join(f"${len(w)}\r\n{w}\r\n" for w in command)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.socket))
            connection.sendall(request.encode())
            with connection.makefile("rb") as answer:
                line = answer.readline()
                if line.startswith(b"$") and not line.startswith(b"$-1"):
                    line = b":" + answer.readline()
        if line.startswith(b"$-1"):
            return 0
        if not line.startswith(b":"):
            raise Failed(f"redis answered {line!r} to {command}")
        return int(line[1:])


@dataclass
class Running:
    """A contender that has its queue there, and a worker of its own."""

    producer: Producer
    broker: Redis
    worker: int

    def roots(self) -> list[int]:
        return [self.broker.pid, self.worker]


def version() -> str:
    """Raises NotInstalled."""
    if shutil.which("redis-server") is None:
        raise NotInstalled("no redis-server: run with --setup, or apt-get install redis-server")
    done = subprocess.run(["redis-server", "--version"], capture_output=True, text=True, check=True)
    return done.stdout.partition("v=")[2].split()[0]


@contextlib.contextmanager
def running(directory: Path, cores: Cores) -> Iterator[Redis]:
    """A server with its files in `directory`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    path = directory / "redis.sock"
    settings = {
        "port": str(port),
        "unixsocket": str(path),
        "bind": "127.0.0.1",
        "dir": str(directory),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "daemonize": "no",
    }
    argv = [word for key, value in settings.items() for word in (f"--{key}", value)]
    with (directory / "redis.log").open("wb") as log, pinned(cores.server):
        process = subprocess.Popen(["redis-server", *argv], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 30
        while not path.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise Failed(f"Redis did not start:\n{(directory / 'redis.log').read_text()}")
            time.sleep(0.02)
        yield Redis(process.pid, port, path)
    finally:
        process.kill()
        process.wait()
