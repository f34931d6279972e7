"""Severs connections whose database has been silent for too long.

A peer that keeps the socket open and says nothing (a proxy whose upstream is gone, a host that
froze) is waited for as long as the socket stands, which may be for ever; keepalives do not help,
since the proxy answers them. So each wait for an answer is watched, and the socket of one that
takes too long is shut down: the thread that waits sees the connection end.

Guarantees: a wait ends at most `within` plus a tenth of it (a second at most) after it began.
"""

import itertools
import os
import socket
import threading
import time
from contextlib import suppress
from typing import Final, NamedTuple


class _Wait(NamedTuple):
    deadline: float  # by time.monotonic()
    socket: int
    inode: int


class Watchdog:
    """A thread, from the making on until close()."""

    def __init__(self, within: float) -> None:
        """`within` is in seconds."""
        self.within: Final = within
        self._serial = itertools.count()
        self._lock = threading.Lock()
        # In the order in which they began, which is that of their deadlines.
        self._waits: dict[int, _Wait] = {}
        self._closed = threading.Event()
        # A daemon, so that it keeps no process from exiting.
        self._thread = threading.Thread(target=self._run, name="storage-watchdog", daemon=True)
        self._thread.start()

    def begin(self, descriptor: int) -> int:
        """A wait on this socket begins; what to give to end()."""
        number = next(self._serial)
        wait = _Wait(time.monotonic() + self.within, descriptor, os.fstat(descriptor).st_ino)
        with self._lock:
            self._waits[number] = wait
        return number

    def severed(self, number: int) -> bool:
        """Whether this wait, which did not end, took too long."""
        with self._lock:
            return number not in self._waits

    def end(self, number: int) -> None:
        with self._lock:
            self._waits.pop(number, None)

    def close(self) -> None:
        """Waits that begin later are not watched."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closed.wait(min(self.within / 10, 1.0)):
            with self._lock:
                self._sever_overdue()

    def _sever_overdue(self) -> None:
        now = time.monotonic()
        while self._waits:
            number, wait = next(iter(self._waits.items()))
            if wait.deadline > now:
                return
            del self._waits[number]
            with suppress(OSError):
                _sever(wait)


def _sever(wait: _Wait) -> None:
    """Shut the socket down, unless its driver has closed it and the number is another's by now."""
    with socket.socket(fileno=os.dup(wait.socket)) as held:
        if os.fstat(held.fileno()).st_ino == wait.inode:
            held.shutdown(socket.SHUT_RDWR)
