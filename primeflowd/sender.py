"""The bounded sender pool: take, sign, send, and have what comes of it recorded.

At most `delivery.concurrency` attempts are under way at once. One for which all is at hand (the
payload, the org's secrets, a kept connection) needs no task: it is begun, and ended by whoever
reads its answer. That is the case of nearly all of them in a busy daemon, and costs half of what
resuming tasks does. Every other attempt is a task of its own, which waits for what is missing.
What follows from an attempt is the business of conclusions.py. None is begun while too many are
still to be put on record: so slow storage slows sending.

Guarantees: every attempt that was started is on record, or is made again under the same number
after a crash; an attempt cut short by a drain is on record as `interrupted` and uses up no retry
(contract 5.6).

Blocks on the destination queues, the network and storage. Failures of the network, of signers and
of classifiers end as outcomes; anything else that raises here is a bug, and brings the daemon down
for systemd to restart it.
"""

from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import Protocol

import structlog
import trio

from primeflowd import callback_request, conclusions
from primeflowd.attempts import unsent
from primeflowd.callback_url import parse
from primeflowd.clock import Clock
from primeflowd.conclusions import Conclusions, Health
from primeflowd.config import DeliverySettings
from primeflowd.destination import Held
from primeflowd.destinations import Destinations
from primeflowd.errors import StorageUnavailable
from primeflowd.events import (
    Event,
)
from primeflowd.hookspecs import RecordedAttempt, Storage
from primeflowd.instants import SECOND, Micros
from primeflowd.model import Delivery, Outcome, Verdict, new_id
from primeflowd.request_head import Request
from primeflowd.signed_headers import SigningFailed
from primeflowd.signing import Signatures, Signed
from primeflowd.transport import CutShort, Exchange, Unread

log = structlog.get_logger()

_OUT_OF_TOUCH = "this node lost touch with its storage"
_SHUT_DOWN = "primeflowd was shut down"
# Attempts begun between two turns of other tasks.
_AT_ONCE = 32
# Seconds that storage may take to put on record what was cut short.
_LAST_WORDS = 2.0


class Wire(Protocol):
    """What the senders need of the transport."""

    def begin(
        self,
        exchange: "UnderWay",
        request: Request,
        ended: Callable[["UnderWay", Outcome | Unread | CutShort], None],
        now: float,
        started_at: Micros,
    ) -> bool: ...

    def abandon(self, exchange: "UnderWay") -> None: ...

    async def send(
        self, request: Request, may_send: Callable[[], bool], unread: Unread | None = None
    ) -> Outcome: ...


class Tenure(Protocol):
    """What the senders need of the lease."""

    def covers(self, claimed_by: str | None) -> bool: ...


class Desk(conclusions.Desk, Protocol):
    """What the senders need of the scheduler."""

    def postpone(self, held: Held, until: Micros) -> None: ...


class UnderWay(Exchange, eq=False):
    """An attempt under way; the transport's to fill in if it is without a task.

    Attributes:
        signed, request: None until it has come so far.
    """

    held: Held
    id: str
    signed: Signed | None = None
    request: Request | None = None


