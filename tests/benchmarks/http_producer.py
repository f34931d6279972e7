"""Hands callbacks in over HTTP: to primeflowd, or straight to the receiver to calibrate that.

usage: python -m tests.benchmarks.http_producer     (see producer.py)

An epoll loop over plain sockets: it must cost much less than what it loads. In an open job a
request that finds all connections busy counts from when it should have gone.
"""

import json
import select
import socket
import time
from collections import deque
from collections.abc import Callable

import httptools
import msgspec

from tests.benchmarks.producer import Body, Pace, Settings, output, serve


class _Result(msgspec.Struct):
    error: msgspec.Raw | None = None


class _Results(msgspec.Struct):
    results: list[_Result]


_results = msgspec.json.Decoder(_Results)


class Connection:
    """One keep-alive connection with at most one request on its way."""

    def __init__(self, port: int, key: str) -> None:
        self.port = port
        self.key = key
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._parser = httptools.HttpResponseParser(self)
        self.numbers = range(0)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def send(self, request: bytes, numbers: range) -> None:
        self.numbers = numbers
        self._body = b""
        self._is_complete = False
        self._socket.sendall(request)

    def receive(self) -> bool:
        """Take what has come; True once the answer is whole."""
        data = self._socket.recv(262_144)
        if not data:
            raise ConnectionError("a connection was closed")
        self._parser.feed_data(data)
        return self._is_complete

    def refused(self) -> list[int]:
        """The numbers that the answer refuses."""
        if self._parser.get_status_code() not in (200, 201):
            return list(self.numbers)
        if len(self.numbers) == 1:
            return []
        results = _results.decode(self._body).results
        return [n for n, result in zip(self.numbers, results, strict=True) if result.error]

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self._is_complete = True


class Requests:
    """Makes the bytes of requests."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._rest = json.dumps({"status": "succeeded", "output": output()})[1:-1]
        self._payload = Body()

    def make(self, connection: Connection, numbers: range) -> bytes:
        if self._settings.target["kind"] == "receiver":
            number = numbers[0]
            return self._post(
                f"/c/{number:010d}", "X-Signature: " + "0" * 64, self._payload.text(number)
            )
        authorization = f"Authorization: Bearer {connection.key}"
        if self._settings.size == 1:
            return self._post("/v1/batches", authorization, self._batch(numbers[0]))
        batches = ",".join(map(self._batch, numbers))
        return self._post("/v1/batches/bulk", authorization, f'{{"batches":[{batches}]}}')

    def _batch(self, number: int) -> str:
        return (
            f'{{"callback_url":"{self._settings.url(number)}",{self._rest},'
            f'"metadata":{{"customer":"{number:010d}"}}}}'
        )

    def _post(self, path: str, header: str, body: str) -> bytes:
        return (
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{header}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        ).encode()


class Producer:
    """All connections and the loop over them."""

    def __init__(self, settings: Settings) -> None:
        self._requests = Requests(settings)
        self._epoll = select.epoll()
        nodes = settings.target["nodes"]
        self._connections: dict[int, Connection] = {}
        # The longest unused goes first, so that none is idle for long in a job.
        self._free: deque[Connection] = deque()
        for k in range(settings.connections):
            node = nodes[k % len(nodes)]
            self._connect(node["port"], node["key"])

    def work(self, pace: Pace) -> None:
        self._replace_closed()
        waiting: deque[range] = deque()
        while True:
            now = time.monotonic_ns()
            over = pace.is_over(now)
            # In an open job all that is due is taken, sent or not, so that its time is noted.
            while not over and (pace.is_open or len(waiting) < len(self._free)):
                if not pace.is_due(now):
                    break
                waiting.append(pace.take(now))
            while waiting and self._free:
                connection, numbers = self._free.popleft(), waiting.popleft()
                connection.send(self._requests.make(connection, numbers), numbers)
            if over and not waiting and len(self._free) == len(self._connections):
                return
            is_idle = not over and (pace.is_open or self._free)
            self._await_answers(pace, pace.wait(now) if is_idle else None)

    def _await_answers(self, pace: Pace, seconds: float | None) -> None:
        # select() takes fractions of a millisecond, which poll() on the set itself does not.
        select.select([self._epoll], [], [], seconds)
        for file, _ in self._epoll.poll(0):
            connection = self._connections[file]
            if not connection.receive():
                continue
            now = time.monotonic_ns()
            refused = set(connection.refused())
            for number in connection.numbers:
                if number in refused:
                    pace.refuse(number)
                else:
                    pace.accept(number, now)
            self._free.append(connection)

    def _connect(self, port: int, key: str) -> None:
        connection = Connection(port, key)
        self._connections[connection.fileno()] = connection
        self._epoll.register(connection, select.EPOLLIN)
        self._free.append(connection)

    def _replace_closed(self) -> None:
        """Between jobs, while others are measured, servers close what is idle."""
        for file, _ in self._epoll.poll(0):
            closed = self._connections.pop(file)
            self._epoll.unregister(file)
            self._free.remove(closed)
            closed.close()
            self._connect(closed.port, closed.key)


def prepare(settings: Settings) -> Callable[[Pace], None]:
    return Producer(settings).work


if __name__ == "__main__":
    serve(prepare)
