"""A programmable receiver of callbacks, for tests, demos and benchmarks.

A real HTTP/1.1 server on a real socket, that records every request byte for byte and answers
each as its script says: well, slowly, wrongly, never. In a test::

    async with open_receiver(nursery, [Answer(status=500), Answer()]) as receiver:
        ...send to receiver.url("/hook")...
        assert [request.body for request in receiver.requests] == [b"{}", b"{}"]

As a process (`python -m primeflowd.testing.receiver --port 0`) it prints its port as the first
line, then one JSON object per request, to standard output or to the file named by `--log`.
"""

import argparse
import contextlib
import os
import signal
import socket
import ssl
import struct
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Final, TypeAlias

import httptools
import trio

from primeflowd.testing import answers
from primeflowd.testing.answers import Answer
from primeflowd.testing.arrivals import Parts, Received, RequestReader, line

__all__ = ["Answer", "Received", "Receiver", "Script", "open_receiver"]

_CHUNK: Final = 65_536
_NO_LINGER: Final = struct.pack("ii", 1, 0)
_AT_ONCE: Final = Answer()

_Stream: TypeAlias = trio.SocketStream | trio.SSLStream[trio.SocketStream]

Script: TypeAlias = Answer | Sequence[Answer] | Callable[[Received], Answer]
"""One answer for all; one for each request in turn, the last for all that follow; or a choice."""


class Receiver:
    """A running receiver.

    Attributes:
        script: may be replaced while it runs.
        requests: all that arrived, unless `record` takes them.
        connections: how many were accepted.
    """

    def __init__(
        self,
        script: Script,
        base_url: str,
        port: int,
        record: Callable[[Received], object] | None,
        *,
        read_bodies: bool,
    ) -> None:
        self.script = script
        self.port = port
        self.requests: list[Received] = []
        self.connections = 0
        self.read_bodies = read_bodies
        self._base_url = base_url
        self._record = record or self.requests.append
        self._count = 0
        self._arrival = trio.Event()

    def url(self, path: str = "/") -> str:
        """A URL that leads here."""
        return self._base_url + path

    async def wait_requests(self, count: int) -> None:
        """Wait until `count` requests have arrived since the start."""
        while self._count < count:
            await self._arrival.wait()

    def next_number(self) -> int:
        self._count += 1
        return self._count

    def arrived(self, request: Received) -> Answer:
        """Record `request`; how to answer it."""
        self._record(request)
        self._arrival.set()
        self._arrival = trio.Event()
        if isinstance(self.script, Answer):
            return self.script
        if callable(self.script):
            return self.script(request)
        return answers.turn(self.script, request.number)


@contextlib.asynccontextmanager
async def open_receiver(
    nursery: trio.Nursery,
    script: Script = _AT_ONCE,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    tls: ssl.SSLContext | None = None,
    record: Callable[[Received], object] | None = None,
    read_bodies: bool = True,
) -> AsyncIterator[Receiver]:
    """Run a receiver in `nursery` until the block is left.

    `port` 0 takes a free one. `record` is called with each request in place of keeping it.
    Without `read_bodies` a request is answered once its head is there and no more of it is read,
    unless it came along with the head.
    """
    v6 = ":" in host
    family = socket.AF_INET6 if v6 else socket.AF_INET
    with socket.create_server((host, port), family=family, backlog=1024) as listening:
        port = listening.getsockname()[1]
        base = f"{'https' if tls else 'http'}://{f'[{host}]' if v6 else host}:{port}"
        receiver = Receiver(script, base, port, record, read_bodies=read_bodies)

        async def converse(transport: trio.SocketStream) -> None:
            stream: _Stream = transport
            if tls is not None:
                stream = trio.SSLStream(transport, tls, server_side=True, https_compatible=True)
            await _Conversation(receiver, transport, stream).run()

        scope = trio.CancelScope()
        done = trio.Event()

        async def serve() -> None:
            try:
                with scope:
                    listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
                    await trio.serve_listeners(converse, [listener])
            finally:
                # Also when a script raised or the nursery was cancelled, or the block hangs.
                done.set()

        nursery.start_soon(serve)
        try:
            yield receiver
        finally:
            scope.cancel()
            # Short: it only closes its sockets. The port is free when the block is left.
            with trio.CancelScope(shield=True):
                await done.wait()


class _Cut(Exception):
    """The answer ends here, where its script says so."""


