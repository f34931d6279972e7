"""Exchanges that need no task, and what the end of any exchange means.

Owns the way from what a connection says at the end to what the attempt has met: an Outcome, Unread
or CutShort. Guarantees that whoever began one is told once, after its connection was put back or
closed; or never, if it was abandoned.

Blocks in `finish` only, on the network, within the deadline. What a connection raises ends here.
"""

from collections.abc import Callable
from typing import Any

import msgspec
import trio

from primeflowd.clock import Clock
from primeflowd.connection import Connection, NetworkFailure
from primeflowd.deadlines import CUT_SHORT, TOO_LATE, Deadlines
from primeflowd.durations import Duration
from primeflowd.idle_connections import IdleConnections
from primeflowd.instants import Micros
from primeflowd.model import Outcome
from primeflowd.ready_set import ReadySet
from primeflowd.request_head import Request


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
        request: what is sent.
        started_at: when it started.
        began: when it did, on Trio's clock.
    """

    request: Request
    started_at: Micros = 0
    began: float = 0.0
    connection: Connection | None = None
    ends: "Ends | None" = None
    tell: Callable[[Any, Outcome | Unread | CutShort], None] | None = None
    finishing: trio.CancelScope | None = None

    def told(self, failure: NetworkFailure | None) -> None:
        """For the connection: it is over."""
        ends, connection = self.ends, self.connection
        assert ends is not None
        assert connection is not None
        assert self.tell is not None
        deadline = ends.deadlines.unwatch(connection)
        result = (
            answered(self.started_at, connection, ends.ready_set.told_at)
            if failure is None
            else ends.unanswered(self, connection, failure, deadline)
        )
        # Idle since it was begun, by that: nearly the same, and there is no need to ask the time.
        ends.idle.put(self.request.target.destination, connection, self.began)
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


class Ends:
    """What the ends of a transport's exchanges have in common.

    Attributes:
        timeout: of those that have none of their own.
    """

    __slots__ = ("clock", "deadlines", "idle", "ready_set", "timeout")

    def __init__(
        self,
        clock: Clock,
        ready_set: ReadySet,
        idle: IdleConnections,
        deadlines: Deadlines,
        timeout: Duration,
    ) -> None:
        self.clock = clock
        self.ready_set = ready_set
        self.idle = idle
        self.deadlines = deadlines
        self.timeout = timeout

    def unanswered(
        self, exchange: Exchange, connection: Connection, failure: NetworkFailure, deadline: float
    ) -> Outcome | Unread | CutShort:
        """What an exchange over a kept connection has met that came to no good end."""
        if was_unread(connection):
            return Unread(exchange.started_at, deadline)
        meant = self.meant(connection, failure, exchange.request.timeout)
        if isinstance(meant, CutShort):
            return meant
        return self.outcome(exchange.started_at, connection, meant)

    def meant(
        self, connection: Connection, failure: NetworkFailure, own: Duration | None
    ) -> NetworkFailure | CutShort:
        """What the failure of an exchange comes from. `own`: the timeout of its request."""
        if connection.ended_by == CUT_SHORT:
            return CutShort()
        if connection.ended_by == TOO_LATE:
            return self.too_late(own, connection.address)
        return failure

    def too_late(self, own: Duration | None, address: str | None) -> NetworkFailure:
        """As `meant`, for what has taken too long."""
        text = (own or self.timeout).text
        return NetworkFailure("timeout", f"no answer within {text}", address)

    def outcome(
        self, started_at: Micros, connection: Connection | None, failure: NetworkFailure | None
    ) -> Outcome:
        """What an attempt has met that ends now; without a connection, or an answer, `failure`."""
        ended_at = self.clock.now()
        if connection is not None and connection.response.status is not None:
            # A head that arrived is an answer, even if its body broke off or took for ever.
            return answered(started_at, connection, ended_at)
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


def answered(started_at: Micros, connection: Connection, ended_at: Micros) -> Outcome:
    """The outcome of an exchange whose answer has come."""
    response = connection.response
    return Outcome(
        status_code=response.status,
        headers=response.headers,
        body=response.body,
        address=connection.address,
        started_at=started_at,
        ended_at=ended_at if ended_at > started_at else started_at,
    )


def was_unread(connection: Connection) -> bool:
    """Of a kept connection that broke: whether its exchange is most likely Unread."""
    return not connection.response.received and not connection.ended_by
