"""One request and its answer between a connection of the front door and an ASGI application.

Blocks on the client: for the body as the application asks for it, and for each part of the answer
until the socket has taken it. An application that fails before it has begun to answer is answered
for; one that fails later costs the connection. It is not told when a client hangs up, it is
cancelled: see client_connection.py.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, Protocol, TypeAlias
from urllib.parse import unquote

import trio

from primeflowd.api import errors, http_answer, request_id
from primeflowd.api.answer import Answer
from primeflowd.api.http_request import Malformed
from primeflowd.api.known_heads import Head

Address: TypeAlias = tuple[str, int] | None

# As the ASGI specification has them: each kind of event has its own keys.
Event: TypeAlias = MutableMapping[str, Any]
Application: TypeAlias = Callable[
    [Event, Callable[[], Awaitable[Event]], Callable[[Event], Awaitable[None]]], Awaitable[None]
]

_BODILESS: Final = (204, 304)


class Wire(Protocol):
    """What the bridge needs of a connection."""

    @property
    def client(self) -> Address: ...

    @property
    def server(self) -> Address: ...

    async def body_part(self) -> tuple[bytes, bool]:
        """What has come of the body since the last time, and whether there is more of it.

        Raises:
            Malformed: the body is.
        """
        ...

    async def send(self, data: bytes) -> None:
        """Send part of an answer; to a client that is gone everything is sent."""
        ...

    def closes(self) -> bool:
        """Whether the answer that is about to begin is the last on this connection."""
        ...

    def give_up(self) -> None:
        """Make it the last, now that it has begun."""
        ...


class Exchange:
    """One request, handed to an application."""

    def __init__(self, wire: Wire, head: Head) -> None:
        self._wire = wire
        self._head = head
        self._bodiless = head.method == b"HEAD"
        self._body_ended = False
        self._malformed: Malformed | None = None
        # Of the answer: its head while that waits for the first part of the body, how far it is,
        # whether it goes in chunks, and how much of its declared length is still to come.
        self._held = b""
        self._begun = False
        self._ended = False
        self._chunked = False
        self._left = 0

    async def run(self, application: Application) -> None:
        """Have the request answered; returns when it is."""
        answer = None
        try:
            await application(self._scope(), self._receive, self._send)
        except Exception as error:  # noqa: BLE001 - the application's bug is not the connection's
            answer = errors.answer_to(error)
        if self._ended:
            return
        if self._begun:
            # Half an answer: a close is the only way left to say so.
            self._wire.give_up()
            return
        if self._malformed is not None:
            answer = errors.for_status(self._malformed.status)
        await self._answer(answer or errors.for_status(500))

    async def _answer(self, answer: Answer) -> None:
        await self._wire.send(
            http_answer.encode(
                answer,
                request_id.choose(None),
                close=self._wire.closes(),
                bodiless=self._head.method == b"HEAD",
            )
        )

    def _scope(self) -> Event:
        head = self._head
        path, _, query = head.target.partition(b"?")
        return {
            "type": "http",
            "asgi": {"spec_version": "2.1", "version": "3.0"},
            "http_version": head.version,
            "method": head.method.decode("ascii"),
            "scheme": "http",
            "path": unquote(path.decode("ascii")),
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": head.headers,
            "client": self._wire.client,
            "server": self._wire.server,
            "state": {},
            "extensions": {},
        }

    async def _receive(self) -> Event:
        if self._body_ended:
            await trio.sleep_forever()
        try:
            body, more = await self._wire.body_part()
        except Malformed as error:
            self._malformed = error
            return {"type": "http.disconnect"}
        self._body_ended = not more
        return {"type": "http.request", "body": body, "more_body": more}

    async def _send(self, event: Event) -> None:
        if event["type"] == "http.response.start":
            self._hold(event["status"], list(event["headers"]))
        elif event["type"] == "http.response.body":
            await self._send_part(event.get("body", b""), event.get("more_body", False))

    def _hold(self, status: int, fields: list[tuple[bytes, bytes]]) -> None:
        """Keep the head of the answer until there is something to send it with."""
        self._bodiless = self._bodiless or status in _BODILESS
        lengths = [int(value) for name, value in fields if name.lower() == b"content-length"]
        if not self._bodiless:
            if lengths:
                self._left = lengths[0]
            elif self._head.version == "1.1":
                self._chunked = True
                fields.append((b"transfer-encoding", b"chunked"))
            # Else, in HTTP/1.0, the close ends it, and each of those answers is the last.
        self._held = http_answer.start(status, http_answer.lines(fields), close=self._wire.closes())

    async def _send_part(self, body: bytes, more: bool) -> None:
        data = b""
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if not more:
                data += b"0\r\n\r\n"
        elif not self._bodiless:
            data = body
            self._left -= len(body)
        data, self._held = self._held + data, b""
        self._begun = True
        if data:
            await self._wire.send(data)
        if not more:
            self._ended = True
            if self._left:
                self._wire.give_up()
