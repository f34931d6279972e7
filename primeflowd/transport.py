"""HTTP/1.1 out: one request in, one Outcome back, whatever the network does.

Owns the idle connections and how an attempt is put together: egress rules, an idle connection or
a new one, the exchange, the deadline over all of it. Redirects are not followed, content codings
not undone, nothing is read beyond the limits.

Blocks on the network, at most `delivery.timeout`. Foreign and network exceptions end here: `send`
turns them into Outcomes. Cancelled passes through and leaves no socket behind.
"""

import math
import ssl
from collections.abc import Callable
from typing import Any, Final, Self, TypeVar

import msgspec
import trio

from primeflowd.callback_url import Target
from primeflowd.clock import Clock
from primeflowd.config import DeliverySettings
from primeflowd.connection import Connection, NetworkFailure
from primeflowd.connector import Connector, Resolver, SystemResolver, tls_context
from primeflowd.durations import Duration
from primeflowd.egress import EgressGuard
from primeflowd.idle_connections import IdleConnections
from primeflowd.instants import Micros
from primeflowd.model import Outcome
from primeflowd.ready_set import ReadySet
from primeflowd.request_head import Request, encode

# Seconds that an exchange, or an idle connection, may overstay.
_TICK: Final = 0.05

# Who ended an exchange, see Connection.end.
_TOO_LATE: Final = "deadline"
_CUT_SHORT: Final = "cut short"


class Unread(msgspec.Struct, frozen=True):
    """An attempt over a kept connection that the other side had given up: most likely it was never
    read, and `send` goes on with it, within its time. If it was, the receiver gets it twice under
    one id: delivery is at least once, and a crash of ours at this point would do the same."""

    started_at: Micros
    deadline: float


class CutShort(Exception):
    """The attempt was ended by ourselves; it may or may not have been received."""


