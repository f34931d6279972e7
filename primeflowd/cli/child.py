"""A child process whose lines are read as they come; for the demo.

The reader is a thread, so that a wait for a line can time out. However the block is left, the
process is gone afterwards.
"""

import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, Literal, Self

import msgspec

from primeflowd.errors import OperatorError

_GONE_WITHIN = 10.0


class Child:
    """`python -m WORDS`, with one stream of it read line by line.

    It has a session of its own: Ctrl-C at the terminal reaches only the parent, which ends its
    children in order.
    """

    def __init__(
        self, name: str, words: Sequence[str], stream: Literal["stdout", "stderr"] = "stdout"
    ) -> None:
        self._name = name
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and modules
            [sys.executable, "-m", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if stream == "stdout" else subprocess.DEVNULL,
            stderr=subprocess.PIPE if stream == "stderr" else None,
            start_new_session=True,
        )
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def line(self, deadline: float) -> Any:
        """The next line, decoded as JSON; a line that is none, as text.

        Raises:
            OperatorError: the process ended, or `time.monotonic()` reached `deadline`.
        """
        try:
            line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise OperatorError(f"the {self._name} said nothing for too long") from None
        if line is None:
            raise OperatorError(f"the {self._name} ended with code {self._process.wait()}")
        try:
            return msgspec.json.decode(line)
        except ValueError:
            return line.decode(errors="replace").rstrip()

    def terminate(self) -> int:
        """SIGTERM; the exit code. A process that does not heed it within 10 s is killed."""
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(_GONE_WITHIN)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def _read(self) -> None:
        stream = self._process.stdout or self._process.stderr
        assert stream is not None
        for line in stream:
            self._lines.put(line)
        self._lines.put(None)
