"""One client's connection to the front door: requests in, answers out, one at a time and in order.

One task serves a connection from accept to close, and one cancel scope, the connection's own, is
all that ends it early: nothing is started or entered per request. Deadlines are a number that the
front door has looked at once in a while (`watch`), and so is a client that hangs up while its
request is being answered: that cancels whoever waits for the answer, not what is committed by then
(intake.py). One that half-closes and waits gets its answer if that takes no longer than a second.

Blocks on the client and on what answers. Nothing that a client does raises out of `run`.
"""

import math
from dataclasses import dataclass, field
from socket import MSG_PEEK, SHUT_WR, socket
from typing import Final

import structlog
import trio

from primeflowd.api import errors, http_answer, ingest, request_id
from primeflowd.api.asgi_bridge import Address, Application, Exchange
from primeflowd.api.gate import Gate
from primeflowd.api.http_request import Malformed, RequestReader
from primeflowd.api.known_heads import Head, KnownHeads
from primeflowd.ready_set import Readiness, TrioReadiness

log = structlog.get_logger()

WRITING: Final = 60.0
"""Seconds in which a client must take at least something of its answer."""

LINGERING: Final = 1.0
"""Seconds for which what a client still sends is thrown away before the socket is closed: a close
with bytes unread is a reset, which could overtake the last answer."""

CROWDED: Final = 1.0
"""Seconds that a connection without a request is kept while there is no room for others."""

SKIPPED: Final = 65_536
"""Longest rest of an unwanted body that is read and thrown away to keep a connection."""


@dataclass(slots=True)
class House:
    """What is behind the front door, the same for all connections.

    Attributes:
        idle_timeout: seconds from the end of a request to the end of the next one's head, counted
            from the front door's next look.
        draining: each answer is its connection's last.
        crowded: there are as many connections as there may be.
        readiness: by which connections wait.
        connections: those that are open.
        known: heads of requests that came lately, whichever connection they came by.
    """

    application: Application
    gate: Gate
    idle_timeout: float
    draining: bool = False
    crowded: bool = False
    readiness: Readiness = field(default_factory=TrioReadiness)
    connections: set["ClientConnection"] = field(default_factory=set)
    known: KnownHeads = field(default_factory=KnownHeads)


