"""A TCP proxy for tests, to be put between a client and its database, that can fail on command.

It forwards until it is told otherwise:

    cut()          breaks all connections off, and every new one at once
    blackhole()    keeps connections open and accepts new ones, and lets no byte through
    restore()      forwards again; what a black hole swallowed arrives now, as after a partition

Runs in threads of its own, so that it works beside Trio, beside blocking code and for other
processes alike. Its methods do not block and may be called from everywhere.
"""

import socket
import threading
from contextlib import suppress
from typing import Final, Literal

Direction = Literal["both", "to_server", "to_client"]

_CHUNK: Final = 65536


class Proxy:
    """Listens while its `with` block runs.

    Attributes:
        port: where it listens, on 127.0.0.1.
        accepted: connections so far, those that were cut at once too.
    """

    def __init__(self, upstream_port: int) -> None:
        self.accepted = 0
        self._upstream = upstream_port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: Final[int] = self._listener.getsockname()[1]
        # Guards what follows; notified when any of it changes.
        self._changed = threading.Condition()
        self._cut = False
        self._swallowed: frozenset[str] = frozenset()
        self._links: set[_Link] = set()
        self._closed = False
        self._thread = threading.Thread(target=self._accept, name="proxy", daemon=True)

    def __enter__(self) -> "Proxy":
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._changed:
            self._closed = True
        self.cut()
        # Closing alone would not wake the thread that waits in accept().
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)

    @property
    def connections(self) -> int:
        """Connections that are open now."""
        with self._changed:
            return len(self._links)

    def cut(self) -> None:
        with self._changed:
            self._cut = True
            for link in list(self._links):
                link.close()
            self._links.clear()
            self._changed.notify_all()

    def blackhole(self, direction: Direction = "both") -> None:
        """With `to_client` alone, what is sent still arrives, and its answer does not."""
        swallowed = {"to_server", "to_client"} if direction == "both" else {direction}
        with self._changed:
            self._swallowed = frozenset(swallowed)

    def restore(self) -> None:
        with self._changed:
            self._cut = False
            self._swallowed = frozenset()
            self._changed.notify_all()

    def _is_cut(self) -> bool:
        return self._cut

    # In the threads

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            if self._is_cut():
                client.close()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self._upstream), timeout=5)
            except OSError:
                # Whoever the proxy stands before is down: so is the proxy, for this client.
                client.close()
                continue
            server.settimeout(None)
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = _Link(client, server)
            with self._changed:
                if self._is_cut():
                    link.close()
                    continue
                self._links.add(link)
            for source, sink, direction in (
                (client, server, "to_server"),
                (server, client, "to_client"),
            ):
                threading.Thread(
                    target=self._pump, args=(link, source, sink, direction), daemon=True
                ).start()

    def _pump(
        self, link: "_Link", source: socket.socket, sink: socket.socket, direction: str
    ) -> None:
        with suppress(OSError):
            while True:
                data = source.recv(_CHUNK)
                with self._changed:
                    while direction in self._swallowed and not link.closed:
                        self._changed.wait()
                if not data or link.closed:
                    break
                sink.sendall(data)
        with self._changed:
            link.close()
            self._links.discard(link)


class _Link:
    """A client's connection and the one to the server that belongs to it."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.closed = False
        self._ends = (client, server)

    def close(self) -> None:
        """Both ends see the connection end; a pump that waits for data wakes."""
        self.closed = True
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
