"""Making connections: name lookup, dialling, TLS; each address checked before and after.

Owns the TLS context and the threads that look names up. Guarantees that no packet goes to an
address that the egress guard refuses, whatever a name resolves to at the moment (contract 7), and
that all of it is over within the connect timeout. Cancelled or failed, it leaves no socket open.

Several addresses are tried as RFC 8305 has it: one after the other, each with a short head start,
until one answers. Trying them strictly in turn would let one black-holed address (a broken IPv6
route, most often) eat the whole connect timeout at every attempt.
"""

import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, TypeAlias

import trio

from primeflowd.callback_url import Target
from primeflowd.config import DeliverySettings
from primeflowd.connection import Connection, NetworkFailure, describe
from primeflowd.egress import EgressGuard
from primeflowd.errors import ConfigError
from primeflowd.http_response import Parsers, ResponseReader
from primeflowd.ready_set import Readiness

SocketAddress: TypeAlias = tuple[Any, ...]
"""What the socket module calls an address: (ip, port) or (ip, port, flow, scope)."""

Resolver: TypeAlias = Callable[[str, int], Awaitable[list[tuple[int, SocketAddress]]]]
"""(host, port) -> [(address family, address)], best first. OSError: the lookup failed."""

Lookup: TypeAlias = Callable[[bytes, int, int], list[tuple[int, SocketAddress]]]
"""(host, port, AI_* flags) -> the same. Blocks."""

HEAD_START: Final = 0.25
"""Seconds that an address has before the next one is tried beside it."""

MAX_ADDRESSES: Final = 8
"""Most addresses dialled at one attempt: a name with a thousand makes no flood of us."""

# Looking a name up may hang for half a minute, and the thread with it, long after the attempt
# was given up. With a limiter of their own such threads take no other work's place.
_LOOKUPS_AT_ONCE: Final = 128