class _Conversation:
    """One connection: reads a request, answers it, reads the next."""

    def __init__(self, receiver: Receiver, transport: trio.SocketStream, stream: _Stream) -> None:
        receiver.connections += 1
        self._receiver = receiver
        self._number = receiver.connections
        self._transport = transport
        self._stream = stream
        self._reader = RequestReader()
        self._left: int | None = None

    async def run(self) -> None:
        try:
            while (parts := await self._read()) and await self._serve(parts):
                pass
        except (
            trio.BrokenResourceError,
            httptools.HttpParserError,
            httptools.HttpParserUpgrade,
        ):
            pass  # the client went away, or speaks something else
        finally:
            # A TLS goodbye would wait for the client's; it has what it came for.
            await trio.aclose_forcefully(self._stream)

    async def _read(self) -> Parts | None:
        reader = self._reader
        while not reader.ready:
            if reader.head_complete and not self._receiver.read_bodies:
                return reader.parts(keep_alive=False)
            data = await self._stream.receive_some(_CHUNK)
            if not data:
                return None
            reader.feed(data)
        return reader.ready.popleft()

    async def _serve(self, parts: Parts) -> bool:
        """Answer a request; whether the connection is good for another."""
        method, target, headers, body, keep_alive = parts
        answer = self._receiver.arrived(
            Received(
                number=self._receiver.next_number(),
                connection=self._number,
                method=method,
                target=target,
                headers=tuple(headers),
                body=body,
                arrived_at=time.time_ns() // 1000,
            )
        )
        if answer.delay:
            await trio.sleep(answer.delay)
        self._left = 0 if answer.hang and answer.cut is None else answer.cut
        try:
            await self._answer(answer)
        except _Cut:
            keep_alive = False
            if answer.hang:
                while await self._stream.receive_some(_CHUNK):
                    pass
        if answer.reset:
            self._transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        return keep_alive and not answer.close and not answer.reset and answer.raw is None

    async def _answer(self, answer: Answer) -> None:
        for start in range(0, answer.interim, 1000):
            hints = b"HTTP/1.1 103 Early Hints\r\n\r\n" * min(1000, answer.interim - start)
            await self._send(hints, answer.drip)
        if answer.raw is not None:
            await self._send(answer.raw, answer.drip)
            return
        head = answers.head(answer)
        if answer.endless_head:
            await self._send(head.removesuffix(b"\r\n"), answer.drip)
            while True:
                await self._send(b"X-More: and more\r\n" * 100, answer.drip)
        if answer.body_size is None:
            await self._send(head + b"".join(answers.body(answer)), answer.drip)
            return
        await self._send(head, answer.drip)
        for piece in answers.body(answer):
            await self._send(piece, answer.drip)

    async def _send(self, data: bytes, drip: float | None) -> None:
        if self._left is not None:
            data = data[: self._left]
            self._left -= len(data)
        if drip is None:
            await self._stream.send_all(data)
        else:
            for byte in data:
                await trio.sleep(drip)
                await self._stream.send_all(bytes((byte,)))
        if self._left == 0:
            raise _Cut


async def _run(options: argparse.Namespace) -> None:
    # One unbuffered write a request: whoever reads the file sees it whole or not at all, and what
    # arrived is on record even if this process is killed.
    if options.log:
        log = options.log.open("ab", buffering=0)
    else:
        log = os.fdopen(sys.stdout.fileno(), "wb", buffering=0, closefd=False)
    tls = None
    if options.tls:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(options.tls)
    script: Script = options.script
    if options.by_attempt:

        def script(request: Received) -> Answer:
            return answers.turn(options.script, request.attempt())

    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with (
            trio.open_nursery() as nursery,
            open_receiver(
                nursery,
                script,
                host=options.host,
                port=options.port,
                tls=tls,
                record=lambda request: log.write(line(request)),
            ) as receiver,
        ):
            sys.stdout.write(f"{receiver.port}\n")
            sys.stdout.flush()
            await anext(signals)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m primeflowd.testing.receiver", description="Receive callbacks, as scripted."
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 takes a free one")
    parser.add_argument(
        "--script",
        type=answers.read_script,
        default=(_AT_ONCE,),
        help="answers as JSON, one for each request in turn, the last for all that follow",
    )
    parser.add_argument(
        "--by-attempt", action="store_true", help="one for each attempt of a delivery in turn"
    )
    parser.add_argument("--log", type=Path, help="file to append requests to, as lines of JSON")
    parser.add_argument("--tls", type=Path, help="PEM file with a certificate chain and its key")
    trio.run(_run, parser.parse_args())


if __name__ == "__main__":
    main()
