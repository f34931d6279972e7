"""connector.py: lookup, dialling and TLS, and that nothing refused is ever touched."""

import resource
import socket
import ssl
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio
import trio.testing

from primeflowd.callback_url import parse
from primeflowd.config import Egress
from primeflowd.connection import Connection, NetworkFailure
from primeflowd.connector import (
    HEAD_START,
    MAX_ADDRESSES,
    Connector,
    Resolver,
    SocketAddress,
    SystemResolver,
)
from primeflowd.egress import EgressGuard
from primeflowd.errors import ConfigError
from primeflowd.testing.receiver import Answer, open_receiver
from tests.network import (
    LOOPBACK,
    Authority,
    FixedResolver,
    black_hole,
    closed_port,
    open_files,
    settings,
)


def connector(
    resolver: Resolver | None = None,
    *,
    egress: Egress = LOOPBACK,
    connect_timeout: str = "5s",
    ca_file: Path | str = "",
) -> Connector:
    chosen = settings(connect_timeout=connect_timeout, ca_file=ca_file, egress=egress)
    return Connector(chosen, EgressGuard(egress), resolver)


async def failure_of(connector: Connector, url: str) -> NetworkFailure:
    before = open_files()
    with pytest.raises(NetworkFailure) as caught:
        await connector.connect(parse(url))
    # A server in this process needs its turn to close what we closed.
    await trio.testing.wait_all_tasks_blocked()
    assert open_files() <= before
    return caught.value


async def connected(connector: Connector, url: str) -> Connection:
    connection = await connector.connect(parse(url))
    connection.close()
    return connection


# Addresses


@pytest.mark.parametrize("host", ["127.0.0.1", "0x7f.1", "2130706433", "[::ffff:127.0.0.1]"])
async def test_spellings_of_loopback(nursery: trio.Nursery, host: str) -> None:
    """7: odd spellings lead to the address they mean: refused, or allowed, with that address."""
    async with open_receiver(nursery, host="0.0.0.0") as receiver:
        url = f"http://{host}:{receiver.port}/"
        failure = await failure_of(connector(egress=Egress()), url)
        assert failure.reason == "url_not_allowed"
        assert "loopback" in failure.message
        assert failure.address is None
        # The next connection is the first that the receiver sees.
        connection = await connected(connector(), url)
        assert (
            connection.address.endswith(f"127.0.0.1:{receiver.port}") or "]" in connection.address
        )


async def test_ipv6(nursery: trio.Nursery) -> None:
    """7: IPv6 literals are dialled as such."""
    async with open_receiver(nursery, host="::1") as receiver:
        connection = await connected(connector(egress=Egress(allow=("::1/128",))), receiver.url())
        assert connection.address == f"[::1]:{receiver.port}"


async def test_refused_addresses_are_skipped(nursery: trio.Nursery) -> None:
    """7: each address of a name is judged alone, and only those allowed are dialled."""
    async with open_receiver(nursery) as receiver:
        resolver = FixedResolver(
            [("10.0.0.1", 80), ("169.254.169.254", 80), ("::1", 80), ("127.0.0.1", receiver.port)]
        )
        connection = await connected(connector(resolver), "http://many.test/")
        assert connection.address == f"127.0.0.1:{receiver.port}"


async def test_all_addresses_refused(nursery: trio.Nursery) -> None:
    """7: refused at once, no connection made, and the first refusal explains."""
    async with open_receiver(nursery) as receiver:
        resolver = FixedResolver([("127.0.0.1", receiver.port), ("::1", receiver.port)])
        failure = await failure_of(connector(resolver, egress=Egress()), "http://inside.test/")
        assert failure.reason == "url_not_allowed"
        assert failure.message.startswith("127.0.0.1 is a loopback address")
        assert receiver.connections == 0


