"""HTTP/1.1 out: one request in, one Outcome back, whatever the network does.

Owns the idle connections and how an attempt is put together: egress rules, an idle connection or
a new one, the exchange, the deadline over all of it. Redirects are not followed, content codings
not undone, nothing is read beyond the limits.

Blocks on the network, at most `delivery.timeout`. Foreign and network exceptions end here: `send`
turns them into Outcomes. Cancelled passes through and leaves no socket behind.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Final

import msgspec
import trio

from primeflowd.callback_url import Target
from primeflowd.clock import Clock
from primeflowd.config import DeliverySettings
from primeflowd.connection import Connection, NetworkFailure
from primeflowd.connector import Connector, Resolver
from primeflowd.egress import EgressGuard
from primeflowd.idle_connections import IdleConnections
from primeflowd.instants import Micros
from primeflowd.model import FailureReason, Outcome
from primeflowd.ready_set import ReadySet

_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# Written by the transport; from elsewhere they could disagree with what is sent.
_OWN_HEADERS: Final = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "expect", "trailer", "upgrade"}
)


# Seconds that an exchange, or an idle connection, may overstay.
_TICK: Final = 0.05

# Who ended an exchange, see Connection.end.
_TOO_LATE: Final = "deadline"
_CUT_SHORT: Final = "cut short"


class Request(msgspec.Struct, frozen=True):
    """A POST to make. `headers` are printable ASCII and leave out Host and Content-Length."""

    target: Target
    headers: tuple[tuple[str, str], ...]
    body: bytes


class CutShort(Exception):
    """The attempt was ended by ourselves; it may or may not have been received."""


class TransportStatistics(msgspec.Struct, frozen=True):
    """Connections `open` now and how many of them `idle`; `connects` made and `reuses` of kept
    ones since the start."""

    open: int
    idle: int
    connects: int
    reuses: int


class Transport:
    """Sends requests under one `[delivery]` table."""

    def __init__(
        self, settings: DeliverySettings, clock: Clock, *, resolver: Resolver | None = None
    ) -> None:
        """`resolver` stands in for the system's.

        Raises:
            ConfigError: `ca_file` cannot be used.
        """
        self._clock = clock
        self._timeout = settings.timeout
        self._guard = EgressGuard(settings.egress)
        self._ready_set = ReadySet()
        self._connector = Connector(settings, self._guard, resolver, self._ready_set)
        # Twice what is under way at once: room for destinations that take turns.
        self._idle = IdleConnections(
            limit=2 * settings.concurrency,
            limit_per_destination=settings.max_idle_per_destination,
            timeout=settings.idle_timeout.seconds,
        )
        # Exchanges under way and when each must be over, for `run` to end; all have the same time,
        # so the first is the next. A cancel scope for each would cost some 7 us; connecting, which
        # is rare, has one.
        self._exchanges: dict[Connection, float] = {}
        self._began = trio.Event()
        self._connecting: set[trio.CancelScope] = set()
        self._in_use = 0
        self._connects = 0
        self._reuses = 0

    def statistics(self) -> TransportStatistics:
        return TransportStatistics(
            open=self._in_use + len(self._idle),
            idle=len(self._idle),
            connects=self._connects,
            reuses=self._reuses,
        )

    async def run(self) -> None:
        """Read answers, end exchanges that take too long, close connections that are idle for too
        long; until cancelled. Without it no answer comes and there is no deadline."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ready_set.run)
            await self._watch_time()

    async def _watch_time(self) -> None:
        while True:
            now = trio.current_time()
            for connection, deadline in self._exchanges.items():
                if deadline > now:
                    break
                connection.end(_TOO_LATE)
            expiry = self._idle.close_expired(now)
            first = next(iter(self._exchanges.values()), None)
            times = [time for time in (first, expiry) if time is not None]
            if times:
                # A little later, so that many that began together are ended together.
                await trio.sleep_until(min(times) + _TICK)
            else:
                self._began = trio.Event()
                await self._began.wait()

    def cut_short(self) -> None:
        """End every attempt under way: its `send` raises CutShort."""
        for connection in self._exchanges:
            connection.end(_CUT_SHORT)
        for scope in self._connecting:
            scope.cancel()

    async def aclose(self) -> None:
        """Close the idle connections; those in use are closed when their attempts end."""
        self._idle.close_all()
        self._ready_set.close()
        await trio.lowlevel.checkpoint()

    async def send(self, request: Request, may_send: Callable[[], bool] = lambda: True) -> Outcome:
        """Make one attempt. `may_send` is asked once more if connecting took time.

        Never raises for what the network, the receiver or the request itself does wrong: that is
        the Outcome's `failure`. Cancelled, it may or may not have been received.

        Raises:
            CutShort: by cut_short(), unless the answer was there already; or it may not be sent.
        """
        started_at = self._clock.now()
        now = trio.current_time()
        deadline = now + self._timeout.seconds
        target = request.target
        connection: Connection | None = None
        failure: tuple[FailureReason, str, str | None] | None = None
        try:
            data = self._prepared(request)
            connection = self._take_idle(target.destination, now)
            if connection is not None and not await self._reused(connection, data, deadline):
                self._give_back(target.destination, connection)
                connection = None
            if connection is None:
                connection = await self._connect(target, deadline)
                if not may_send():
                    raise CutShort
                await self._exchange(connection, data, deadline)
        except NetworkFailure as error:
            failure = error.reason, error.message, error.address
        finally:
            if connection is not None:
                self._give_back(target.destination, connection)
        return self._outcome(started_at, connection, failure)

    def _prepared(self, request: Request) -> bytes:
        if refusal := self._guard.refusal_of_url(request.target.scheme, request.target.port):
            raise NetworkFailure("url_not_allowed", refusal)
        try:
            return encode(request)
        except ValueError as error:
            raise NetworkFailure("internal_error", str(error)) from error

    def _take_idle(self, destination: str, now: float) -> Connection | None:
        connection = self._idle.take(destination, now)
        if connection is not None:
            self._reuses += 1
            self._in_use += 1
        return connection

    async def _connect(self, target: Target, deadline: float) -> Connection:
        with trio.move_on_at(deadline) as scope:
            self._connecting.add(scope)
            try:
                connection = await self._connector.connect(target)
            finally:
                self._connecting.discard(scope)
        if scope.cancelled_caught:
            if trio.current_time() < deadline:
                raise CutShort
            raise self._too_late(None)
        self._connects += 1
        self._in_use += 1
        return connection

    async def _exchange(self, connection: Connection, data: bytes, deadline: float) -> None:
        """As Connection.exchange, to the deadline; tells apart what ended it before that."""
        if not self._exchanges:
            self._began.set()
        self._exchanges[connection] = deadline
        try:
            await connection.exchange(data)
        except NetworkFailure:
            if connection.ended_by == _CUT_SHORT:
                raise CutShort from None
            if connection.ended_by == _TOO_LATE:
                raise self._too_late(connection.address) from None
            raise
        finally:
            del self._exchanges[connection]

    def _too_late(self, address: str | None) -> NetworkFailure:
        return NetworkFailure("timeout", f"no answer within {self._timeout.text}", address)

    def _give_back(self, destination: str, connection: Connection) -> None:
        self._in_use -= 1
        if connection.reusable:
            self._idle.put(destination, connection, trio.current_time())
        else:
            connection.close()

    async def _reused(self, connection: Connection, data: bytes, deadline: float) -> bool:
        """Exchange over a kept connection; False if it turned out to be dead."""
        try:
            await self._exchange(connection, data, deadline)
        except NetworkFailure:
            if connection.response.received or connection.ended_by:
                raise
            # Closed while the request was on its way, most likely, and so never read. If it was
            # read, the receiver gets it twice under one attempt id: delivery is at least once,
            # and a crash of ours at this point would do the same.
            return False
        return True

    def _outcome(
        self,
        started_at: Micros,
        connection: Connection | None,
        failure: tuple[FailureReason, str, str | None] | None,
    ) -> Outcome:
        # The system's clock may have been set back meanwhile.
        ended_at = max(started_at, self._clock.now())
        if connection is not None and connection.response.status is not None:
            # A head that arrived is an answer, even if its body broke off or took for ever.
            response = connection.response
            return Outcome(
                status_code=response.status,
                headers=tuple(response.headers),
                body=response.body,
                address=connection.address,
                started_at=started_at,
                ended_at=ended_at,
            )
        assert failure is not None
        reason, message, address = failure
        return Outcome(
            status_code=None,
            failure=reason,
            error_message=message,
            address=connection.address if connection is not None else address,
            started_at=started_at,
            ended_at=ended_at,
        )


def encode(request: Request) -> bytes:
    """The request as it goes over the wire.

    Raises:
        ValueError: a header could not be sent without changing the message around it.
    """
    target = request.target
    lines = [
        f"POST {target.request_target} HTTP/1.1",
        f"Host: {target.host_header}",
        f"Content-Length: {len(request.body)}",
    ]
    for name, value in request.headers:
        _check_name(name)
        if not (value.isascii() and value.isprintable()):
            raise ValueError(f"the value of the header {name} is not printable ASCII")
        lines.append(f"{name}: {value}")
    lines.append("\r\n")
    return "\r\n".join(lines).encode("ascii") + request.body


# The names are few and always the same; signers choose them.
@lru_cache(maxsize=256)
def _check_name(name: str) -> None:
    if _TOKEN.fullmatch(name) is None:
        raise ValueError(f"{name!a} is no name for a header")
    if name.lower() in _OWN_HEADERS:
        raise ValueError(f"the header {name} is the transport's own")

