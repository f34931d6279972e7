"""`python -m tests.benchmarks`: what one callback costs, end to end, with durability on.

Starts a real daemon on core 0, client and receiver on core 1, and runs the kinds of load in turns
(single, bulk, single, bulk, ...), so that a noisy minute of the machine hits all alike. Prints a
Markdown table of medians with minimum and maximum. A round in which a callback is lost or repeated
fails the run. Sizes: 64 connections, 50 destinations, callback bodies of about 600 bytes.

The CPU time is the daemon's user and system time from the first request of a round to its last
recorded attempt, divided by the callbacks of the round; the rate is callbacks per second of that.
"""

import argparse
import asyncio
import contextlib
import os
import platform
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from tests.benchmarks.load import Arrivals, Load, ReceiverProtocol, settle
from tests.benchmarks.seed import seed_waiting

KINDS = {"single POST": 1, "bulk of 100": 100}
HOSTS = 50
CONNECTIONS = {1: 64, 100: 8}


@dataclass
class Figures:
    """Samples of one kind of load, one per round."""

    cpu: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    rss: list[float] = field(default_factory=list)
    half_cpu: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    headroom: list[float] = field(default_factory=list)


class Daemon:
    """A primeflowd process on core 0 with a database of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.database = directory / "primeflowd.db"
        self.config = directory / "config.toml"
        self.config.write_text(
            f'state_directory = "{directory}"\n[api]\nbind = "127.0.0.1:0"\n'
            '[delivery.egress]\nallow = ["127.0.0.0/8"]\n'
        )
        self.key = self._command("keys", "create", "--org", "bench").strip()

    def start(self) -> float:
        """Start it; seconds until it served."""
        began = time.perf_counter()
        self._process = subprocess.Popen(
            ["taskset", "-c", "0", *self._argv("run")], stderr=subprocess.PIPE, text=True
        )
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if "daemon_ready" in line:
                url = next(w for w in line.split() if w.startswith("url=")).partition("=")[2]
                self.port = int(url.strip('"/').rpartition(":")[2])
                break
        else:
            raise SystemExit("the daemon did not start")
        took = time.perf_counter() - began
        self.watch = psutil.Process(self._process.pid)
        # Signed callbacks are the product; without a secret they go out unsigned.
        answer = httpx.post(
            f"http://127.0.0.1:{self.port}/v1/callback-secrets",
            headers={"Authorization": f"Bearer {self.key}"},
            json={},
        )
        answer.raise_for_status()
        return took

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        _, log = self._process.communicate(timeout=60)
        if self._process.returncode != 0:
            raise SystemExit(f"the daemon ended with {self._process.returncode}:\n{log}")

    def cpu(self) -> float:
        """User and system seconds so far, of all its threads."""
        times = self.watch.cpu_times()
        return float(times.user + times.system)

    def rss(self) -> float:
        return float(self.watch.memory_info().rss) / 1e6

    def unfinished(self) -> int:
        with contextlib.closing(sqlite3.connect(self.database)) as connection:
            query = "SELECT count(*) FROM deliveries WHERE claimed_by IS NOT NULL"
            return int(connection.execute(query).fetchone()[0])

    def check_rows(self) -> None:
        """Every succeeded delivery has exactly one attempt."""
        with contextlib.closing(sqlite3.connect(self.database)) as connection:
            succeeded, attempts = connection.execute(
                "SELECT (SELECT count(*) FROM deliveries WHERE status = 'succeeded'),"
                " (SELECT count(*) FROM attempts)"
            ).fetchone()
        if succeeded != attempts:
            raise SystemExit(f"{succeeded} deliveries succeeded in {attempts} attempts")

    def _argv(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "primeflowd", *words, "--config", str(self.config)]

    def _command(self, *words: str) -> str:
        return subprocess.run(self._argv(*words), check=True, capture_output=True, text=True).stdout


@contextlib.contextmanager
def daemon_on_disk(waiting: int) -> Iterator[tuple[Daemon, float]]:
    """A running daemon, with so many deliveries waiting for a retry tomorrow."""
    directory = Path(tempfile.mkdtemp(prefix="primeflowd-bench-"))
    try:
        daemon = Daemon(directory)
        if waiting:
            seed_waiting(daemon.database, waiting)
        started = daemon.start()
        yield daemon, started
        daemon.stop()
    finally:
        shutil.rmtree(directory)


async def one_round(
    daemon: Daemon, size: int, seconds: float, rate: float | None
) -> tuple[float, float, list[float], float]:
    """CPU µs per callback, callbacks/s, latencies in ms, and the load's own use of its core."""
    arrivals = Arrivals()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: ReceiverProtocol(arrivals), "0.0.0.0", 0)
    port = server.sockets[0].getsockname()[1]
    load = Load(daemon.port, daemon.key, size, HOSTS, port)
    began, own, cpu = time.perf_counter(), time.process_time(), daemon.cpu()
    if rate is None:
        await load.closed_loop(CONNECTIONS[size], began + seconds)
    else:
        await load.open_loop(rate / size, CONNECTIONS[size], began + seconds)
    arrived = await settle(lambda: len(arrivals.first) >= len(load.sent), 60)
    if not arrived or arrivals.first.keys() != load.sent.keys() or arrivals.repeated:
        raise SystemExit(
            f"{len(load.sent)} accepted, {len(arrivals.first)} arrived, "
            f"{arrivals.repeated} of them repeatedly"
        )
    await settle(lambda: daemon.unfinished() == 0, 60)
    took, count = time.perf_counter() - began, len(load.sent)
    used = (daemon.cpu() - cpu) / count * 1e6
    latencies = sorted((arrivals.first[k] - load.sent[k]) * 1e3 for k in load.sent)
    server.close()
    return used, count / took, latencies, (time.process_time() - own) / took


