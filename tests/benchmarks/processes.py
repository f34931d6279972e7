"""Processes of contenders: their environment and their end."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.benchmarks.machine import tree


def environment_with(more: Mapping[str, str]) -> dict[str, str]:
    return {**os.environ, **more}


@contextlib.contextmanager
def ended(process: "subprocess.Popen[bytes]", log: Path) -> Iterator[None]:
    """End it and all that it started when the block ends; after a failure, show its log."""
    try:
        yield
    except BaseException:
        print(f"{log}:\n{log.read_text()[-4000:]}", file=sys.stderr)
        raise
    finally:
        children = tree(process.pid)
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            for pid in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
            process.wait()
