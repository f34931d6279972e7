"""Starts the receiver: the C program where there is a compiler, else the one in Python."""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.benchmarks.ledger import Arrivals
from tests.benchmarks.machine import Cores, pinned

SOURCE: Final = Path(__file__).with_name("receiver.c")

CAPACITY: Final = 64_000_000
"""Numbers of a run; the file is sparse, 16 bytes for each that is used."""


@dataclass(frozen=True)
class Receiver:
    """A running receiver.

    Attributes:
        kind: for the report.
        stamps: the producers' file, beside the receiver's own.
    """

    kind: str
    pid: int
    port: int
    arrivals: Arrivals
    stamps: Path


@contextlib.contextmanager
def running(directory: Path, cache: Path, cores: Cores) -> Iterator[Receiver]:
    """A receiver that keeps its files in `directory`."""
    arrivals = Arrivals(directory / "arrivals", CAPACITY)
    program = compiled(cache)
    if program:
        kind, argv = "C, epoll", [str(program)]
    else:
        kind = "Python, asyncio and httptools"
        argv = [sys.executable, "-m", "tests.benchmarks.receiver_fallback"]
    with pinned(cores.load):
        process = subprocess.Popen(
            [*argv, str(arrivals.path)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit("the receiver did not start")
        yield Receiver(kind, process.pid, int(line), arrivals, directory / "stamps")
    finally:
        process.kill()
        process.communicate()
        arrivals.close()


def compiled(cache: Path) -> Path | None:
    """The program, compiled once for each state of its source; None without a compiler."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return None
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    program = cache / f"receiver-{digest}"
    if not program.exists():
        cache.mkdir(parents=True, exist_ok=True)
        fresh = program.with_suffix(f".{os.getpid()}")
        subprocess.run([compiler, "-O2", "-o", str(fresh), str(SOURCE)], check=True)
        fresh.rename(program)
    return program
