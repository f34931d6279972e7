"""The load: one asyncio process that registers ended batches and receives their callbacks.

Client and receiver share a process and thus a clock, so that the time from sending a request to
the arrival of its callback is measured without comparing clocks. It is written on bare asyncio
protocols because it must cost much less than the daemon that it loads; `headroom` in the report
says how much of its core was left.
"""

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable

import httptools

BODY_PADDING = "x" * 260


class Arrivals:
    """Callbacks received, by batch id: the instant of the first, and how many came in all."""

    def __init__(self) -> None:
        self.first: dict[bytes, float] = {}
        self.total = 0

    @property
    def repeated(self) -> int:
        return self.total - len(self.first)


class ReceiverProtocol(asyncio.Protocol):
    """Answers every POST with 200 and notes its webhook-id."""

    def __init__(self, arrivals: Arrivals) -> None:
        self._arrivals = arrivals
        self._parser = httptools.HttpRequestParser(self)
        self._batch_id = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"webhook-id":
            self._batch_id = value

    def on_message_complete(self) -> None:
        arrivals = self._arrivals
        arrivals.total += 1
        arrivals.first.setdefault(self._batch_id, time.perf_counter())
        self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")


class ClientProtocol(asyncio.Protocol):
    """One keep-alive connection to the daemon; `exchange` is one request at a time."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._waiting: asyncio.Future[tuple[int, bytes]] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(ConnectionError("the daemon closed the connection"))

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        body, self._body = b"".join(self._body), []
        assert self._waiting is not None
        self._waiting.set_result((self._parser.get_status_code(), body))
        self._parser = httptools.HttpResponseParser(self)

    async def exchange(self, request: bytes) -> tuple[int, bytes]:
        """Status and body of the answer."""
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._waiting


class Load:
    """Registers batches of one kind, `size` per request, and keeps when each was sent."""

    def __init__(self, port: int, key: str, size: int, hosts: int, receiver_port: int) -> None:
        self.size = size
        self.sent: dict[bytes, float] = {}
        self.refused = 0
        self._port = port
        self._key = key
        urls = [f"http://127.0.0.{k + 1}:{receiver_port}/callback" for k in range(hosts)]
        batches = [self._batch(url) for url in urls]
        if size == 1:
            self._requests = [self._request("/v1/batches", batch) for batch in batches]
        else:
            many = [
                json.dumps({"batches": [json.loads(batches[(k + j) % hosts]) for j in range(size)]})
                for k in range(hosts)
            ]
            self._requests = [self._request("/v1/batches/bulk", body) for body in many]

    def _batch(self, url: str) -> str:
        return json.dumps(
            {
                "callback_url": url,
                "status": "succeeded",
                "output": {"rows": 1234, "note": BODY_PADDING},
                "metadata": {"customer": "c-1"},
            }
        )

    def _request(self, path: str, body: str) -> bytes:
        return (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {self._key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        ).encode()

    async def one(self, client: ClientProtocol, turn: int) -> None:
        """Send one request and note the batches that it made."""
        started = time.perf_counter()
        status, body = await client.exchange(self._requests[turn % len(self._requests)])
        if status not in (200, 201):
            self.refused += 1
            await asyncio.sleep(0.01)
            return
        answer = json.loads(body)
        ids = [answer["id"]] if self.size == 1 else [r["id"] for r in answer["results"]]
        for batch_id in ids:
            self.sent[batch_id.encode()] = started

    async def closed_loop(self, connections: int, until: float) -> None:
        """As fast as answers come, on so many connections, until `time.perf_counter()`."""

        async def work(number: int) -> None:
            client = await self._connect()
            turn = number
            while time.perf_counter() < until:
                await self.one(client, turn)
                turn += connections

        await asyncio.gather(*(work(k) for k in range(connections)))

    async def open_loop(self, rate: float, connections: int, until: float) -> None:
        """`rate` requests a second, evenly spaced, whatever the answers take."""
        free = deque([await self._connect() for _ in range(connections)])
        running: set[asyncio.Task[None]] = set()

        async def work(client: ClientProtocol, turn: int) -> None:
            await self.one(client, turn)
            free.append(client)

        start = time.perf_counter()
        turn = 0
        while (now := time.perf_counter()) < until:
            if start + turn / rate > now or not free:
                await asyncio.sleep(max(0.0005, start + turn / rate - now))
                continue
            task = asyncio.create_task(work(free.popleft(), turn))
            running.add(task)
            task.add_done_callback(running.discard)
            turn += 1
        await asyncio.gather(*running)

    async def _connect(self) -> ClientProtocol:
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(ClientProtocol, "127.0.0.1", self._port)
        return client


async def settle(arrived: Callable[[], bool], seconds: float) -> bool:
    """Wait until `arrived()`; False if it was not within `seconds`."""
    deadline = time.perf_counter() + seconds
    while not arrived():
        if time.perf_counter() > deadline:
            return False
        await asyncio.sleep(0.02)
    return True