class Connector:
    """Opens connections for one configuration."""

    def __init__(
        self,
        settings: DeliverySettings,
        guard: EgressGuard,
        resolver: Resolver | None = None,
        readiness: Readiness | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`resolver` stands in for the system's; `readiness` is for the connections made; `tls` is
        tls_context(settings.ca_file), where that was called before.

        Raises:
            ConfigError: `ca_file` cannot be used.
        """
        self._guard = guard
        self._resolver = resolver or SystemResolver()
        self._readiness = readiness
        self._timeout = settings.connect_timeout
        self._tls = tls or tls_context(settings.ca_file)
        self._new_reader = partial(
            ResponseReader, settings.max_response_header, settings.max_response_body, Parsers()
        )

    async def connect(self, target: Target) -> Connection:
        """A new connection to `target`.

        Raises:
            NetworkFailure: `dns_error`, `url_not_allowed`, `connection_error`, `tls_error`,
                `timeout`, or `internal_error` if this host is out of sockets.
        """
        doing = f"looking up {target.host}"
        address = None
        with trio.move_on_after(self._timeout.seconds):
            candidates = self._allowed(await self._look_up(target))
            doing = f"connecting to {target.host}"
            sock = await _Dial(candidates).first()
            try:
                # Which address it is now is what counts, whatever the resolver meant by its own.
                ip, port = sock.getpeername()[:2]
                if refusal := self._guard.refusal_of_address(ip):
                    raise NetworkFailure("url_not_allowed", refusal)
                address = f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if target.scheme == "https":
                    doing = f"the TLS handshake with {target.host}"
                    sock = await self._secure(sock, target, address)
            except OSError as error:
                sock.close()
                raise NetworkFailure(
                    "connection_error", f"{doing} failed: {describe(error)}", address
                ) from error
            except BaseException:
                # Refused, or cancelled: nobody else knows of the socket.
                sock.close()
                raise
            return Connection(sock, address, self._new_reader(), self._readiness)
        raise NetworkFailure("timeout", f"{doing} took over {self._timeout.text}", address)

    async def _look_up(self, target: Target) -> list[tuple[int, SocketAddress]]:
        try:
            found = await self._resolver(target.host, target.port)
        except OSError as error:
            raise NetworkFailure(
                "dns_error", f"looking up {target.host} failed: {describe(error)}"
            ) from error
        if not found:
            raise NetworkFailure("dns_error", f"{target.host} has no address")
        return found

    def _allowed(self, found: list[tuple[int, SocketAddress]]) -> list[tuple[int, SocketAddress]]:
        allowed = []
        refusals = []
        for family, address in found:
            if refusal := self._guard.refusal_of_address(str(address[0])):
                refusals.append(refusal)
            else:
                allowed.append((family, address))
        if not allowed:
            raise NetworkFailure("url_not_allowed", refusals[0])
        return allowed[:MAX_ADDRESSES]

    async def _secure(self, sock: socket.socket, target: Target, address: str) -> ssl.SSLSocket:
        """Shake hands over `sock`, which is given up to the socket returned, or closed."""
        secured = None
        try:
            # Wrapping sends nothing yet. The name is what the certificate must be for; as bytes,
            # because wrap_socket would lose the socket over text that its own IDNA refuses.
            name = target.host.rstrip(".").encode("ascii")
            secured = self._tls.wrap_socket(
                sock, server_hostname=name, do_handshake_on_connect=False
            )
            while True:
                try:
                    secured.do_handshake()
                    return secured
                except ssl.SSLWantReadError:
                    await trio.lowlevel.wait_readable(secured)
                except ssl.SSLWantWriteError:
                    await trio.lowlevel.wait_writable(secured)
        except BaseException as error:
            # Cancelled, too: wrap_socket has taken the socket from its caller, who cannot close it.
            if secured is not None:
                secured.close()
            if isinstance(error, ssl.SSLError):
                problem = describe(error)
            elif isinstance(error, ValueError):
                problem = "no certificate can be for a host of this name"
            else:
                raise
            raise NetworkFailure(
                "tls_error", f"TLS with {target.host} failed: {problem}", address
            ) from error


class SystemResolver:
    """The system's resolver, in threads that are abandoned when the caller is cancelled."""

    def __init__(self, lookup: Lookup | None = None) -> None:
        """`lookup` stands in for getaddrinfo."""
        self._lookup = lookup or _getaddrinfo
        self._limiter = trio.CapacityLimiter(_LOOKUPS_AT_ONCE)

    async def __call__(self, host: str, port: int) -> list[tuple[int, SocketAddress]]:
        # As bytes: for text the socket module applies an IDNA of 2003 of its own.
        name = host.encode("ascii")
        try:
            # Numbers in any spelling (0x7f.1 too) need no thread: this never blocks.
            return _getaddrinfo(name, port, socket.AI_NUMERICHOST)
        except socket.gaierror:
            return await trio.to_thread.run_sync(
                self._lookup, name, port, 0, abandon_on_cancel=True, limiter=self._limiter
            )


def _getaddrinfo(host: bytes, port: int, flags: int) -> list[tuple[int, SocketAddress]]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    return [(family, address) for family, _, _, _, address in found]


class _Dial:
    """A race between addresses, each with a head start over the next."""

    def __init__(self, addresses: list[tuple[int, SocketAddress]]) -> None:
        self._addresses = addresses
        self._winner: socket.socket | None = None
        self._problems: list[NetworkFailure] = []

    async def first(self) -> socket.socket:
        """The connected socket of the first address that answers.

        Raises:
            NetworkFailure: none does.
        """
        try:
            async with trio.open_nursery() as nursery:
                for family, address in self._addresses:
                    given_up = trio.Event()
                    nursery.start_soon(self._try, nursery, family, address, given_up)
                    with trio.move_on_after(HEAD_START):
                        await given_up.wait()
        except BaseException:
            # Cancelled when one had connected already: its socket has no owner yet.
            if self._winner is not None:
                self._winner.close()
            raise
        if self._winner is None:
            reasons = {problem.reason for problem in self._problems}
            raise NetworkFailure(
                # Where one address was out of reach, what kept us from another matters less.
                "connection_error" if "connection_error" in reasons else "internal_error",
                "; ".join(problem.message for problem in self._problems),
            )
        return self._winner

    async def _try(
        self, nursery: trio.Nursery, family: int, address: SocketAddress, given_up: trio.Event
    ) -> None:
        try:
            sock = await _dial(family, address)
        except NetworkFailure as problem:
            self._problems.append(problem)
            given_up.set()
            return
        if self._winner is None:
            self._winner = sock
            nursery.cancel_scope.cancel()
        else:
            sock.close()


async def _dial(family: int, address: SocketAddress) -> socket.socket:
    try:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as error:
        # Ours is the fault (too many open files, or no IPv6 here), not the receiver's.
        raise NetworkFailure("internal_error", f"no socket to be had: {describe(error)}") from error
    try:
        try:
            sock.connect(address)
        except BlockingIOError:
            await trio.lowlevel.wait_writable(sock)
            if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(code, os.strerror(code)) from None
    except OSError as error:
        sock.close()
        raise NetworkFailure(
            "connection_error", f"connecting to {address[0]} failed: {describe(error)}"
        ) from error
    except BaseException:
        # Cancelled: another address was quicker, or the time is up.
        sock.close()
        raise
    return sock


def tls_context(ca_file: str) -> ssl.SSLContext:
    """The one context of a transport: reading the trust store takes some 20 ms. Any thread.

    Verifies names and certificates, and speaks TLS 1.2 or newer: Python's own defaults.

    Raises:
        ConfigError: `ca_file` cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=ca_file or None)
    except OSError as error:
        raise ConfigError(f"delivery.ca_file: {ca_file}: {describe(error)}") from error
    # Without renegotiation, reading never waits to write nor writing to read.
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    return context