async def test_rebinding(nursery: trio.Nursery) -> None:
    """7: a name that resolves to an allowed address once is checked again the next time."""
    async with (
        open_receiver(nursery) as outside,
        open_receiver(nursery, host="127.0.0.2") as inside,
    ):
        resolver = FixedResolver([("127.0.0.1", outside.port)], [("127.0.0.2", inside.port)])
        connector_ = connector(resolver, egress=Egress(allow=("127.0.0.1/32",)))
        await connected(connector_, "http://rebinding.test/")
        failure = await failure_of(connector_, "http://rebinding.test/")
        assert failure.reason == "url_not_allowed"
        assert resolver.asked == [("rebinding.test", 80)] * 2
        assert inside.connections == 0


async def test_a_resolver_cannot_smuggle_a_name() -> None:
    """7: sockets would resolve a name by themselves, past the check; it is no address."""
    failure = await failure_of(connector(FixedResolver([("localhost", 80)])), "http://odd.test/")
    assert failure.reason == "url_not_allowed"


class SecondThoughts(EgressGuard):
    """Allows an address when it is first asked about, and refuses it from then on."""

    def __init__(self) -> None:
        super().__init__(LOOPBACK)
        self._seen: set[str] = set()

    def refusal_of_address(self, ip: str) -> str | None:
        if ip in self._seen:
            return f"{ip} is where we are now"
        self._seen.add(ip)
        return None


async def test_the_address_connected_to_is_judged(nursery: trio.Nursery) -> None:
    """7: what counts is the peer of the socket, before a byte is sent to it."""
    async with open_receiver(nursery) as receiver:
        before = open_files()
        with pytest.raises(NetworkFailure, match="where we are now") as caught:
            await Connector(settings(), SecondThoughts()).connect(parse(receiver.url()))
        assert caught.value.reason == "url_not_allowed"
        await trio.testing.wait_all_tasks_blocked()
        assert open_files() == before
        assert receiver.requests == []


# Name lookup


async def test_fixed_resolver_answers_as_the_real_one() -> None:
    """The fake of these tests is true to what it stands for."""
    for ip in ("127.0.0.1", "::1"):
        assert await SystemResolver()(ip, 80) == await FixedResolver([(ip, 80)])(ip, 80)
    with pytest.raises(socket.gaierror):
        await SystemResolver()("a" * 64, 80)


@pytest.mark.parametrize("host", ["a" * 64, "a..b"])
async def test_names_that_cannot_be(host: str) -> None:
    """5.3: what the resolver refuses is a DNS error, also where Python's IDNA would raise."""
    failure = await failure_of(connector(), f"http://{host}/")
    assert failure.reason == "dns_error"
    assert host in failure.message


async def test_lookup_fails() -> None:
    """5.3: the resolver said no: dns_error."""
    unknown = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    failure = await failure_of(connector(FixedResolver(unknown)), "http://gone.test/")
    assert (failure.reason, failure.message) == (
        "dns_error",
        "looking up gone.test failed: Name or service not known",
    )
    failure = await failure_of(connector(FixedResolver([])), "http://gone.test/")
    assert failure.reason == "dns_error"


async def test_lookup_hangs(autojump_clock: trio.testing.MockClock) -> None:
    """5.3: the resolver said nothing within the connect timeout: timeout."""
    failure = await failure_of(connector(FixedResolver(None)), "http://slow.test/")
    assert (failure.reason, failure.message) == ("timeout", "looking up slow.test took over 5s")


async def test_hanging_lookups_are_abandoned_and_starve_nobody() -> None:
    """A resolver that hangs takes threads of its own, not those that storage and others use."""
    release = threading.Event()
    hanging = 0

    def lookup(host: bytes, port: int, flags: int) -> list[tuple[int, SocketAddress]]:
        nonlocal hanging
        hanging += 1
        release.wait()
        return []

    others = trio.to_thread.current_default_thread_limiter()
    stuck = connector(SystemResolver(lookup), connect_timeout="100ms")
    try:
        async with trio.open_nursery() as nursery:
            for _ in range(round(others.total_tokens) + 5):
                nursery.start_soon(failure_of_lookup, stuck)
        assert hanging > others.total_tokens
        assert others.borrowed_tokens == 0
        # Numbers are not looked up at all.
        failure = await failure_of(stuck, f"http://127.0.0.1:{closed_port()}/")
        assert failure.reason == "connection_error"
    finally:
        release.set()


