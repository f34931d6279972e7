"""One client's connection to the front door: requests in, answers out, one at a time and in order.

One task serves a connection from accept to close, and one cancel scope, the connection's own, is
all that ends it early: nothing is started or entered per request. The task does whatever takes
waiting; what does not is done in its sleep (conversation.py).

Deadlines are a number that the front door has looked at once in a while (`watch`), and so is a
client that hangs up while its request is being answered: that cancels whoever waits for the answer,
not what is committed by then (intake.py). One that half-closes and waits gets its answer if that
takes no longer than a second.

Blocks on the client and on what answers. Nothing that a client does raises out of `run`.
"""

from socket import socket
from typing import Final

import structlog
import trio

from primeflowd.api import errors, http_answer, ingest, request_id
from primeflowd.api.asgi_bridge import Address, Exchange
from primeflowd.api.client_socket import ClientSocket
from primeflowd.api.conversation import Conversation
from primeflowd.api.house import House
from primeflowd.api.http_request import Malformed, RequestReader
from primeflowd.api.known_heads import Head

log = structlog.get_logger()

WRITING: Final = 60.0
"""Seconds in which a client must take at least something of its answer."""

LINGERING: Final = 1.0
"""Seconds for which what a client still sends is thrown away before the socket is closed: a close
with bytes unread is a reset, which could overtake the last answer."""


class ClientConnection:
    """An accepted connection; owns its socket."""

    __slots__ = ("_conversation", "_house", "_reader", "_scope", "_socket", "client")

    def __init__(self, sock: socket, client: Address, house: House) -> None:
        self.client = client
        self._socket = ClientSocket(sock, house.readiness)
        self._house = house
        # Before its task runs: several are admitted in one go.
        house.connections.add(self)
        self._reader = RequestReader(house.known)
        self._conversation = Conversation(self._socket, self._reader, house)
        self._scope = trio.CancelScope()

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
        """See house.Watched."""
        if self._conversation.is_to_end(now):
            self._scope.cancel()

    # What answers call: see asgi_bridge.Wire.

    async def body_part(self) -> tuple[bytes, bool]:
        conversation, reader = self._conversation, self._reader
        while True:
            part = reader.take()
            if part or reader.ended:
                return part, not reader.ended
            assert reader.head is not None
            if reader.head.expects_continue and not conversation.invited:
                conversation.invited = True
                await self.send(http_answer.CONTINUE)
            data = await self._socket.receive(reader.wanted)
            if not data:
                conversation.closing = True
                raise Malformed(400)
            try:
                reader.feed(data)
            except Malformed:
                conversation.closing = True
                raise

    async def send(self, data: bytes) -> None:
        sent = self._conversation.send(data)
        if sent < len(data):
            await self._send_rest(memoryview(data)[sent:])

    def closes(self) -> bool:
        return self._conversation.closes()

    def give_up(self) -> None:
        self._conversation.closing = True

    # The task.

    async def _serve(self) -> None:
        conversation = self._conversation
        try:
            while head := await self._next_request():
                if conversation.unsent is None:
                    await self._answer(head)
                else:
                    rest, conversation.unsent = conversation.unsent, None
                    await self._send_rest(rest)
                if conversation.closing:
                    break
                self._reader.next()
        except Malformed as error:
            await self._refuse(error.status)
        if conversation.closing and not self._socket.gone:
            await self._linger()

    async def _next_request(self) -> Head | None:
        """The head of the next request that the task is needed for, None if there will be none.

        Raises:
            Malformed: and the connection is of no more use.
        """
        conversation, reader = self._conversation, self._reader
        head = reader.head
        if head is not None:
            conversation.go_straight_on()
            # Whoever sends many takes turns with the others.
            await trio.lowlevel.checkpoint()
            return head
        conversation.expect_request()
        while reader.head is None and not conversation.over:
            if self._socket.is_quiet():
                await conversation.sleep()
            else:
                conversation.take_in(await self._socket.receive(reader.wanted))
        conversation.expect_nothing()
        return reader.head

    async def _answer(self, head: Head) -> None:
        route = ingest.ROUTES.get((head.method, head.target))
        if route is None:
            await Exchange(self, head).run(self._house.application)
            return
        if self._reader.ended:
            request = ingest.IngestRequest(route, head, self._reader.take())
        else:
            request = ingest.IngestRequest(route, head, None, self.body_part)
        answer, chosen = await ingest.answer(self._house.gate, route, request)
        await self.send(http_answer.encode(answer, chosen, close=self._conversation.closes()))

    async def _refuse(self, status: int) -> None:
        """Answer what is no request. Nothing that follows it can be understood."""
        self._conversation.closing = True
        self._conversation.expect_nothing()
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
        conversation = self._conversation
        while rest:
            conversation.expect_move(WRITING)
            await self._socket.wait_writable()
            rest = rest[conversation.send(rest) :]
        conversation.expect_nothing()

    async def _linger(self) -> None:
        self._conversation.expect_move(LINGERING)
        if not self._socket.end():
            return
        while await self._socket.receive(self._reader.wanted):
            pass
