"""HTTP/1.1 out: one request in, one Outcome back, whatever the network does.

Owns the settings to go by and how an attempt is put together: egress rules, an idle connection
or a new one, the exchange, the deadline over all of it. Redirects are not followed, content codings
not undone, nothing is read beyond the limits.

Blocks on the network, at most `delivery.timeout`. Foreign and network exceptions end here: `send`
turns them into Outcomes. Cancelled passes through and leaves no socket behind.
"""

import ssl
from collections.abc import Callable
from typing import Self, TypeVar

import msgspec
import trio

from primeflowd.callback_url import Target
from primeflowd.clock import Clock
from primeflowd.config import DeliverySettings
from primeflowd.connection import Connection, NetworkFailure
from primeflowd.connector import Connector, Resolver, SystemResolver, tls_context
from primeflowd.deadlines import Deadlines
from primeflowd.durations import Duration
from primeflowd.egress import EgressGuard
from primeflowd.exchange import CutShort, Ends, Exchange, Unread, was_unread
from primeflowd.idle_connections import IdleConnections
from primeflowd.instants import Micros
from primeflowd.model import Outcome
from primeflowd.ready_set import ReadySet
from primeflowd.request_head import Request, encode

E = TypeVar("E", bound=Exchange)


class TransportStatistics(msgspec.Struct, frozen=True):
    """Connections `open` now and how many of them `idle`; `connects` made and `reuses` of kept
    ones since the start."""

    open: int
    idle: int
    connects: int
    reuses: int


class Loaded(msgspec.Struct, frozen=True):
    """A `[delivery]` table, and what it names, read."""

    settings: DeliverySettings
    tls: ssl.SSLContext

    @classmethod
    def of(cls, settings: DeliverySettings) -> Self:
        """Blocks on reading the trust store. Any thread.

        Raises:
            ConfigError: `ca_file` cannot be used.
        """
        return cls(settings, tls_context(settings.ca_file))


