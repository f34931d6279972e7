"""The socket of a client's connection: what has come, what goes out, and whether anybody is there.

Owns it, non-blocking. Reading keeps track of whether there may be more, since a ReadySet is told of
what comes only once. Whatever goes wrong is the end of what the client sends, and of its interest
in what it is sent; nothing raises.
"""

from socket import MSG_PEEK, SHUT_WR, socket

import trio

from primeflowd.ready_set import Reader, Readiness, ReadySet


class ClientSocket:
    """A connected socket.

    Attributes:
        drained: nothing is left in it, so that it can be waited for.
        gone: the client is; what it is sent goes nowhere.
    """

    __slots__ = ("_fd", "_readiness", "_ready_set", "_socket", "drained", "gone")

    def __init__(self, sock: socket, readiness: Readiness) -> None:
        """Takes over `sock`."""
        sock.setblocking(False)
        self._socket = sock
        self._fd = sock.fileno()
        self._readiness = readiness
        self._ready_set = readiness if isinstance(readiness, ReadySet) else None
        readiness.add(self._fd)
        self.drained = True
        self.gone = False

    def close(self) -> None:
        """Close it; nobody is called any more."""
        self._readiness.remove(self._fd)
        self._socket.close()

    @property
    def address(self) -> tuple[str, int]:
        """That the client connected to."""
        host, port = self._socket.getsockname()[:2]
        return host, port

    def is_quiet(self) -> bool:
        """Nothing has come since it was drained, and it can call when something does."""
        if self._ready_set is None:
            return False
        if self._ready_set.has_news(self._fd):
            self.drained = False
        return self.drained

    def call_when_readable(self, reader: Reader) -> None:
        """See ReadySet: of one that is drained, and can call."""
        assert self._ready_set is not None
        self._ready_set.call_when_readable(self._fd, reader)

    def hold(self) -> None:
        """See ReadySet."""
        assert self._ready_set is not None
        self._ready_set.hold()

    def release(self) -> None:
        """See ReadySet."""
        assert self._ready_set is not None
        self._ready_set.release()

    def read(self, wanted: int) -> bytes | None:
        """What has come, `wanted` bytes at most: None if nothing has yet, b"" at the end."""
        try:
            data = self._socket.recv(wanted)
        except BlockingIOError:
            self.drained = True
            return None
        except OSError:
            self.gone = True
            return b""
        self.drained = len(data) < wanted
        return data

    async def receive(self, wanted: int) -> bytes:
        """As `read`, but waits for it."""
        while True:
            if self.drained:
                await self._readiness.wait_readable(self._fd)
            else:
                # Whoever sends much takes turns with the others.
                await trio.lowlevel.checkpoint()
            data = self.read(wanted)
            if data is not None:
                return data

    def peek(self) -> bytes | None:
        """A byte that has come, if any; nothing at the end, None if there is nothing yet."""
        try:
            return self._socket.recv(1, MSG_PEEK)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def send(self, data: bytes | memoryview) -> int:
        """How many bytes of it could be sent at once: all, where the client is gone."""
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            # Its answer is on record, or can be asked for again.
            self.gone = True
            return len(data)

    async def wait_writable(self) -> None:
        """Until more can be sent."""
        await trio.lowlevel.wait_writable(self._fd)

    def end(self) -> bool:
        """Tell the client that nothing more will come; False if it is gone."""
        try:
            self._socket.shutdown(SHUT_WR)
        except OSError:
            return False
        return True
