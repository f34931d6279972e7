"""One HTTP/1.1 connection to a receiver, plain or TLS: a request out, a response in.

Owns a non-blocking stdlib socket; others are asked only whether it is ready. (For TLS that costs
a third of what trio.SSLStream does, which moves every byte through two memory buffers.)

Blocks on the receiver, without a deadline: that is the caller's. Whatever goes wrong before a
response head is complete is a NetworkFailure; after it the status stands. Cancelled at any point,
the connection must be closed: `reusable` says so.
"""

import ssl
from collections.abc import Callable
from contextlib import suppress
from socket import SHUT_RDWR, socket
from typing import Final

import trio

from primeflowd.http_response import BadResponse, ResponseReader
from primeflowd.model import FailureReason
from primeflowd.ready_set import Readiness, ReadySet, TrioReadiness

_NOT_READY = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class NetworkFailure(Exception):
    """An attempt met no response; the network's or the receiver's doing. Becomes an Outcome.

    Attributes:
        reason: one of contract 5.3.
        message: prose for people, without secrets.
        address: `ip:port` if a connection was made.
    """

    def __init__(self, reason: FailureReason, message: str, address: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.address = address


# In place of an end: it has not come yet.
_MORE: Final = NetworkFailure("internal_error", "more is to come")


def describe(error: OSError) -> str:
    """What the system or OpenSSL says, without the source files that OpenSSL's messages name."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate refused: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return error.strerror or type(error).__name__


class Connection:
    """An open connection, used by one task at a time.

    Attributes:
        address: `ip:port` of the other side.
        ended_by: who ended an exchange before its time, see `end`; None as long as nobody did.
        response: what was read of the latest response.
        idle_since: by Trio's clock; kept by whoever keeps idle connections.
    """

    __slots__ = (
        "_end",
        "_fd",
        "_readiness",
        "_ready_set",
        "_socket",
        "_sound",
        "_tls",
        "_told",
        "_whole",
        "address",
        "ended_by",
        "idle_since",
        "response",
    )

    def __init__(
        self,
        sock: socket | ssl.SSLSocket,
        address: str,
        response: ResponseReader,
        readiness: Readiness | None = None,
    ) -> None:
        """Takes over the connected, non-blocking `sock`. `readiness` None: Trio's."""
        self._socket = sock
        self._fd = sock.fileno()
        self._readiness = readiness or TrioReadiness()
        self._readiness.add(self._fd)
        self._ready_set = readiness if isinstance(readiness, ReadySet) else None
        self._tls = sock if isinstance(sock, ssl.SSLSocket) else None
        self._whole = self._sound = True
        self.address = address
        self.response = response
        self.idle_since = 0.0
        self.ended_by: str | None = None
        self._told: Callable[[NetworkFailure | None], None] | None = None
        self._end: NetworkFailure | None = None

    @property
    def reusable(self) -> bool:
        """The last exchange is over and left the connection fit for another."""
        return self._whole and self._sound and self.response.keep_alive and self.ended_by is None

    def is_stale(self) -> bool:
        """While idle: the other side has closed, or said something that nobody asked for.

        Reads a byte if anything has come, so TLS digests it (session tickets, a close_notify).
        """
        if not self._readiness.has_news(self._fd):
            return False
        try:
            self._socket.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        except OSError:
            pass
        return True

    async def exchange(self, request: bytes) -> None:
        """Send `request` and read its response into `response`.

        Raises:
            NetworkFailure: no complete response head. If `response.received` is 0, not a byte of
                one came.
        """
        self.response.start()
        sent = self._send(request)
        self._whole = sent == len(request)
        if not self._whole:
            await self.finish(memoryview(request)[sent:])
        elif failure := await self._receive():
            raise failure

    def begin(
        self, request: bytes, told: Callable[[NetworkFailure | None], None]
    ) -> memoryview | None:
        """As `exchange`, without a task: `told` is called at the end, with what that would raise.

        For a connection on a ReadySet that is kept, and so has nothing unread. `told` must not
        raise; it may be called before this returns. Whoever has had enough closes the connection,
        and is not told. If the socket does not take all of the request the rest is returned, and
        nobody is told: `finish` goes on with it.
        """
        self.response.start()
        sent = self._send(request)
        self._whole = sent == len(request)
        if not self._whole:
            return memoryview(request)[sent:]
        self._told = told
        assert self._ready_set is not None
        self._ready_set.call_when_readable(self._fd, self._go_on)
        return None

    async def finish(self, rest: memoryview) -> None:
        """Send the rest that `begin` returned, and see the exchange to its end.

        Raises:
            NetworkFailure: as `exchange`.
        """
        failure = await self._receive_while_sending(rest)
        if failure is not None:
            raise failure

    def end(self, by: str) -> None:
        """End an exchange under way from another task: whoever waits for the socket finds it
        closed by the other side. A cancel scope for each exchange would cost seven times this."""
        self.ended_by = by
        # Of the plain socket: an SSLSocket would forget its TLS state under the reading task.
        with suppress(OSError):
            socket.shutdown(self._socket, SHUT_RDWR)

    def retire(self) -> None:
        """See to it that it is not kept once its exchange is over."""
        self._sound = False

    def close(self) -> None:
        """Close the socket, without TLS goodbyes: all that was wanted has been read."""
        self._readiness.remove(self._fd)
        self._socket.close()
        self.response.close()
        self._told = None

    def _send(self, data: bytes | memoryview) -> int:
        """Send what the socket takes now. To a peer that is gone everything is 'sent'."""
        try:
            return self._socket.send(data)
        except _NOT_READY:
            return 0
        except OSError:
            # It may have answered before it closed (413, 503); reading finds out.
            self._sound = False
            return len(data)

    async def _receive_while_sending(self, rest: memoryview) -> NetworkFailure | None:
        # A receiver may refuse a large body in the middle of it and never read the rest: waiting
        # to be done with sending would miss its answer.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send_rest, rest)
            failure = await self._receive()
            nursery.cancel_scope.cancel()
        return failure

    async def _send_rest(self, rest: memoryview) -> None:
        while rest:
            await trio.lowlevel.wait_writable(self._fd)
            rest = rest[self._send(rest) :]
        self._whole = True

    async def _receive(self) -> NetworkFailure | None:
        # OpenSSL reads a record at a time: what it still holds of one makes no socket readable.
        if self._tls is None or not self._tls.pending():
            await self._readiness.wait_readable(self._fd)
        while (end := self._read()) is _MORE:
            await self._readiness.wait_readable(self._fd)
        return end

    def _go_on(self) -> Callable[[], None] | None:
        """For the ReadySet: see Reader."""
        end = self._read()
        if end is _MORE:
            assert self._ready_set is not None
            self._ready_set.call_when_readable(self._fd, self._go_on)
            return None
        self._end = end
        return self._tell

    def _tell(self) -> None:
        # Let go of both: they may well hold this connection.
        told, self._told = self._told, None
        end, self._end = self._end, None
        # None if it was closed since it was read.
        if told is not None:
            told(end)

    def _read(self) -> NetworkFailure | None:
        """Read what has come: how the exchange has ended, or `_MORE`."""
        response, receive = self.response, self._socket.recv
        try:
            while True:
                data = receive(response.wanted)
                if not data:
                    return self._broken_off("the receiver closed the connection")
                if response.feed(data):
                    return None
        except _NOT_READY:
            # Only now: what has come already is not told again.
            return _MORE
        except BadResponse as error:
            return NetworkFailure("response_error", str(error), self.address)
        except OSError as error:
            problem = f"the connection broke ({describe(error)})"
            # TLS 1.3 lets a server refuse a client after the handshake.
            tls = isinstance(error, ssl.SSLError)
            return self._broken_off(problem, "tls_error" if tls else "connection_error")

    def _broken_off(
        self, problem: str, reason: FailureReason = "connection_error"
    ) -> NetworkFailure | None:
        """What it means that no more will come."""
        if self.response.status is not None:
            self.response.end()
            return None
        if self.response.received:
            problem += " in the middle of the head of its answer"
            return NetworkFailure("response_error", problem, self.address)
        return NetworkFailure(reason, f"{problem} without an answer", self.address)
