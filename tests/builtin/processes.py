"""Another process at the same SQLite file."""

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def python_process(code: str, *words: str, says: bytes) -> AsyncIterator[trio.Process]:
    """A process that runs `code`, from its first line of output on, which is `says`; killed at the
    end. Its input is a pipe."""
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", code, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        async with process.stdout:
            said = b""
            while said != says + b"\n":
                said += await process.stdout.receive_some(1)
            yield process
    finally:
        process.kill()
        await process.wait()
