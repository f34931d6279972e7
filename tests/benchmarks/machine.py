"""The machine: which cores a process may use, what it has used of them, and what machine it is.

CPU time is read from /proc/PID/stat, which counts all threads of a process, ended ones included,
to 10 ms. A tree is a process and everything that it started; what its ended children used is in
the `cutime` of their parent.
"""

import contextlib
import os
import platform
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple, TypeVar

T = TypeVar("T")

_TICK: Final = os.sysconf("SC_CLK_TCK")
_PROC: Final = Path("/proc")
_AVAILABLE: Final = frozenset(os.sched_getaffinity(0))
"""As this process was started; it confines itself later."""


class Cores(NamedTuple):
    """Where the two sides of a measurement run."""

    server: frozenset[int]
    load: frozenset[int]

    @property
    def text(self) -> str:
        """How the report shows it."""
        if self.server == self.load:
            return f"{len(self.server)}, shared"
        return str(len(self.server))


def apart() -> Cores:
    """One core for the server side, another one for generator and receiver."""
    available = sorted(_AVAILABLE)
    if len(available) < 2:
        raise SystemExit("two cores are needed: one for what is measured, one for its load")
    return Cores(frozenset(available[:1]), frozenset(available[1:2]))


def together() -> Cores:
    """Everything on the same two cores."""
    cores = apart()
    both = cores.server | cores.load
    return Cores(both, both)


@contextlib.contextmanager
def pinned(cores: Iterable[int]) -> Iterator[None]:
    """Processes started inside inherit these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def tree(root: int) -> list[int]:
    """`root` and all its living descendants."""
    found = [root]
    for pid in found:
        with contextlib.suppress(OSError):
            for thread in (_PROC / str(pid) / "task").iterdir():
                with contextlib.suppress(OSError):
                    found += map(int, (thread / "children").read_text().split())
    return found


def move(root: int, cores: Iterable[int]) -> None:
    """Give a running tree, all threads of it, other cores."""
    for pid in tree(root):
        with contextlib.suppress(OSError):
            for thread in (_PROC / str(pid) / "task").iterdir():
                with contextlib.suppress(OSError):
                    os.sched_setaffinity(int(thread.name), cores)


def cpu_ticks(stat: str) -> int:
    """User and system time in a line of /proc/PID/stat, its own and of children waited for.

    The second field is the name in parentheses, which may hold spaces and parentheses itself.
    """
    fields = stat.rpartition(")")[2].split()
    return sum(map(int, fields[11:15]))


def cpu_seconds(roots: Iterable[int]) -> float:
    """CPU seconds used so far by these trees."""
    return sum(_of_each(roots, lambda at: cpu_ticks((at / "stat").read_text()))) / _TICK


def busy_seconds(cores: Iterable[int]) -> float:
    """What these cores have done so far, for whomever: interrupts and time stolen included."""
    lines = (_PROC / "stat").read_text().splitlines()
    ticks = {
        line.split()[0]: list(map(int, line.split()[1:9])) for line in lines if line[:3] == "cpu"
    }
    # user, nice, system, idle, iowait, irq, softirq, steal
    return sum(sum(t[:3]) + sum(t[5:]) for t in (ticks[f"cpu{core}"] for core in cores)) / _TICK


def rss_mb(roots: Iterable[int]) -> float:
    """Resident megabytes; pages that processes share count once for each."""
    return sum(_of_each(roots, lambda at: _kilobytes(at / "status", "VmRSS"))) / 1e3


def pss_mb(roots: Iterable[int]) -> float:
    """Resident megabytes; a page shared by n processes counts 1/n for each."""
    return sum(_of_each(roots, lambda at: _kilobytes(at / "smaps_rollup", "Pss"))) / 1e3


def open_files(roots: Iterable[int]) -> int:
    """Open file descriptors."""
    return sum(_of_each(roots, lambda at: len(list((at / "fd").iterdir()))))


def _of_each(roots: Iterable[int], look: Callable[[Path], T]) -> list[T]:
    found = []
    for root in roots:
        for pid in tree(root):
            # A process may end between two looks.
            with contextlib.suppress(OSError):
                found.append(look(_PROC / str(pid)))
    return found


def _kilobytes(path: Path, name: str) -> float:
    match = re.search(rf"^{name}:\s+(\d+) kB", path.read_text(), re.MULTILINE)
    return float(match[1]) * 1.024 if match else 0.0


def facts(directory: Path) -> dict[str, str]:
    """What figures depend on: hardware, system, and the disk under `directory`."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": f"{_processor()}, {len(_AVAILABLE)} cores{_guest()}",
        "memory": f"{_kilobytes(_PROC / 'meminfo', 'MemTotal') / 1e6:.0f} GB",
        "kernel": platform.release(),
        "system": platform.freedesktop_os_release().get("PRETTY_NAME", "unknown"),
        "disk": f"{file_system(directory)}; append of 4 KiB and fdatasync: "
        f"{sync_cost(directory) * 1e6:.0f} µs (median)",
        "load average at the start": f"{os.getloadavg()[0]:.2f}",
    }


def file_system(directory: Path) -> str:
    """Type of the file system that `directory` is on."""
    where = str(directory.resolve())
    mounts = [line.split()[1:3] for line in (_PROC / "mounts").read_text().splitlines()]
    over = [
        (point, kind)
        for point, kind in mounts
        if f"{where}/".startswith(f"{point}/".replace("//", "/"))
    ]
    return max(over, key=lambda mount: len(mount[0]))[1] if over else "unknown"


def sync_cost(directory: Path) -> float:
    """Seconds that a small durable append takes: what is below every figure of a durable queue."""
    block, samples = os.urandom(4096), []
    with tempfile.NamedTemporaryFile(dir=directory) as file:
        for _ in range(100):
            began = time.perf_counter()
            os.write(file.fileno(), block)
            os.fdatasync(file.fileno())
            samples.append(time.perf_counter() - began)
    return median(samples)


def _cpuinfo(name: str) -> str:
    match = re.search(rf"^{name}\s*:\s*(.*)$", (_PROC / "cpuinfo").read_text(), re.MULTILINE)
    return match[1] if match else ""


def _processor() -> str:
    return _cpuinfo("model name") or platform.machine()


def _guest() -> str:
    return " (virtual machine)" if "hypervisor" in _cpuinfo("flags").split() else ""