class Exchange(msgspec.Struct, eq=False, kw_only=True):
    """An attempt under way over a kept connection, without a task. Whoever has it made gives it to
    Transport.begin, which fills it in: one object for all that is known of an attempt.

    Attributes:
        started_at: when it started.
        began, deadline: when it did, and when it must be over, on Trio's clock.
    """

    started_at: Micros = 0
    began: float = 0.0
    deadline: float = 0.0
    destination: str = ""
    timeout: Duration | None = None
    connection: Connection | None = None
    transport: "Transport | None" = None
    tell: Callable[[Any, "Outcome | Unread | CutShort"], None] | None = None
    finishing: trio.CancelScope | None = None

    def told(self, failure: NetworkFailure | None) -> None:
        """For the connection: it is over."""
        transport, connection = self.transport, self.connection
        assert transport is not None
        assert connection is not None
        assert self.tell is not None
        transport._unwatch(connection)
        result = (
            transport._answered(self.started_at, connection, transport._ready_set.told_at)
            if failure is None
            else transport._unanswered(self, connection, failure)
        )
        # Idle since it was begun, by that: nearly the same, and there is no need to ask the time.
        transport._idle.put(self.destination, connection, self.began)
        self.tell(self, result)

    async def finish(self, rest: memoryview) -> None:
        """For the transport: send what the socket did not take at once."""
        assert self.connection is not None
        failure = None
        with trio.CancelScope() as self.finishing:
            try:
                await self.connection.finish(rest)
            except NetworkFailure as error:
                failure = error
            self.told(failure)


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
        self._go_by(Loaded.of(settings))
        # Exchanges under way and when each must be over, for `run` to end. Nearly all have the same
        # time, so the first is the next; those with a time of their own are apart. A cancel scope
        # for each would cost some 7 us; connecting, which is rare, has one.
        self._exchanges: dict[Connection, float] = {}
        self._apart: dict[Connection, float] = {}
        # When `run` looks next, and how it is told that this is too late.
        self._look_at = math.inf
        self._sooner = trio.Event()
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
        # Their time is not that of those to come.
        self._apart |= self._exchanges
        self._exchanges.clear()
        self._idle.reconfigure(*_idle_limits(loaded.settings))
        # A file of the same name may hold other authorities now.
        if loaded.settings.ca_file or _bound(loaded.settings) != _bound(before):
            self._idle.clear()
            for connection in self._apart:
                connection.retire()
        self._sooner.set()

    def _go_by(self, loaded: Loaded) -> None:
        self._settings, self._timeout = loaded.settings, loaded.settings.timeout
        self._seconds = self._timeout.seconds
        self._guard = EgressGuard(loaded.settings.egress)
        self._connector = Connector(
            loaded.settings, self._guard, self._resolver, self._ready_set, loaded.tls
        )

    def statistics(self) -> TransportStatistics:
        return TransportStatistics(
            # From the moment that it is made or taken one is watched until it is put back.
            open=len(self._exchanges) + len(self._apart) + len(self._idle),
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
                await self._watch_time()
            finally:
                self._nursery = None

    async def _watch_time(self) -> None:
        while True:
            now = trio.current_time()
            for connection, deadline in self._exchanges.items():
                if deadline > now:
                    break
                connection.end(_TOO_LATE)
            for connection, deadline in self._apart.items():
                if deadline <= now:
                    connection.end(_TOO_LATE)
            expiry = self._idle.close_expired(now)
            first = next(iter(self._exchanges.values()), None)
            times = [time for time in (first, expiry, *self._apart.values()) if time is not None]
            # A little later, so that many that began together are ended together. Not at once
            # again for one that was told to end and has not yet.
            self._look_at = max(min(times, default=math.inf), now) + _TICK
            self._sooner = trio.Event()
            with trio.move_on_at(self._look_at):
                await self._sooner.wait()

    def cut_short(self) -> None:
        """End every attempt under way: its `send` raises CutShort."""
        for connection in (*self._exchanges, *self._apart):
            connection.end(_CUT_SHORT)
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
        request: Request,
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
        # That such a URL may be connected to was asked when the connection was made: it would not
        # be kept under other rules.
        try:
            data = encode(request)
        except ValueError:
            # Rare; `send` says it.
            return False
        destination = request.target.destination
        connection = self._idle.take(destination, now)
        if connection is None:
            return False
        timeout = request.timeout
        deadline = now + (self._seconds if timeout is None else timeout.seconds)
        self._watch(connection, deadline, timeout)
        exchange.started_at = started_at
        exchange.began = now
        exchange.deadline = deadline
        exchange.destination = destination
        exchange.timeout = timeout
        exchange.connection = connection
        exchange.transport = self
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
        self._unwatch(exchange.connection)
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
        return self._outcome(began.started_at, connection, failure)

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
            raise self._too_late(own, None)
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
        self._watch(connection, deadline, own)
        try:
            await connection.exchange(data)
        except NetworkFailure as failure:
            raise self._meant(connection, failure, own) from None
        finally:
            self._unwatch(connection)

    def _watch(self, connection: Connection, deadline: float, timeout: Duration | None) -> None:
        """See to it that an exchange ends."""
        if timeout is None:
            self._exchanges[connection] = deadline
        else:
            self._apart[connection] = deadline
        if deadline < self._look_at - _TICK:
            self._sooner.set()

    def _unwatch(self, connection: Connection) -> None:
        if connection in self._exchanges:
            del self._exchanges[connection]
        else:
            del self._apart[connection]

    def _meant(
        self, connection: Connection, failure: NetworkFailure, timeout: Duration | None
    ) -> NetworkFailure | CutShort:
        """What the failure of an exchange comes from."""
        if connection.ended_by == _CUT_SHORT:
            return CutShort()
        if connection.ended_by == _TOO_LATE:
            return self._too_late(timeout, connection.address)
        return failure

    def _unanswered(
        self, exchange: Exchange, connection: Connection, failure: NetworkFailure
    ) -> Outcome | Unread | CutShort:
        if not connection.response.received and not connection.ended_by:
            return Unread(exchange.started_at, exchange.deadline)
        meant = self._meant(connection, failure, exchange.timeout)
        if isinstance(meant, CutShort):
            return meant
        return self._outcome(exchange.started_at, connection, meant)

    def _too_late(self, timeout: Duration | None, address: str | None) -> NetworkFailure:
        text = (timeout or self._timeout).text
        return NetworkFailure("timeout", f"no answer within {text}", address)

    async def _reused(
        self, connection: Connection, data: bytes, deadline: float, own: Duration | None
    ) -> bool:
        """Exchange over a kept connection; False if it turned out to be dead."""
        try:
            await self._exchange(connection, data, deadline, own)
        except NetworkFailure:
            if connection.response.received or connection.ended_by:
                raise
            # See Unread.
            return False
        return True

    def _outcome(
        self,
        started_at: Micros,
        connection: Connection | None,
        failure: NetworkFailure | None,
    ) -> Outcome:
        ended_at = self._clock.now()
        if connection is not None and connection.response.status is not None:
            # A head that arrived is an answer, even if its body broke off or took for ever.
            return self._answered(started_at, connection, ended_at)
        assert failure is not None
        return Outcome(
            status_code=None,
            failure=failure.reason,
            error_message=failure.message,
            address=connection.address if connection is not None else failure.address,
            started_at=started_at,
            # The system's clock may have been set back meanwhile.
            ended_at=max(started_at, ended_at),
        )

    def _answered(self, started_at: Micros, connection: Connection, ended_at: Micros) -> Outcome:
        response = connection.response
        return Outcome(
            status_code=response.status,
            headers=response.headers,
            body=response.body,
            address=connection.address,
            started_at=started_at,
            ended_at=ended_at if ended_at > started_at else started_at,
        )


def _idle_limits(settings: DeliverySettings) -> tuple[int, int, float]:
    # Twice what is under way at once: room for destinations that take turns.
    limit = 2 * settings.concurrency
    return limit, settings.max_idle_per_destination, settings.idle_timeout.seconds


def _bound(settings: DeliverySettings) -> tuple[object, ...]:
    """What a connection keeps to for as long as it lives."""
    limits = settings.max_response_header, settings.max_response_body
    return settings.egress, settings.ca_file, *limits
