"""`demo` tells its story, ends by itself, and leaves nothing behind."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from primeflowd.testing.daemon_process import eventually
from tests.cli.conftest import Run


def test_story(primeflowd: Run, tmp_path: Path) -> None:
    """Two failures, the policy's delays, one success; plain text where there is no terminal."""
    start = time.monotonic()
    done = primeflowd("demo", env={"TMPDIR": str(tmp_path)})
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - start < 15
    assert "\x1b" not in done.stdout
    told = done.stdout
    for expected in (
        "attempt 1",
        "webhook-signature: v1,",
        "answer 500",
        "next attempt due 20",
        "attempt 2",
        "answer 503",
        "attempt 3",
        "answer 200",
        "succeeded",
        "delivered",
        "primeflowd init ",
    ):
        assert expected in told, expected
        told = told[told.index(expected) :]
    assert done.stdout.count("signature verified") == 3
    assert list(tmp_path.glob("primeflowd-demo-*")) == []


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_no_process_behind(
    tmp_path: Path, environment: dict[str, str], signal_number: signal.Signals
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "primeflowd", "demo"],
        stdout=subprocess.PIPE,
        env=environment | {"TMPDIR": str(tmp_path)},
        text=True,
    )
    assert process.stdout is not None
    while "attempt 1" not in process.stdout.readline():
        assert process.poll() is None
    assert len(processes_of(tmp_path)) == 3
    os.kill(process.pid, signal_number)
    assert process.wait(20) not in (0, None)
    process.stdout.close()
    eventually(lambda: not processes_of(tmp_path))
    assert list(tmp_path.glob("primeflowd-demo-*")) == []


def test_story_that_does_not_happen(primeflowd: Run, tmp_path: Path) -> None:
    """It ends with an error on one line, and cleans up as well."""
    done = primeflowd("demo", env={"TMPDIR": str(tmp_path), "PRIMEFLOWD_MASTER_KEY": "bad"})
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "the daemon did not start: " in done.stderr
    assert processes_of(tmp_path) == []
    assert list(tmp_path.glob("primeflowd-demo-*")) == []


def processes_of(directory: Path) -> list[str]:
    """The live processes whose TMPDIR is `directory`."""
    found = []
    for environ in Path("/proc").glob("[0-9]*/environ"):
        # A process may end while we look; a dead one that nobody waited for has none.
        with contextlib.suppress(OSError):
            if f"TMPDIR={directory}".encode() in environ.read_bytes().split(b"\0"):
                found.append(environ.parent.name)
    return found
