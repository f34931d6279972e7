"""Turns: processes that share a SQLite file write first come, first served.

SQLite itself lets whoever finds the write lock taken sleep before it looks again, longer each time,
up to 100 ms; a busy process has begun its next transaction by then. Of two that made group
commits of 64 as fast as they could, one was overtaken up to 498 times in a row and waited for 1.6 s
(p99 79 ms). With turns it was overtaken twice at most, and waited for 76 ms (p99 16 ms); between
none and a quarter of the commits were the price.

It takes two locks: whoever has `next` waits for `turn`, and then lets go of `next`. So who has just
had its turn comes after the one that waits already.

Blocks on: other processes' transactions, up to the busy timeout: a process that was stopped in the
middle of its turn must not hang the others. That is why the locks are polled: the kernel would wait
for ever. Another program that writes to the file without taking turns is in SQLite's hands.
"""

import sqlite3
import time
from pathlib import Path
from typing import Any, Final

from primeflowd.builtin.sqlite_locks import LockFile
from primeflowd.errors import StorageUnavailable

NEXT: Final = 101
TURN: Final = NEXT + 1

_POLL: Final = 0.0005
"""Seconds between looks. A transaction takes some milliseconds."""


class InTurn(sqlite3.Connection):
    """A connection for transactions that are begun when it is its turn, which ends with them."""

    def __init__(self, database: str, timeout: float = 5.0, **settings: Any) -> None:
        super().__init__(database, timeout, **settings)
        self._timeout = timeout
        self._locks = LockFile(Path(database))

    def begin(self) -> None:
        """Begin a transaction when it is our turn. If that fails, a rollback or the end of the
        connection is to follow, with which the turn ends.

        Raises:
            StorageUnavailable: as wait_turn().
            sqlite3.Error: it is our turn, and does not begin.
        """
        self.wait_turn()
        # IMMEDIATE takes the write lock at once: a transaction that reads first could not get it
        # later if another process wrote in between.
        self.execute("BEGIN IMMEDIATE")

    def wait_turn(self) -> None:
        """Wait until we may begin a transaction.

        Raises:
            StorageUnavailable: others did not let us within the timeout.
        """
        # Both in one call where nobody else is about, which is nearly always: each lets go of the
        # interpreter's lock, and may wait for it.
        try:
            if not self._locks.take(NEXT, 2):
                deadline = time.monotonic() + self._timeout
                self._wait(NEXT, deadline)
                self._wait(TURN, deadline)
        finally:
            self._locks.give_back(NEXT)

    def end_turn(self) -> None:
        """Let the next one begin."""
        self._locks.give_back(TURN)

    def commit(self) -> None:
        # If this fails the transaction may still be open, and a rollback follows.
        super().commit()
        self.end_turn()

    def rollback(self) -> None:
        try:
            super().rollback()
        finally:
            self.end_turn()

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._locks.close()

    def _wait(self, lock: int, deadline: float) -> None:
        while not self._locks.take(lock):
            if time.monotonic() > deadline:
                raise StorageUnavailable("database is locked: another process does not finish")
            # The lock is another process's: the kernel can wait for it, but not with a deadline.
            time.sleep(_POLL)