class ClientConnection:
    """An accepted connection; owns its socket."""

    __slots__ = (
        "_closing",
        "_deadline",
        "_drained",
        "_fd",
        "_gone",
        "_house",
        "_hung_up",
        "_invited",
        "_reader",
        "_scope",
        "_socket",
        "_waiting",
        "client",
    )

    def __init__(self, sock: socket, client: Address, house: House) -> None:
        sock.setblocking(False)
        self.client = client
        self._socket = sock
        self._fd = sock.fileno()
        self._house = house
        house.readiness.add(self._fd)
        # Before its task runs: several are admitted in one go.
        house.connections.add(self)
        # Nothing is left in the socket, so that it can be waited for.
        self._drained = True
        self._reader = RequestReader(house.known)
        self._scope = trio.CancelScope()
        # Trio's time; infinite while the next move is ours, None until the next look at it.
        self._deadline: float | None = math.inf
        # For the head of a request.
        self._waiting = False
        # Seen to be half-closed while its request is being answered.
        self._hung_up = False
        # Told to send its body.
        self._invited = False
        # The present answer is the last, and nobody reads any more.
        self._closing = False
        self._gone = False

    @property
    def server(self) -> Address:
        """The address that the client connected to."""
        host, port = self._socket.getsockname()[:2]
        return host, port

    async def run(self) -> None:
        """Serve until either side has had enough, then close."""
        try:
            with self._scope:
                await self._serve()
        except Exception:  # a client that finds a bug must not end the daemon by it
            log.exception("connection_failed")
        finally:
            self._house.connections.discard(self)
            self._house.readiness.remove(self._fd)
            self._socket.close()
            self._reader.close()

    def watch(self, now: float) -> None:
        """End the connection if it is overdue, or abandoned by its client. `now`: Trio's time."""
        deadline = self._deadline
        if deadline is None:
            # A clock that is read for each request costs more than this precision is worth.
            deadline = self._deadline = now + self._house.idle_timeout
        if deadline == math.inf:
            # Whoever half-closes has until the second look.
            if self._peek() == b"":
                if self._hung_up:
                    self._scope.cancel()
                self._hung_up = True
            return
        if self._waiting and self._house.draining and self._peek() is None:
            deadline = now
        elif self._waiting and self._house.crowded:
            deadline -= max(0.0, self._house.idle_timeout - CROWDED)
        if deadline <= now:
            self._scope.cancel()

    # What answers call: see asgi_bridge.Wire.

    async def body_part(self) -> tuple[bytes, bool]:
        reader = self._reader
        while True:
            part = reader.take()
            if part or reader.ended:
                return part, not reader.ended
            assert reader.head is not None
            if reader.head.expects_continue and not self._invited:
                self._invited = True
                await self.send(http_answer.CONTINUE)
            data = await self._receive()
            if not data:
                self._closing = True
                raise Malformed(400)
            try:
                reader.feed(data)
            except Malformed:
                self._closing = True
                raise

    async def send(self, data: bytes) -> None:
        sent = self._send(data)
        if sent < len(data):
            rest = memoryview(data)[sent:]
            while rest:
                self._deadline = trio.current_time() + WRITING
                await trio.lowlevel.wait_writable(self._fd)
                rest = rest[self._send(rest) :]
            self._deadline = math.inf

    def closes(self) -> bool:
        if not self._closing:
            head, reader = self._reader.head, self._reader
            assert head is not None
            self._closing = (
                not head.keep_alive
                or self._house.draining
                or not (reader.ended or self._can_skip_rest(head))
            )
        return self._closing

    def give_up(self) -> None:
        self._closing = True

    async def _serve(self) -> None:
        try:
            while head := await self._next_request():
                await self._answer(head)
                if self._closing:
                    break
                self._reader.next()
        except Malformed as error:
            await self._refuse(error.status)
        if self._closing and not self._gone:
            await self._linger()

    async def _next_request(self) -> Head | None:
        """The head of the next request, None if there will be none.

        Raises:
            Malformed: and the connection is of no more use.
        """
        self._invited = self._hung_up = False
        if self._reader.head is not None:
            # It came together with the one before. Whoever sends many takes turns with the others.
            await trio.lowlevel.checkpoint()
            return self._reader.head
        reader = self._reader
        self._deadline = None
        self._waiting = True
        while reader.head is None:
            data = await self._receive()
            if not data:
                if reader.idle:
                    return None
                raise Malformed(400)
            reader.feed(data)
        self._waiting = False
        self._deadline = math.inf
        return reader.head

    async def _answer(self, head: Head) -> None:
        route = ingest.ROUTES.get((head.method, head.target))
        if route is None:
            await Exchange(self, head).run(self._house.application)
            return
        arrived = self._reader.take() if self._reader.ended else None
        request = ingest.IngestRequest(route, head, arrived, self.body_part)
        answer, chosen = await ingest.answer(self._house.gate, route, request)
        await self.send(http_answer.encode(answer, chosen, close=self.closes()))

    async def _refuse(self, status: int) -> None:
        """Answer what is no request. Nothing that follows it can be understood."""
        self._closing = True
        self._waiting = False
        log.debug("malformed_request", status=status)
        await self.send(
            http_answer.encode(
                errors.for_status(status),
                request_id.choose(None),
                close=True,
                bodiless=self._reader.answers_head,
            )
        )

    async def _linger(self) -> None:
        self._deadline = trio.current_time() + LINGERING
        try:
            self._socket.shutdown(SHUT_WR)
        except OSError:
            return
        while await self._receive():
            pass

    def _can_skip_rest(self, head: Head) -> bool:
        """Whether what is still to come of the body is worth reading for the next request."""
        left = self._reader.left
        # One that was not told to send its body may have gone on to its next request.
        held_back = head.expects_continue and not self._invited
        return left is not None and left <= SKIPPED and not held_back

    async def _receive(self) -> bytes:
        """What has come; nothing at the end, be it orderly or not."""
        wanted = self._reader.wanted
        while True:
            if self._drained:
                await self._house.readiness.wait_readable(self._fd)
            else:
                # Whoever sends much takes turns with the others.
                await trio.lowlevel.checkpoint()
            try:
                data = self._socket.recv(wanted)
            except BlockingIOError:
                self._drained = True
                continue
            except OSError:
                self._gone = True
                return b""
            self._drained = len(data) < wanted
            return data

    def _send(self, data: bytes | memoryview) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            # The client is gone. Its answer is on record, or can be asked for again.
            self._gone = self._closing = True
            return len(data)

    def _peek(self) -> bytes | None:
        """A byte that has come, if any; nothing at the end, None if there is nothing yet."""
        try:
            return self._socket.recv(1, MSG_PEEK)
        except BlockingIOError:
            return None
        except OSError:
            return b""