class Senders:
    """The pool. `on_recorded` is told of the attempts of a commit right after it, `on_event` of
    what the operator should know, `on_late` how much later than due a retry was begun."""

    def __init__(
        self,
        *,
        storage: Storage,
        destinations: Destinations,
        scheduler: Desk,
        signatures: Signatures,
        transport: Wire,
        classify: Callable[[Outcome, Delivery], Verdict],
        on_recorded: Callable[[Sequence[RecordedAttempt]], None],
        on_event: Callable[[Event], None],
        clock: Clock,
        settings: DeliverySettings,
        lease: Tenure,
        health: Health | None = None,
        trace_headers: callback_request.TraceHeaders | None = None,
        on_late: Callable[[Micros], None] = lambda _: None,
    ) -> None:
        self._storage = storage
        self._destinations = destinations
        self._scheduler = scheduler
        self._signatures = signatures
        self._transport = transport
        self._clock = clock
        self._settings = settings
        self._lease = lease
        self._trace_headers = trace_headers
        # The id of the attempt by that of its delivery, until it is on record.
        self._busy: dict[str, str] = {}
        self._conclusions = Conclusions(
            storage=storage,
            destinations=destinations,
            scheduler=scheduler,
            classify=classify,
            on_recorded=on_recorded,
            on_event=on_event,
            on_late=on_late,
            clock=clock,
            settings=settings,
            health=health,
            busy=self._busy,
        )
        self._conclude = self._conclusions.conclude
        self._records = self._conclusions.records
        # Attempts that have not ended yet, with and without a task.
        self._tasks = 0
        self._direct: set[UnderWay] = set()
        self._nursery: trio.Nursery | None = None
        # Whoever waits for an attempt to end waits for this.
        self._end: trio.Event | None = None

    def reconfigure(self, settings: DeliverySettings) -> None:
        """Go by `settings` from now on. Where more is under way than they allow, nothing is begun
        until enough has ended."""
        self._settings = settings
        self._conclusions.reconfigure(settings)
        self._tell_end()

    def is_sending(self, delivery_id: str) -> bool:
        """Whether a sender is on this delivery now: what the API shows as `delivering`."""
        return delivery_id in self._busy

    @property
    def sending(self) -> Collection[str]:
        """The ids of all deliveries of which that is true."""
        return self._busy.keys()

    @property
    def busy(self) -> int:
        return len(self._busy)

    async def run(self) -> None:
        """Send until the destination queues are closed and every attempt is on record.

        Cancelled, it cuts short what is under way, and puts that on record if storage is quick.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._records.run)
            try:
                async with trio.open_nursery() as self._nursery:
                    await self._hand_out()
                    while self._direct:
                        await self._one_ended()
                await self._records.all_stored()
            finally:
                for attempt in self._direct:
                    self._abandon(attempt)
                with trio.move_on_after(_LAST_WORDS, shield=True):
                    await self._records.all_stored()
                self._records.stop()

    async def _hand_out(self) -> None:
        """Begin attempts as there is room for them, until the destination queues are closed."""
        while not self._destinations.closed:
            room = self._settings.concurrency - len(self._direct) - self._tasks
            if room <= 0:
                await self._one_ended()
            elif self._records.full:
                await self._records.room()
            else:
                begun = self._begin_some(min(room, _AT_ONCE))
                if begun == _AT_ONCE:
                    await trio.lowlevel.checkpoint()
                elif begun < room:
                    await self._destinations.turn()

    def _begin_some(self, most: int) -> int:
        """Begin what is due, `most` attempts at most; how many it were.

        First all are put together, then all are sent: taking turns, our work and the kernel's would
        push each other out of the processor's caches, which costs a fifteenth of all there is to do
        for a callback. Those that lack something get it in a task of their own.
        """
        # One reading for all: deadlines, the age of secrets and whole seconds are not about a
        # millisecond.
        now, instant = trio.current_time(), self._clock.now()
        begun = 0
        ready: list[tuple[UnderWay, Request]] = []
        while begun < most and (held := self._destinations.take_now()) is not None:
            attempt = UnderWay(held, new_id())
            self._busy[held.delivery.id] = attempt.id
            request = attempt.request = self._request_now(attempt, now, instant)
            if request is None:
                self._start(self._attempt, attempt)
            else:
                ready.append((attempt, request))
            begun += 1
        for attempt, request in ready:
            self._begin(attempt, request, now)
        return begun

    async def _one_ended(self) -> None:
        self._end = trio.Event()
        await self._end.wait()

    def _begin(self, attempt: UnderWay, request: Request, now: float) -> None:
        """Send a request: without a task over a kept connection, else in one."""
        self._direct.add(attempt)
        # The lease is looked at last.
        if not (
            self._lease.covers(attempt.held.delivery.claimed_by)
            and self._transport.begin(attempt, request, self._ended, now, self._clock.now())
        ):
            self._direct.remove(attempt)
            self._start(self._send, attempt)

    def _start(self, function: Callable[[UnderWay], Awaitable[None]], attempt: UnderWay) -> None:
        """Go on with an attempt in a task."""

        async def run() -> None:
            try:
                await function(attempt)
            except trio.Cancelled:
                self._over(attempt.held.delivery.id, attempt.id)
                raise
            finally:
                self._tasks -= 1
                self._tell_end()

        assert self._nursery is not None
        self._tasks += 1
        self._nursery.start_soon(run)

    def _tell_end(self) -> None:
        if self._end is not None:
            self._end.set()
            self._end = None

    def _request_now(self, attempt: UnderWay, now: float, instant: Micros) -> Request | None:
        """The request of an attempt, signed; None if anything is missing, or odd: `_attempt` finds
        out what it is. `now`: Trio's time; `instant`: the time of day."""
        held, delivery = attempt.held, attempt.held.delivery
        body, rules = held.body, held.rules
        if body is None:
            return None
        if rules is not None and rules.disabled is not None:
            return None
        try:
            target = parse(delivery.callback_url)
            signed = self._signatures.sign_now(delivery, attempt.id, body, now, instant)
            if signed is None:
                return None
            attempt.signed = signed
            return callback_request.make(
                target, held, attempt.id, signed, body, self._trace_headers
            )
        except (ValueError, SigningFailed):
            return None

    def _ended(self, attempt: UnderWay, result: Outcome | Unread | CutShort) -> None:
        """An attempt without a task has come to its end, or needs one now."""
        self._direct.remove(attempt)
        if isinstance(result, Outcome):
            self._conclude(attempt.held, attempt.id, result, attempt.signed)
        elif isinstance(result, CutShort):
            self._interrupted(attempt, _OUT_OF_TOUCH, attempt.started_at)
        else:
            self._start(partial(self._send, unread=result), attempt)
            return
        if self._end is not None:
            self._tell_end()

    def _abandon(self, attempt: UnderWay) -> None:
        self._transport.abandon(attempt)
        self._interrupted(attempt, _SHUT_DOWN, attempt.started_at)

    def _over(self, delivery_id: str, attempt_id: str) -> None:
        # Settled, it may be with another sender by now.
        if self._busy.get(delivery_id) == attempt_id:
            del self._busy[delivery_id]

    async def _attempt(self, attempt: UnderWay) -> None:
        held, delivery = attempt.held, attempt.held.delivery
        rules = held.rules
        if rules is not None and rules.disabled is not None:
            refusal = f"the destination is disabled: {rules.disabled}"
            outcome = unsent("url_not_allowed", refusal, self._clock.now())
            self._conclude(held, attempt.id, outcome, None)
            return
        try:
            target = parse(delivery.callback_url)
        except ValueError as error:
            # The rules have become stricter since it was accepted: one bad row must not keep the
            # daemon from running.
            outcome = unsent("url_not_allowed", str(error), self._clock.now())
            self._conclude(held, attempt.id, outcome, None)
            return
        try:
            body = await self._body(held)
            attempt.signed = await self._signatures.sign(delivery, attempt.id, body)
        except StorageUnavailable as error:
            log.warning("attempt_postponed", delivery_id=delivery.id, error=str(error))
            self._postpone(held, attempt.id)
            return
        except SigningFailed as error:
            log.error("signer_failed", signer=error.name, delivery_id=delivery.id, error=str(error))
            outcome = unsent("internal_error", str(error), self._clock.now())
            self._conclude(held, attempt.id, outcome, None)
            return
        try:
            attempt.request = callback_request.make(
                target, held, attempt.id, attempt.signed, body, self._trace_headers
            )
        except ValueError as error:
            outcome = unsent("internal_error", str(error), self._clock.now())
            self._conclude(held, attempt.id, outcome, attempt.signed)
            return
        await self._send(attempt)

    async def _send(self, attempt: UnderWay, unread: Unread | None = None) -> None:
        assert attempt.request is not None

        def may_send() -> bool:
            return self._lease.covers(attempt.held.delivery.claimed_by)

        # Looked at last: while this waited for something, another node may have taken over.
        if unread is None and not may_send():
            self._postpone(attempt.held, attempt.id)
            return
        started_at = unread.started_at if unread is not None else self._clock.now()
        try:
            outcome = await self._transport.send(attempt.request, may_send, unread)
        except CutShort:
            self._interrupted(attempt, _OUT_OF_TOUCH, started_at)
            return
        except trio.Cancelled:
            self._interrupted(attempt, _SHUT_DOWN, started_at)
            raise
        self._conclude(attempt.held, attempt.id, outcome, attempt.signed)

    def _postpone(self, held: Held, attempt_id: str) -> None:
        """Try again a little later: nothing was sent, so this is no attempt, only a delay."""
        self._over(held.delivery.id, attempt_id)
        now = self._clock.now()
        self._destinations.done(held, None, now)
        self._scheduler.postpone(held, now + SECOND)

    async def _body(self, held: Held) -> bytes:
        if held.body is not None:
            return held.body
        delivery = held.delivery
        return (await self._storage.read(lambda tx: tx.payloads([delivery])))[delivery.id]

    def _interrupted(self, attempt: UnderWay, cause: str, started_at: Micros) -> None:
        assert attempt.signed is not None
        self._conclusions.interrupted(attempt.held, attempt.id, cause, started_at, attempt.signed)