class Transport:
    """Sends requests under one `[delivery]` table; under another one from `reconfigure` on."""

    def __init__(
        self, settings: DeliverySettings, clock: Clock, *, resolver: Resolver | None = None
    ) -> None:
        """`resolver` stands in for the system's.

        Raises:
            ConfigError: `ca_file` cannot be used.
        """
        self._clock = clock
        self._resolver = resolver or SystemResolver()
        self._ready_set = ReadySet(clock)
        self._idle = IdleConnections(*_idle_limits(settings))
        self._deadlines = Deadlines()
        self._ends = Ends(clock, self._ready_set, self._idle, self._deadlines, settings.timeout)
        self._go_by(Loaded.of(settings))
        self._nursery: trio.Nursery | None = None
        self._connecting: set[trio.CancelScope] = set()
        self._connects = 0

    def reconfigure(self, loaded: Loaded) -> None:
        """Go by `loaded` from now on.

        Attempts under way end by the deadline that they began with. A connection is not used again
        if it was made under other settings of who may be connected to, how, or how much is read.
        """
        before = self._settings
        self._go_by(loaded)
        self._deadlines.part()
        self._idle.reconfigure(*_idle_limits(loaded.settings))
        # A file of the same name may hold other authorities now.
        if loaded.settings.ca_file or _bound(loaded.settings) != _bound(before):
            self._idle.clear()
            self._deadlines.retire()

    def _go_by(self, loaded: Loaded) -> None:
        self._settings = loaded.settings
        self._ends.timeout = loaded.settings.timeout
        self._seconds = loaded.settings.timeout.seconds
        self._guard = EgressGuard(loaded.settings.egress)
        self._connector = Connector(
            loaded.settings, self._guard, self._resolver, self._ready_set, loaded.tls
        )

    def statistics(self) -> TransportStatistics:
        return TransportStatistics(
            # From the moment that it is made or taken one is watched until it is put back.
            open=len(self._deadlines) + len(self._idle),
            idle=len(self._idle),
            connects=self._connects,
            reuses=self._idle.reuses,
        )

    async def run(self) -> None:
        """Read answers, end exchanges that take too long, close connections that are idle for too
        long; until cancelled. Without it no answer comes and there is no deadline."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ready_set.run)
            self._nursery = nursery
            try:
                await self._deadlines.run(self._idle.close_expired)
            finally:
                self._nursery = None

    def cut_short(self) -> None:
        """End every attempt under way: its `send` raises CutShort."""
        self._deadlines.cut_short()
        for scope in self._connecting:
            scope.cancel()

    async def aclose(self) -> None:
        """Close the idle connections; those in use are closed when their attempts end."""
        self._idle.close_all()
        self._ready_set.close()
        await trio.lowlevel.checkpoint()

    def begin(
        self,
        exchange: E,
        ended: Callable[[E, Outcome | Unread | CutShort], None],
        now: float,
        started_at: Micros,
    ) -> bool:
        """Make an attempt without a task, if there is a kept connection for it; whether there is.
        `now`: Trio's time; `started_at`: the time of day.

        `ended` is called once, perhaps before this returns, and must not raise; unless the
        exchange is abandoned.
        """
        if self._nursery is None:
            return False
        request = exchange.request
        # That such a URL may be connected to was asked when the connection was made: it would not
        # be kept under other rules.
        try:
            data = encode(request)
        except ValueError:
            # Rare; `send` says it.
            return False
        connection = self._idle.take(request.target.destination, now)
        if connection is None:
            return False
        timeout = request.timeout
        if timeout is None:
            self._deadlines.watch(connection, now + self._seconds, False)
        else:
            self._deadlines.watch(connection, now + timeout.seconds, True)
        exchange.started_at = started_at
        exchange.began = now
        exchange.connection = connection
        exchange.ends = self._ends
        exchange.tell = ended
        rest = connection.begin(data, exchange.told)
        if rest is not None:
            self._nursery.start_soon(exchange.finish, rest)
        return True

    def abandon(self, exchange: Exchange) -> None:
        """End one that was begun and has not ended, and do not tell. It may or may not have been
        received."""
        assert exchange.connection is not None
        if exchange.finishing is not None:
            exchange.finishing.cancel()
        self._deadlines.unwatch(exchange.connection)
        exchange.connection.close()

    async def send(
        self,
        request: Request,
        may_send: Callable[[], bool] = lambda: True,
        unread: Unread | None = None,
    ) -> Outcome:
        """Make one attempt. `may_send` is asked once more if connecting took time. `unread` is the
        attempt as it has begun, if it has.

        Never raises for what the network, the receiver or the request itself does wrong: that is
        the Outcome's `failure`. Cancelled, it may or may not have been received.

        Raises:
            CutShort: by cut_short(), unless the answer was there already; or it may not be sent.
        """
        timeout = request.timeout
        seconds = self._seconds if timeout is None else timeout.seconds
        began = unread or Unread(self._clock.now(), trio.current_time() + seconds)
        deadline, target = began.deadline, request.target
        connection: Connection | None = None
        failure: NetworkFailure | None = None
        try:
            data = self._prepared(request)
            if unread is None:
                connection = self._idle.take(target.destination, trio.current_time())
            if connection is not None and not await self._reused(
                connection, data, deadline, timeout
            ):
                connection.close()
                connection = None
            if connection is None:
                connection = await self._connect(target, deadline, timeout)
                if not may_send():
                    raise CutShort
                await self._exchange(connection, data, deadline, timeout)
        except NetworkFailure as error:
            failure = error
        finally:
            if connection is not None:
                self._idle.put(target.destination, connection, trio.current_time())
        return self._ends.outcome(began.started_at, connection, failure)

    def _prepared(self, request: Request) -> bytes:
        if refusal := self._guard.refusal_of_url(request.target.scheme, request.target.port):
            raise NetworkFailure("url_not_allowed", refusal)
        try:
            return encode(request)
        except ValueError as error:
            raise NetworkFailure("internal_error", str(error)) from error

    async def _connect(self, target: Target, deadline: float, own: Duration | None) -> Connection:
        with trio.move_on_at(deadline) as scope:
            self._connecting.add(scope)
            try:
                connection = await self._connected(target)
            finally:
                self._connecting.discard(scope)
        if scope.cancelled_caught:
            if trio.current_time() < deadline:
                raise CutShort
            raise self._ends.too_late(own, None)
        self._connects += 1
        return connection

    async def _connected(self, target: Target) -> Connection:
        while True:
            connector = self._connector
            connection = await connector.connect(target)
            if connector is self._connector:
                return connection
            # By settings that hold no more: nothing may be sent where those of now refuse it.
            connection.close()

    async def _exchange(
        self, connection: Connection, data: bytes, deadline: float, own: Duration | None
    ) -> None:
        """As Connection.exchange, to the deadline; tells apart what ended it before that."""
        self._deadlines.watch(connection, deadline, own is not None)
        try:
            await connection.exchange(data)
        except NetworkFailure as failure:
            raise self._ends.meant(connection, failure, own) from None
        finally:
            self._deadlines.unwatch(connection)

    async def _reused(
        self, connection: Connection, data: bytes, deadline: float, own: Duration | None
    ) -> bool:
        """Exchange over a kept connection; False if it turned out to be dead."""
        try:
            await self._exchange(connection, data, deadline, own)
        except NetworkFailure:
            if was_unread(connection):
                return False
            raise
        return True


def _idle_limits(settings: DeliverySettings) -> tuple[int, int, float]:
    # Twice what is under way at once: room for destinations that take turns.
    limit = 2 * settings.concurrency
    return limit, settings.max_idle_per_destination, settings.idle_timeout.seconds


def _bound(settings: DeliverySettings) -> tuple[object, ...]:
    """What a connection keeps to for as long as it lives."""
    limits = settings.max_response_header, settings.max_response_body
    return settings.egress, settings.ca_file, *limits
