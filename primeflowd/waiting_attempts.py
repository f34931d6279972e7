"""Attempts that have to wait for something: a payload, an org's secrets, a connection.

Owns a task for each of them, which sees it to its end, or puts it off where nothing can be known.
Guarantees that each of them is concluded, on record as interrupted, or postponed; only one that is
cancelled before it is sent leaves nothing behind.

Blocks on storage and the network. Failures of the network and of signers end as outcomes; storage
that is out of reach postpones; anything else that raises here is a bug.
"""

from collections.abc import Awaitable, Callable
from typing import Protocol

import structlog
import trio

from primeflowd.attempts import unsent
from primeflowd.clock import Clock
from primeflowd.conclusions import Conclusions
from primeflowd.destination import Held
from primeflowd.destinations import Destinations
from primeflowd.errors import StorageUnavailable
from primeflowd.exchange import CutShort, Unread
from primeflowd.instants import SECOND, Micros
from primeflowd.model import Outcome
from primeflowd.preparation import Preparation, UnderWay, Unsendable
from primeflowd.request_head import Request

log = structlog.get_logger()

# Why attempts are cut short.
OUT_OF_TOUCH = "this node lost touch with its storage"
SHUT_DOWN = "primeflowd was shut down"


class Wire(Protocol):
    """What is needed of the transport."""

    async def send(
        self, request: Request, may_send: Callable[[], bool], unread: Unread | None = None
    ) -> Outcome: ...


class Tenure(Protocol):
    """What is needed of the lease."""

    def covers(self, claimed_by: str | None) -> bool: ...


class Desk(Protocol):
    """What is needed of the holdings."""

    def postpone(self, held: Held, until: Micros) -> None: ...


class WaitingAttempts:
    """For the senders. `len` is how many there are; `on_end` is told of each end.

    Attributes:
        nursery: for their tasks; set before any of them is begun.
    """

    def __init__(
        self,
        *,
        preparation: Preparation,
        transport: Wire,
        lease: Tenure,
        destinations: Destinations,
        desk: Desk,
        conclusions: Conclusions,
        clock: Clock,
        busy: dict[str, str],
        on_end: Callable[[], None],
    ) -> None:
        """`busy`: the ids of attempts by those of their deliveries, from which an attempt is taken
        that comes to nothing."""
        self._preparation = preparation
        self._transport = transport
        self._lease = lease
        self._destinations = destinations
        self._desk = desk
        self._conclusions = conclusions
        self._clock = clock
        self._busy = busy
        self._on_end = on_end
        self._tasks = 0
        self.nursery: trio.Nursery | None = None

    def __len__(self) -> int:
        return self._tasks

    def prepare(self, held: Held, attempt_id: str) -> None:
        """Wait for what is missing, then send."""
        self._start(held, attempt_id, lambda: self._prepare(held, attempt_id))

    def send(self, attempt: UnderWay, unread: Unread | None = None) -> None:
        """Send, over a connection that may have to be made first; or go on so with one that was
        most likely not read."""
        self._start(attempt.held, attempt.id, lambda: self._send(attempt, unread))

    def _start(self, held: Held, attempt_id: str, function: Callable[[], Awaitable[None]]) -> None:
        async def run() -> None:
            try:
                await function()
            except trio.Cancelled:
                self._over(held.delivery.id, attempt_id)
                raise
            finally:
                self._tasks -= 1
                self._on_end()

        assert self.nursery is not None
        self._tasks += 1
        self.nursery.start_soon(run)

    async def _prepare(self, held: Held, attempt_id: str) -> None:
        try:
            attempt = await self._preparation.prepare(held, attempt_id)
        except StorageUnavailable as error:
            log.warning("attempt_postponed", delivery_id=held.delivery.id, error=str(error))
            self._postpone(held, attempt_id)
        except Unsendable as error:
            outcome = unsent(error.reason, error.message, self._clock.now())
            self._conclusions.conclude(held, attempt_id, outcome, error.signed)
        else:
            await self._send(attempt, None)

    async def _send(self, attempt: UnderWay, unread: Unread | None) -> None:
        held, signed = attempt.held, attempt.signed

        def may_send() -> bool:
            return self._lease.covers(held.delivery.claimed_by)

        # Looked at last: while this waited for something, another node may have taken over.
        if unread is None and not may_send():
            self._postpone(held, attempt.id)
            return
        started_at = unread.started_at if unread is not None else self._clock.now()
        interrupted = self._conclusions.interrupted
        try:
            outcome = await self._transport.send(attempt.request, may_send, unread)
        except CutShort:
            interrupted(held, attempt.id, OUT_OF_TOUCH, started_at, signed)
        except trio.Cancelled:
            interrupted(held, attempt.id, SHUT_DOWN, started_at, signed)
            raise
        else:
            self._conclusions.conclude(held, attempt.id, outcome, signed)

    def _postpone(self, held: Held, attempt_id: str) -> None:
        """Try again a little later: nothing was sent, so this is no attempt, only a delay."""
        self._over(held.delivery.id, attempt_id)
        now = self._clock.now()
        self._destinations.done(held, None, now)
        self._desk.postpone(held, now + SECOND)

    def _over(self, delivery_id: str, attempt_id: str) -> None:
        # Settled, it may be with another sender by now.
        if self._busy.get(delivery_id) == attempt_id:
            del self._busy[delivery_id]