async def failure_of_lookup(connector: Connector) -> None:
    with pytest.raises(NetworkFailure, match="looking up"):
        await connector.connect(parse("http://hangs.test/"))


# Dialling


async def test_refused_connection() -> None:
    """5.3: nobody listens: connection_error, at once."""
    failure = await failure_of(connector(), f"http://127.0.0.1:{closed_port()}/")
    assert failure.reason == "connection_error"
    assert failure.message == "connecting to 127.0.0.1 failed: Connection refused"
    assert failure.address is None


async def test_next_address_after_a_refusal(nursery: trio.Nursery) -> None:
    """The next address is tried at once when one fails."""
    async with open_receiver(nursery) as receiver:
        closed = [("127.0.0.1", closed_port())] * (MAX_ADDRESSES - 1)
        resolver = FixedResolver([*closed, ("127.0.0.1", receiver.port)])
        with trio.fail_after(HEAD_START * 4):
            connection = await connected(connector(resolver), "http://many.test/")
        assert connection.address == f"127.0.0.1:{receiver.port}"


async def test_next_address_beside_a_silent_one(nursery: trio.Nursery) -> None:
    """A black-holed address costs its head start, not the whole connect timeout."""
    before = open_files()
    with black_hole() as silent:
        async with open_receiver(nursery) as receiver:
            addresses = [("127.0.0.1", silent), ("127.0.0.1", receiver.port)]
            started = trio.current_time()
            await connected(connector(FixedResolver(addresses)), "http://two.test/")
            assert HEAD_START <= trio.current_time() - started < 5
    await trio.testing.wait_all_tasks_blocked()
    assert open_files() <= before


async def test_all_addresses_fail() -> None:
    """The message tells of each; no more are dialled than MAX_ADDRESSES."""
    addresses = [(f"127.0.0.{n + 1}", closed_port()) for n in range(MAX_ADDRESSES + 3)]
    failure = await failure_of(connector(FixedResolver(addresses)), "http://many.test/")
    assert failure.reason == "connection_error"
    assert failure.message.count("Connection refused") == MAX_ADDRESSES


async def test_silent_address() -> None:
    """5.3: no connection within the connect timeout: timeout."""
    with black_hole() as silent:
        url = f"http://127.0.0.1:{silent}/"
        failure = await failure_of(connector(connect_timeout="100ms"), url)
    assert (failure.reason, failure.message) == (
        "timeout",
        "connecting to 127.0.0.1 took over 100ms",
    )


