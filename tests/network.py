"""What the tests of the network side share: settings for loopback, a resolver, certificates, and
how attempts are made."""

import contextlib
import gc
import resource
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import trio
import trustme

from primeflowd.callback_url import parse
from primeflowd.clock import SystemClock
from primeflowd.config import DeliverySettings, Egress
from primeflowd.connector import SocketAddress
from primeflowd.durations import Duration
from primeflowd.exchange import CutShort, Exchange, Unread
from primeflowd.model import Outcome
from primeflowd.request_head import Request, header_lines
from primeflowd.transport import Loaded, Transport

LOOPBACK = Egress(allow=("127.0.0.0/8",))


def settings(
    *,
    timeout: str = "5s",
    connect_timeout: str = "5s",
    ca_file: Path | str = "",
    egress: Egress = LOOPBACK,
    max_idle_per_destination: int = 32,
    max_response_body: int = 8192,
    concurrency: int = 256,
) -> DeliverySettings:
    return DeliverySettings(
        timeout=Duration(timeout),
        connect_timeout=Duration(connect_timeout),
        ca_file=str(ca_file),
        egress=egress,
        max_idle_per_destination=max_idle_per_destination,
        max_response_body=max_response_body,
        concurrency=concurrency,
    )


def request(url: str, body: bytes = b"{}", headers: tuple[tuple[str, str], ...] = ()) -> Request:
    return Request(parse(url), header_lines(headers), body)


def pairs(lines: str) -> tuple[tuple[str, str], ...]:
    """What is in header lines, as names and values."""
    parts = (line.partition(": ") for line in lines.split("\r\n")[:-1])
    return tuple((name, value) for name, _, value in parts)


class FixedResolver:
    """Resolves any name to what it is told; the answers in turn, the last one for good.

    An answer is a list of `(ip, port)`, an OSError to raise, or None to never come back.
    test_connector.py checks that it answers in the form of the real one.
    """

    def __init__(self, *answers: list[tuple[str, int]] | OSError | None) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> list[tuple[int, SocketAddress]]:
        await trio.lowlevel.checkpoint()
        self.asked.append((host, port))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer is None:
            await trio.sleep_forever()
        if isinstance(answer, OSError):
            raise answer
        found: list[tuple[int, SocketAddress]] = []
        for ip, to_port in answer:
            if ":" in ip:
                found.append((socket.AF_INET6, (ip, to_port, 0, 0)))
            else:
                found.append((socket.AF_INET, (ip, to_port)))
        return found


@contextlib.contextmanager
def black_hole() -> Iterator[int]:
    """A port of 127.0.0.1 that answers no SYN, as a firewall that drops packets."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        # Linux drops what comes once the backlog is full.
        while True:
            filler = stack.enter_context(socket.socket())
            filler.settimeout(0.05)
            try:
                filler.connect(address)
            except TimeoutError:
                break
        yield address[1]


def closed_port() -> int:
    """A port of 127.0.0.1 where nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def open_files() -> int:
    """How many file descriptors this process has open."""
    gc.collect()  # what earlier tests left behind is not to be closed while this one counts
    return len(list(Path("/proc/self/fd").iterdir()))


def resident_memory() -> int:
    """Bytes of memory that this process has in use."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


class Authority:
    """A certificate authority of its own."""

    def __init__(self, directory: Path) -> None:
        self._ca = trustme.CA()
        self.ca_file = directory / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.ca_file))

    def server(self, *names: str, **options: object) -> ssl.SSLContext:
        """A server's context with a certificate for `names`."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._ca.issue_cert(*names, **options).configure_cert(context)  # type: ignore[arg-type]
        return context

    def write_server(self, path: Path, *names: str) -> None:
        """Write a certificate for `names` and its key into one PEM file."""
        self._ca.issue_cert(*names).private_key_and_cert_chain_pem.write_to_path(str(path))


def transport(**options: object) -> Transport:
    return Transport(settings(**options), SystemClock())  # type: ignore[arg-type]


async def send(transport_: Transport, sent: Request) -> Outcome:
    """As Transport.send, while its deadlines are seen to."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(transport_.run)
        outcome = await transport_.send(sent)
        nursery.cancel_scope.cancel()
    return outcome


class Told:
    """What `begin` tells, and when."""

    def __init__(self) -> None:
        self.results: list[Outcome | Unread | CutShort] = []
        self._event = trio.Event()

    def __call__(self, _: Exchange, result: Outcome | Unread | CutShort) -> None:
        self.results.append(result)
        self._event.set()

    async def result(self) -> Outcome | Unread | CutShort:
        with trio.fail_after(10):
            await self._event.wait()
        (result,) = self.results
        return result


def begin(transport_: Transport, sent: Request) -> tuple[Exchange | None, Told]:
    exchange, told = Exchange(request=sent), Told()
    begun = transport_.begin(exchange, told, trio.current_time(), SystemClock().now())
    return exchange if begun else None, told


async def both(transport_: Transport, first: Request, second: Request) -> tuple[Outcome, Outcome]:
    """Two attempts at once."""
    outcomes: dict[int, Outcome] = {}

    async def one(number: int, sent: Request) -> None:
        outcomes[number] = await transport_.send(sent)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, 0, first)
        nursery.start_soon(one, 1, second)
    return outcomes[0], outcomes[1]


def loaded(**options: object) -> Loaded:
    return Loaded.of(settings(**options))  # type: ignore[arg-type]
