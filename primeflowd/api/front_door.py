"""The front door: HTTP/1.1 for the API, at the price of one task per connection.

Drop-in for server.py, which has Hypercorn do the same. The two routes by which batches come in are
answered in place (ingest.py), everything else by the application (asgi_bridge.py); a client sees
no difference. On `shutdown` it stops accepting, closes what waits for a request, lets requests
under way finish for `GRACE` seconds, and returns.

Bounds: a connection holds one request and what one read took beyond it; there are at most
`MOST_CONNECTIONS` of them, and no more than half the files that the process may open, so that
deliveries find theirs. While there is no room, connections without a request are soon closed.

Fails with OperatorError at bind, and with nothing else that is not a bug.
"""

import errno
import resource
import socket
from typing import Any, Final, cast

import structlog
import trio

from primeflowd.api.app import App
from primeflowd.api.client_connection import ClientConnection
from primeflowd.api.house import House
from primeflowd.api.listener import GRACE, IDLE, listen, url_of
from primeflowd.ready_set import ReadySet

log = structlog.get_logger()

MOST_CONNECTIONS: Final = 16_384

# Seconds between two looks at all connections, for deadlines and for clients that hung up.
_PERIOD: Final = 1.0
# Bytes of an answer that wait in the kernel, of which it uses as much again for itself.
_UNREAD: Final = 262_144
_FULL: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_PAUSE: Final = 0.1
_ACCEPTED_AT_ONCE: Final = 64


async def serve(
    app: App,
    bind: tuple[str, int],
    shutdown: trio.Event,
    *,
    idle_timeout: float = IDLE,
    reuse_port: bool = False,
    most_connections: int = MOST_CONNECTIONS,
    task_status: trio.TaskStatus[list[str]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until `shutdown` is set. Reports the URLs it listens on, as `http://127.0.0.1:8081`.

    Args:
        idle_timeout: seconds that a connection without a request is kept; also the longest that
            the head of a request may take.
        reuse_port: share the port with other processes that ask for the same.

    Raises:
        OperatorError: the address cannot be listened on.
    """
    with await listen(*bind, reuse_port=reuse_port) as listener:
        # What an ASGI server's lifespan events do.
        async with trio.open_nursery() as app.nursery:
            await app.startup()
            door = _FrontDoor(app, listener, idle_timeout, most_connections)
            task_status.started([url_of(listener)])
            await door.run(shutdown)
            await app.shutdown()


class _FrontDoor:
    """A listening socket and the connections that came in through it."""

    def __init__(
        self, app: App, listener: socket.socket, idle_timeout: float, most_connections: int
    ) -> None:
        # Accepted sockets inherit these. An answer in several parts must not wait for the
        # acknowledgement of the first.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # Left to itself the kernel buffers megabytes for each client that does not read, and a
        # slow one looks stuck, since it says nothing before a third of that is gone.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNREAD)
        self._listener = listener
        self._ready_set = ReadySet()
        self._house = House(cast("Any", app), app.gate, idle_timeout, readiness=self._ready_set)
        self._period = min(_PERIOD, idle_timeout / 2)
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = min(most_connections, files // 2) if files > 0 else most_connections

    async def run(self, shutdown: trio.Event) -> None:
        async with trio.open_nursery() as watching:
            watching.start_soon(self._ready_set.run)
            watching.start_soon(self._watch)
            async with trio.open_nursery() as serving:
                async with trio.open_nursery() as accepting:
                    accepting.start_soon(self._accept, serving)
                    await shutdown.wait()
                    accepting.cancel_scope.cancel()
                self._listener.close()
                self._house.draining = True
                self._look()
                serving.cancel_scope.deadline = trio.current_time() + GRACE
            watching.cancel_scope.cancel()
        self._ready_set.close()

    async def _accept(self, serving: trio.Nursery) -> None:
        while True:
            room = self._most - len(self._house.connections)
            self._house.crowded = room <= 0
            if self._house.crowded:
                await trio.sleep(_PAUSE)
                continue
            await trio.lowlevel.wait_readable(self._listener)
            try:
                for _ in range(min(room, _ACCEPTED_AT_ONCE)):
                    self._admit(serving)
            except BlockingIOError:
                pass
            except OSError as error:
                # Some client's trouble, such as a reset before it was its turn; or ours.
                if error.errno in _FULL:
                    log.warning("cannot_accept", reason=error.strerror)
                    await trio.sleep(_PAUSE)

    def _admit(self, serving: trio.Nursery) -> None:
        sock, address = self._listener.accept()
        serving.start_soon(ClientConnection(sock, address[:2], self._house).run)

    async def _watch(self) -> None:
        while True:
            await trio.sleep(self._period)
            self._house.known.forget()
            self._look()

    def _look(self) -> None:
        now = trio.current_time()
        for connection in self._house.connections:
            connection.watch(now)