async def test_no_socket_to_be_had() -> None:
    """Too many open files is our own fault, and must not be held against the destination."""
    connector_ = connector()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as probe:
        lowest_free = probe.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        with pytest.raises(NetworkFailure) as caught:
            await connector_.connect(parse("http://127.0.0.1:9/"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.reason == "internal_error"
    assert "Too many open files" in caught.value.message


# TLS


async def test_tls(nursery: trio.Nursery, tmp_path: Path) -> None:
    """7: a certificate of a configured authority, for the name or the address, is accepted."""
    authority = Authority(tmp_path)
    context = authority.server("localhost", "127.0.0.1")
    async with open_receiver(nursery, tls=context) as receiver:
        resolver = FixedResolver([("127.0.0.1", receiver.port)])
        trusting = connector(resolver, ca_file=authority.ca_file)
        for url in ("https://127.0.0.1/", "https://LOCALHOST/", "https://localhost./"):
            assert (await connected(trusting, url)).address == f"127.0.0.1:{receiver.port}"


Server = Callable[[Authority, Path], ssl.SSLContext]


@pytest.mark.parametrize(
    ("server", "complaint"),
    [
        (lambda ours, _: ours.server("other.test"), "certificate refused"),
        (
            lambda ours, _: ours.server("127.0.0.1", not_after=datetime(2020, 1, 1, tzinfo=UTC)),
            "certificate refused: certificate has expired",
        ),
        (lambda _, path: Authority(path).server("127.0.0.1"), "certificate refused"),
    ],
    ids=["wrong host", "expired", "unknown authority"],
)
async def test_bad_certificates(
    nursery: trio.Nursery, tmp_path: Path, server: Server, complaint: str
) -> None:
    """7: TLS is verified; the failure says what is wrong with the certificate."""
    (tmp_path / "other").mkdir()
    ours = Authority(tmp_path)
    context = server(ours, tmp_path / "other")
    async with open_receiver(nursery, tls=context) as receiver:
        connector_ = connector(ca_file=ours.ca_file)
        with pytest.raises(NetworkFailure) as caught:
            await connector_.connect(parse(receiver.url()))
    assert caught.value.reason == "tls_error"
    assert complaint in caught.value.message
    assert caught.value.address == f"127.0.0.1:{receiver.port}"
    assert receiver.requests == []


async def test_the_system_trusts_no_made_up_authority(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    """7: without ca_file the system's trust store decides."""
    context = Authority(tmp_path).server("127.0.0.1")
    async with open_receiver(nursery, tls=context) as receiver:
        with pytest.raises(NetworkFailure) as caught:
            await connector().connect(parse(receiver.url()))
    assert caught.value.reason == "tls_error"


async def test_tls_before_1_2_is_refused(nursery: trio.Nursery, tmp_path: Path) -> None:
    """7: nothing older than TLS 1.2."""
    authority = Authority(tmp_path)
    context = authority.server("127.0.0.1")
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        context.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    async with open_receiver(nursery, tls=context) as receiver:
        with pytest.raises(NetworkFailure) as caught:
            await connector(ca_file=authority.ca_file).connect(parse(receiver.url()))
    assert caught.value.reason == "tls_error"


async def serve_bytes(nursery: trio.Nursery, answer: bytes | None) -> int:
    """A port whose server says `answer` to the first bytes and closes; None: says nothing."""

    async def handle(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        if answer is None:
            await trio.sleep_forever()
        await stream.send_all(answer)

    listeners = await nursery.start(trio.serve_tcp, handle, 0)
    port: int = listeners[0].socket.getsockname()[1]
    return port


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
async def test_https_to_what_is_no_tls(answer: bytes) -> None:
    """5.3: a server that speaks no TLS is a TLS error."""
    async with trio.open_nursery() as nursery:
        port = await serve_bytes(nursery, answer)
        failure = await failure_of(connector(), f"https://127.0.0.1:{port}/")
        assert failure.reason == "tls_error"
        assert failure.address == f"127.0.0.1:{port}"
        nursery.cancel_scope.cancel()


async def test_handshake_hangs() -> None:
    """5.3: a handshake that is not over within the connect timeout is a timeout."""
    async with trio.open_nursery() as nursery:
        port = await serve_bytes(nursery, None)
        with pytest.raises(NetworkFailure) as caught:
            await connector(connect_timeout="100ms").connect(parse(f"https://127.0.0.1:{port}/"))
        nursery.cancel_scope.cancel()
    assert caught.value.reason == "timeout"
    assert caught.value.message == "the TLS handshake with 127.0.0.1 took over 100ms"
    assert caught.value.address == f"127.0.0.1:{port}"


async def test_a_host_that_no_certificate_can_name(nursery: trio.Nursery) -> None:
    """5.3: what the TLS library refuses as a name is a TLS error, not a crash."""
    async with open_receiver(nursery, Answer(hang=True)) as receiver:
        resolver = FixedResolver([("127.0.0.1", receiver.port)])
        for host in ("a" * 64, "a..b", ".a"):
            failure = await failure_of(connector(resolver), f"https://{host}/")
            assert failure.reason == "tls_error"


def test_unusable_ca_file(tmp_path: Path) -> None:
    """7: a bundle that cannot be used is told at the start."""
    with pytest.raises(ConfigError, match=r"delivery\.ca_file.*No such file"):
        connector(ca_file=tmp_path / "missing.pem")
    empty = tmp_path / "empty.pem"
    empty.write_text("no certificate\n")
    with pytest.raises(ConfigError, match=r"delivery\.ca_file"):
        connector(ca_file=empty)