def measure(daemon: Daemon, rounds: int, seconds: float) -> dict[str, Figures]:
    """All kinds in turns; the first round only warms up."""
    figures = {name: Figures() for name in KINDS}
    for turn in range(rounds + 1):
        for name, size in KINDS.items():
            cpu, rate, _, own = asyncio.run(one_round(daemon, size, seconds, None))
            rss = daemon.rss()
            half = asyncio.run(one_round(daemon, size, seconds, rate / 2))
            if turn == 0:
                continue
            f = figures[name]
            f.cpu.append(cpu)
            f.rate.append(rate)
            f.rss.append(rss)
            f.headroom.append(1 - own)
            f.half_cpu.append(half[0])
            f.p50.append(half[2][len(half[2]) // 2])
            f.p99.append(half[2][int(len(half[2]) * 0.99)])
    daemon.check_rows()
    return figures


def spread(samples: list[float], digits: int = 0) -> str:
    middle, low, high = statistics.median(samples), min(samples), max(samples)
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def main() -> None:
    """Parse the command line, run, print."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--waiting", type=int, default=1_000_000, help="rows for the second part")
    options = parser.parse_args()
    os.sched_setaffinity(0, {1})
    print(f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, WAL, FULL sync")
    print(f"{options.rounds} rounds of {options.seconds:g} s, medians (min-max)\n")
    columns = (
        "waiting rows | load | CPU us/callback | callbacks/s | RSS MB | at half load: CPU us"
        " | p50 ms | p99 ms | load's spare core"
    )
    print(f"| {columns} |\n|{' --- |' * (columns.count('|') + 1)}")
    notes = []
    for waiting in dict.fromkeys((0, options.waiting)):
        with daemon_on_disk(waiting) as (daemon, started):
            rest = daemon.rss()
            for name, f in measure(daemon, options.rounds, options.seconds).items():
                print(
                    f"| {waiting:,} | {name} | {spread(f.cpu)} | {spread(f.rate)} | {spread(f.rss)}"
                    f" | {spread(f.half_cpu)} | {spread(f.p50, 1)} | {spread(f.p99, 1)}"
                    f" | {min(f.headroom):.0%} |",
                    flush=True,
                )
            notes.append(
                f"With {waiting:,} waiting rows: served after {started:.1f} s, "
                f"RSS at rest {rest:.0f} MB, database {daemon.database.stat().st_size / 1e6:.0f} MB"
            )
    print("\n" + "\n".join(notes))


if __name__ == "__main__":
    main()
