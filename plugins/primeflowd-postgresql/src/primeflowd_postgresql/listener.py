"""How nodes tell each other that one has left something for the rest: LISTEN and NOTIFY.

One thread with one connection hears the other nodes and speaks to them. It speaks after the commit
that it is about, not in it: PostgreSQL lets only one transaction with a NOTIFY in it commit at a
time, and the group commit shall not wait for that. What a process that is killed in between did
not say, the others find by asking now and then, which they do anyway. Nothing is said more than
ten times a second; a thing left meanwhile is said with the next word, at most a tenth later.

When the connection breaks, it is made again, with growing pauses; whoever waits is woken, since
something may have been said in the meantime.
"""

import selectors
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import psycopg
import structlog
import trio

from primeflowd_postgresql.connections import WatchedConnection

CHANNEL: Final = "primeflowd"

INTERVAL: Final = 0.1
"""Seconds between two words."""

PING: Final = 10.0
"""Seconds of silence after which it is looked whether the connection still works."""

LONGEST_PAUSE: Final = 10.0
"""Seconds between two attempts to connect."""

CLOSE_WITHIN: Final = 5.0

_log = structlog.get_logger(__name__)


class Listener:
    """Starts its thread when made, in a Trio task. Close it with aclose()."""

    def __init__(self, connect: Callable[[], WatchedConnection], ping: float = PING) -> None:
        self._connect = connect
        self._ping = ping
        self._token = trio.lowlevel.current_trio_token()
        self._heard = trio.Event()
        # A byte wakes the thread: there is something to tell, or it shall end.
        self._wake, self._awake = socket.socketpair()
        self._wake.setblocking(False)
        self._awake.setblocking(False)
        self._to_tell = False
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="storage-listener", daemon=True)
        self._thread.start()

    # For the storage

    def tell(self) -> None:
        """Tell the other nodes, soon. From any thread; never blocks, never fails."""
        # Most of the time the thread knows already, and waits for the tenth to be over.
        if not self._to_tell:
            self._to_tell = True
            self._rouse()

    async def wait(self) -> None:
        """Return when another node has told, or may have while nobody listened."""
        heard = self._heard
        await heard.wait()
        if self._heard is heard:
            self._heard = trio.Event()

    async def aclose(self) -> None:
        """End the thread, shielded. What there is to tell is told first, if the database answers
        within CLOSE_WITHIN seconds."""
        self._closing = True
        self._rouse()
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._thread.join, CLOSE_WITHIN)

    def _rouse(self) -> None:
        # A full buffer means that it is awake, or about to be; a closed one that it has ended.
        with suppress(OSError):
            self._wake.send(b"\0")

    # In the thread

    def _run(self) -> None:
        pause = INTERVAL
        with self._wake, self._awake:
            while not self._closing:
                try:
                    with self._connect() as connection:
                        connection.execute(f"LISTEN {CHANNEL}".encode())
                        pause = INTERVAL
                        self._hear()
                        self._attend(connection)
                except psycopg.Error as error:
                    if not self._closing:
                        reason = " ".join(str(error).split())
                        _log.warning("nodes_out_of_hearing", reason=reason)
                        self._rest(pause)
                        pause = min(pause * 2, LONGEST_PAUSE)

    def _attend(self, connection: WatchedConnection) -> None:
        """Hear and speak until there is nothing more to do. Raises psycopg.Error."""
        own = connection.info.backend_pid
        may_speak_at = 0.0
        with selectors.DefaultSelector() as selector:
            selector.register(connection.fileno(), selectors.EVENT_READ)
            selector.register(self._awake, selectors.EVENT_READ)
            while True:
                if self._to_tell and (self._closing or time.monotonic() >= may_speak_at):
                    # Before speaking: what is left from here on is another word's.
                    self._to_tell = False
                    connection.execute(f"NOTIFY {CHANNEL}".encode())
                    may_speak_at = time.monotonic() + INTERVAL
                if self._closing:
                    return
                # Some may have come with the answer to the statement before.
                if {told.pid for told in connection.notifies(timeout=0)} - {own}:
                    self._hear()
                left = max(may_speak_at - time.monotonic(), 0.0) if self._to_tell else self._ping
                if not selector.select(left) and not self._to_tell:
                    connection.execute(b"SELECT 1")
                self._drain()

    def _rest(self, seconds: float) -> None:
        """As long, or until the thread shall end."""
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._awake, selectors.EVENT_READ)
            while not self._closing and (left := deadline - time.monotonic()) > 0:
                selector.select(left)
                self._drain()

    def _drain(self) -> None:
        with suppress(BlockingIOError):
            while self._awake.recv(4096):
                pass

    def _hear(self) -> None:
        # Once the run has finished, nobody is left who waits.
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._wake_waiters)

    def _wake_waiters(self) -> None:
        self._heard.set()
