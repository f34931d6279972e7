"""The receiver for machines without a C compiler: what receiver.c does, on asyncio and httptools.

usage: python -m tests.benchmarks.receiver_fallback ARRIVALS-FILE

It costs several times as much; the calibration row of the report says what.
"""

import asyncio
import mmap
import sys
import time
from pathlib import Path

import httptools

from tests.benchmarks.ledger import CAPACITY, FAILING, HANGING, HEADER, SLOT

_REFUSALS = 2
_ANSWER = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
_OK = _ANSWER % (b"200 OK", 11, b'{"ok":true}')
_FAILED = _ANSWER % (b"500 Internal Server Error", 12, b'{"ok":false}')
_DELIVERED, _REPEATED, _REQUESTS, _UNKNOWN, _UNSIGNED, _BODY_BYTES, _REFUSED, _HUNG = range(8)


class Ledger:
    """The arrivals file, from inside the receiver."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 0)
        self.header = memoryview(self._map)[: HEADER.size].cast("Q")

    def count(self, number: int, host: int) -> bytes | None:
        """What to answer; None for nothing at all."""
        header = self.header
        if not 0 <= number < header[CAPACITY]:
            header[_UNKNOWN] += 1
            return _OK
        place = HEADER.size + number * SLOT.size
        arrived_at, delivered, refused, hung = SLOT.unpack_from(self._map, place)
        answer: bytes | None = _OK
        if host < header[FAILING] and refused < _REFUSALS:
            refused += 1
            header[_REFUSED] += 1
            answer = _FAILED
        elif header[FAILING] <= host < header[FAILING] + header[HANGING]:
            hung += 1
            header[_HUNG] += 1
            answer = None
        elif delivered:
            delivered += 1
            header[_REPEATED] += 1
        else:
            delivered, arrived_at = 1, time.monotonic_ns()
        SLOT.pack_into(self._map, place, arrived_at, delivered, refused, hung)
        # Who sees the count sees the slot.
        header[_DELIVERED] += answer is _OK and delivered == 1
        return answer


class Connection(asyncio.Protocol):
    """One connection; a protocol of asyncio's and a handler of httptools' at once."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._parser = httptools.HttpRequestParser(self)
        self._begin()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        octets = transport.get_extra_info("sockname")[0].split(".")
        if octets[0] != "127":
            transport.close()  # not from this machine
            return
        self._host = int(octets[2]) * 256 + int(octets[3]) - 1

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower().endswith(b"signature"):
            self._is_signed = True

    def on_body(self, body: bytes) -> None:
        self._body += len(body)

    def on_message_complete(self) -> None:
        header = self._ledger.header
        header[_REQUESTS] += 1
        header[_BODY_BYTES] += self._body
        header[_UNSIGNED] += not self._is_signed
        number = int(self._url[3:]) if self._url.startswith(b"/c/") else -1
        answer = self._ledger.count(number, self._host)
        if answer is not None:
            self._transport.write(answer)
        self._begin()

    def _begin(self) -> None:
        self._url = b""
        self._body = 0
        self._is_signed = False


async def main() -> None:
    """Serve until killed."""
    ledger = Ledger(Path(sys.argv[1]))
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(ledger), "0.0.0.0", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
