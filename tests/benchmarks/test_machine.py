import os
import subprocess
import sys
import time

from tests.benchmarks import machine

BURN = "import time\nwhile time.process_time() < 0.3: pass\n"


def test_cpu_ticks_counts_children_and_is_not_fooled_by_names() -> None:
    stat = "42 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 100 20 3 4 20 0 1 0"
    assert machine.cpu_ticks(stat) == 127


def test_cpu_of_a_tree_includes_living_and_ended_descendants() -> None:
    """A process that does nothing itself, but has one child that ends and one that stays."""
    script = (
        "import subprocess, sys\n"
        f"subprocess.run([sys.executable, '-c', {BURN!r}])\n"
        f"child = subprocess.Popen([sys.executable, '-c', {BURN!r} + 'print(1, flush=True)\\n"
        "import sys; sys.stdin.read()'], stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "child.stdout.readline(); print('ready', flush=True); sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert len(machine.tree(process.pid)) == 2
        assert machine.cpu_seconds([process.pid]) >= 0.55
        assert machine.rss_mb([process.pid]) > machine.pss_mb([process.pid]) > 1
        assert machine.open_files([process.pid]) >= 6
        process.communicate()


def test_processes_started_pinned_stay_so_and_we_do_not() -> None:
    before = os.sched_getaffinity(0)
    core = min(before)
    code = "import os, sys; print(sorted(os.sched_getaffinity(0)))"
    with machine.pinned([core]):
        shown = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
    assert shown.stdout.strip() == f"[{core}]"
    assert os.sched_getaffinity(0) == before


def test_busy_seconds_grow_as_a_core_works() -> None:
    core = min(os.sched_getaffinity(0))
    before, began = machine.busy_seconds([core]), time.perf_counter()
    with machine.pinned([core]):
        subprocess.run([sys.executable, "-c", BURN], check=True)
    worked = machine.busy_seconds([core]) - before
    assert 0.25 <= worked <= time.perf_counter() - began + 0.1
