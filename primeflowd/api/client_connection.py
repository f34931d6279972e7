"""One client's connection to the front door: requests in, answers out, one at a time and in order.

One task serves a connection from accept to close, and one cancel scope, the connection's own, is
all that ends it early: nothing is started or entered per request. By the task goes whatever takes
waiting. A request by which batches come in, and of which nothing is still to come, takes none: it
is read, begun and answered by whoever tells of what came and of what was committed, while the task
sleeps. That is nearly all of them in a busy daemon, and a quarter of what a request costs.

Deadlines are a number that the front door has looked at once in a while (`watch`), and so is a
client that hangs up while its request is being answered: that cancels whoever waits for the answer,
not what is committed by then (intake.py). One that half-closes and waits gets its answer if that
takes no longer than a second.

Blocks on the client and on what answers. Nothing that a client does raises out of `run`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from socket import socket
from typing import Final

import outcome
import structlog
import trio

from primeflowd.api import errors, http_answer, ingest, request_id
from primeflowd.api.answer import Answer
from primeflowd.api.asgi_bridge import Address, Application, Exchange
from primeflowd.api.client_socket import ClientSocket
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

SHORT: Final = 16_384
"""Longest body, in bytes, of a request during whose commit others are left alone (ReadySet.hold).
To read what follows a longer one may take as long as its commit, and had better be begun."""


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
        "_asleep",
        "_closing",
        "_data",
        "_deadline",
        "_holds",
        "_house",
        "_hung_up",
        "_invited",
        "_over",
        "_reader",
        "_scope",
        "_socket",
        "_unsent",
        "_waiting",
        "client",
    )

    def __init__(self, sock: socket, client: Address, house: House) -> None:
        self.client = client
        self._socket = ClientSocket(sock, house.readiness)
        self._house = house
        # Before its task runs: several are admitted in one go.
        house.connections.add(self)
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
        # The client sends no more requests.
        self._over = False
        # The task, while it sleeps: see `_sleep`.
        self._asleep: trio.lowlevel.Task | None = None
        # What was read, and nobody has looked at.
        self._data = b""
        # Others are left alone until its request is committed.
        self._holds = False
        # What is left to be sent of the answer to the present request, given while the task slept.
        self._unsent: memoryview | None = None

    @property
    def server(self) -> Address:
        """The address that the client connected to."""
        return self._socket.address

    async def run(self) -> None:
        """Serve until either side has had enough, then close."""
        try:
            with self._scope:
                await self._serve()
        except Exception:  # a client that finds a bug must not end the daemon by it
            log.exception("connection_failed")
        finally:
            self._house.connections.discard(self)
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
            if self._socket.peek() == b"":
                if self._hung_up:
                    self._scope.cancel()
                self._hung_up = True
            return
        if self._waiting and self._house.draining and self._socket.peek() is None:
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
            data = await self._socket.receive(reader.wanted)
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
            await self._send_rest(memoryview(data)[sent:])

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
                if self._unsent is None:
                    await self._answer(head)
                else:
                    rest, self._unsent = self._unsent, None
                    await self._send_rest(rest)
                if self._closing:
                    break
                self._reader.next()
        except Malformed as error:
            await self._refuse(error.status)
        if self._closing and not self._socket.gone:
            await self._linger()

    async def _next_request(self) -> Head | None:
        """The head of the next request that the task is needed for, None if there will be none.

        Raises:
            Malformed: and the connection is of no more use.
        """
        if self._reader.head is not None:
            self._invited = self._hung_up = False
            # It came together with the one before. Whoever sends many takes turns with the others.
            await trio.lowlevel.checkpoint()
            return self._reader.head
        reader = self._reader
        self._expect_request()
        while reader.head is None and not self._over:
            if self._socket.is_quiet():
                await self._sleep()
            else:
                self._take_in(await self._socket.receive(reader.wanted))
        self._expect_nothing()
        return reader.head

    def _expect_request(self) -> None:
        self._invited = self._hung_up = False
        self._deadline = None
        self._waiting = True

    def _expect_nothing(self) -> None:
        self._waiting = False
        self._deadline = math.inf

    def _take_in(self, data: bytes) -> None:
        """Take what has come while a request is waited for: nothing, at the end.

        Raises:
            Malformed: and the connection is of no more use.
        """
        if data:
            self._reader.feed(data)
        elif self._reader.idle:
            self._over = True
        else:
            raise Malformed(400)

    # While the task sleeps. Nothing of this raises: it wakes the task, which does.

    async def _sleep(self) -> None:
        """Until the task is needed: for a request, for what is left of an answer, or at the end."""

        def abort(_: object) -> trio.lowlevel.Abort:
            self._asleep = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._asleep = trio.lowlevel.current_task()
        self._socket.call_when_readable(self._read)
        await trio.lowlevel.wait_task_rescheduled(abort)

    def _wake(self, error: Exception | None = None) -> None:
        task, self._asleep = self._asleep, None
        assert task is not None
        trio.lowlevel.reschedule(
            task, outcome.Value(None) if error is None else outcome.Error(error)
        )

    def _read(self) -> Callable[[], None] | None:
        """For the ReadySet: see Reader."""
        if self._asleep is None:
            # Cancelled, and about to close.
            return None
        data = self._socket.read(self._reader.wanted)
        if data is None:
            self._socket.call_when_readable(self._read)
            return None
        self._data = data
        return self._go_on

    def _go_on(self) -> None:
        """Begin the request that has come, if that takes no task."""
        if self._asleep is None:
            return
        data, self._data = self._data, b""
        try:
            self._take_in(data)
            if self._begin():
                return
        except Exception as error:  # noqa: BLE001 -- Malformed, or a bug
            self._wake(error)
            return
        if self._reader.head is not None or self._over:
            # It has been read: until the task runs, nobody is to take the client for an idle one.
            self._expect_nothing()
            self._wake()
        elif self._socket.drained:
            self._socket.call_when_readable(self._read)
        else:
            self._wake()

    def _begin(self) -> bool:
        """Have the present request answered, if it is one that takes no task, and all here."""
        reader = self._reader
        head = reader.head
        if head is None or not reader.ended:
            return False
        route = ingest.ROUTES.get((head.method, head.target))
        if route is None or (key := ingest.known_key(self._house.gate, head)) is None:
            return False
        self._expect_nothing()
        body = reader.take()
        self._holds = len(body) <= SHORT
        if self._holds:
            self._socket.hold()
        request = ingest.IngestRequest(route, head, body, self.body_part)
        ingest.begin(self._house.gate, route, request, key, self._give)
        return True

    def _give(self, answer: Answer, chosen: str) -> None:
        """Send the answer to the present request, and go on to the next, if that takes no task."""
        # Answering it may begin the next one.
        holds = self._holds
        # If it is None, nobody is there any more who wants it.
        if self._asleep is not None:
            self._answer_in_place(answer, chosen)
        if holds:
            self._socket.release()

    def _answer_in_place(self, answer: Answer, chosen: str) -> None:
        try:
            data = http_answer.encode(answer, chosen, close=self.closes())
            sent = self._send(data)
            if sent < len(data) or self._closing:
                self._unsent = memoryview(data)[sent:]
                self._wake()
                return
            self._reader.next()
        except Exception as error:  # noqa: BLE001 -- Malformed, or a bug
            self._wake(error)
            return
        if self._reader.head is not None:
            # Whoever sends many takes turns with the others.
            self._hung_up = False
            self._wake()
            return
        self._expect_request()
        if self._socket.drained:
            self._socket.call_when_readable(self._read)
        else:
            self._wake()

    # For the task.

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
        chosen = request_id.choose(None)
        # The context has that of the last request that the task saw to.
        log.debug("malformed_request", status=status, request_id=chosen)
        await self.send(
            http_answer.encode(
                errors.for_status(status),
                chosen,
                close=True,
                bodiless=self._reader.answers_head,
            )
        )

    async def _send_rest(self, rest: memoryview) -> None:
        while rest:
            self._deadline = trio.current_time() + WRITING
            await self._socket.wait_writable()
            rest = rest[self._send(rest) :]
        self._deadline = math.inf

    def _send(self, data: bytes | memoryview) -> int:
        sent = self._socket.send(data)
        if self._socket.gone:
            self._closing = True
        return sent

    async def _linger(self) -> None:
        self._deadline = trio.current_time() + LINGERING
        if not self._socket.end():
            return
        while await self._socket.receive(self._reader.wanted):
            pass

    def _can_skip_rest(self, head: Head) -> bool:
        """Whether what is still to come of the body is worth reading for the next request."""
        left = self._reader.left
        # One that was not told to send its body may have gone on to its next request.
        held_back = head.expects_continue and not self._invited
        return left is not None and left <= SKIPPED and not held_back
