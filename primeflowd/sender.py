"""The bounded sender pool: take, sign, send, classify, record, reschedule.

At most `delivery.concurrency` attempts are under way at once. One for which all is at hand (the
payload, the org's secrets, a kept connection) needs no task: it is begun, and ended by whoever
reads its answer. That is the case of nearly all of them in a busy daemon, and costs half of what
resuming tasks does. Every other attempt is a task of its own, which waits for what is missing.
Attempts are put on record together (records.py), and none is begun while too many are still to be:
so slow storage slows sending.

Guarantees: every attempt that was started is on record, or is made again under the same number
after a crash; an attempt cut short by a drain is on record as `interrupted` and uses up no retry
(contract 5.6). What follows from an attempt follows from its commit, in the order of commits: an
order to cancel or hasten the delivery that is committed next finds it where it belongs.

Blocks on the destination queues, the network and storage. Failures of the network, of signers and
of classifiers end as outcomes; anything else that raises here is a bug, and brings the daemon down
for systemd to restart it.
"""

import random
from collections.abc import Awaitable, Callable, Collection, Container
from functools import partial
from typing import Protocol, TypeAlias

import msgspec
import structlog
import trio

from primeflowd import __version__
from primeflowd.attempts import of_interruption, of_outcome, unsent
from primeflowd.callback_url import parse
from primeflowd.clock import Clock
from primeflowd.config import DeliverySettings
from primeflowd.destination_rules import Rules
from primeflowd.destinations import Change, Destinations, Held
from primeflowd.errors import StorageUnavailable
from primeflowd.events import (
    Event,
    delivery_failed,
    destination_turned,
    secret_disabled_in_use,
)
from primeflowd.hookspecs import Fate, RecordedAttempt, Storage
from primeflowd.instants import SECOND, Micros
from primeflowd.model import Attempt, Delivery, Outcome, Verdict, new_id
from primeflowd.records import Record, Records
from primeflowd.retry import after_attempt, after_interruption
from primeflowd.signing import Signatures, Signed, SigningFailed
from primeflowd.transport import CutShort, Request, Unread

log = structlog.get_logger()

_FIXED_HEADERS = (
    ("Content-Type", "application/json"),
    ("User-Agent", f"primeflowd/{__version__}"),
)
_OUT_OF_TOUCH = "this node lost touch with its storage"
_SHUT_DOWN = "primeflowd was shut down"
# Attempts begun between two turns of other tasks.
_AT_ONCE = 32
# Seconds that storage may take to put on record what was cut short.
_LAST_WORDS = 2.0


Headers: TypeAlias = tuple[tuple[str, str], ...]
TraceHeaders: TypeAlias = Callable[[Delivery, str], Headers]
"""From a delivery and the id of an attempt at it."""


class Exchange(Protocol):
    """An attempt that the transport has under way without a task."""

    @property
    def started_at(self) -> Micros: ...
    def abandon(self) -> None: ...


class Wire(Protocol):
    """What the senders need of the transport."""

    def begin(
        self, request: Request, ended: Callable[[Outcome | Unread | CutShort], None], now: float
    ) -> Exchange | None: ...

    async def send(
        self, request: Request, may_send: Callable[[], bool], unread: Unread | None = None
    ) -> Outcome: ...


class Tenure(Protocol):
    """What the senders need of the lease."""

    def covers(self, claimed_by: str | None) -> bool: ...


class Desk(Protocol):
    """What the senders need of the scheduler."""

    def keeps(self, after: Delivery) -> bool: ...
    def settle(self, held: Held, after: Delivery | None) -> None: ...
    def postpone(self, held: Held, until: Micros) -> None: ...
    def turned(self, destination: str, change: Change) -> None: ...


class Health(Protocol):
    """Who keeps count of what becomes of attempts, to disable destinations.

    Attributes:
        failing: the destinations of which a success matters.
    """

    @property
    def failing(self) -> Container[str]: ...
    def ended(self, held: Held, outcome: Outcome, verdict: Verdict) -> None: ...


class UnderWay:
    """An attempt under way.

    Attributes:
        signed: None until it has come so far.
        request: what was sent, where it was begun without a task.
        exchange: likewise.
    """

    __slots__ = ("_senders", "exchange", "held", "id", "request", "signed")

    def __init__(self, senders: "Senders", held: Held) -> None:
        self._senders = senders
        self.held = held
        self.id = new_id()
        self.signed: Signed | None = None
        self.request: Request | None = None
        self.exchange: Exchange | None = None

    def ended(self, result: Outcome | Unread | CutShort) -> None:
        """For the transport."""
        self._senders._ended(self, result)


class Senders:
    """The pool. `on_recorded` is told of each attempt right after its commit, `on_event` of what
    the operator should know."""

    def __init__(
        self,
        *,
        storage: Storage,
        destinations: Destinations,
        scheduler: Desk,
        signatures: Signatures,
        transport: Wire,
        classify: Callable[[Outcome, Delivery], Verdict],
        on_recorded: Callable[[RecordedAttempt], None],
        on_event: Callable[[Event], None],
        clock: Clock,
        settings: DeliverySettings,
        lease: Tenure,
        health: Health | None = None,
        trace_headers: TraceHeaders | None = None,
    ) -> None:
        self._storage = storage
        self._destinations = destinations
        self._scheduler = scheduler
        self._health = health
        self._signatures = signatures
        self._transport = transport
        self._classify = classify
        self._on_recorded = on_recorded
        self._on_event = on_event
        self._clock = clock
        self._settings = settings
        self._lease = lease
        self._trace_headers = trace_headers
        self._records = Records(storage, 2 * settings.concurrency)
        # The id of the attempt by that of its delivery, until it is on record.
        self._busy: dict[str, str] = {}
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
        self._records.reconfigure(2 * settings.concurrency)
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
        begun = 0
        while not self._destinations.closed:
            if len(self._direct) + self._tasks >= self._settings.concurrency:
                await self._one_ended()
            elif self._records.full:
                await self._records.room()
            elif held := self._destinations.take_now():
                self._begin(UnderWay(self, held))
                begun += 1
                if begun % _AT_ONCE == 0:
                    await trio.lowlevel.checkpoint()
            else:
                await self._destinations.turn()

    async def _one_ended(self) -> None:
        self._end = trio.Event()
        await self._end.wait()

    def _begin(self, attempt: UnderWay) -> None:
        self._busy[attempt.held.delivery.id] = attempt.id
        if not self._begin_directly(attempt):
            self._start(self._attempt, attempt)

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

    def _begin_directly(self, attempt: UnderWay) -> bool:
        """Begin an attempt without a task; False if anything is missing, or odd: then nothing has
        happened, and `_attempt` finds out what it is."""
        held, delivery = attempt.held, attempt.held.delivery
        rules = held.rules
        if held.body is None or not self._lease.covers(delivery.claimed_by):
            return False
        if rules is not None and rules.disabled is not None:
            return False
        try:
            target = parse(delivery.callback_url)
        except ValueError:
            return False
        now = trio.current_time()
        try:
            signed = self._signatures.sign_now(delivery, attempt.id, held.body, now)
        except SigningFailed:
            return False
        if signed is None:
            return False
        attempt.signed = signed
        headers = _headers(delivery, attempt.id, signed, self._trace_headers)
        attempt.request = (
            Request(target, headers, held.body)
            if rules is None
            else Request(target, _with_extra(headers, rules), held.body, rules.timeout)
        )
        self._direct.add(attempt)
        attempt.exchange = self._transport.begin(attempt.request, attempt.ended, now)
        if attempt.exchange is None:
            self._direct.remove(attempt)
            return False
        return True

    def _ended(self, attempt: UnderWay, result: Outcome | Unread | CutShort) -> None:
        """An attempt without a task has come to its end, or needs one now."""
        self._direct.remove(attempt)
        if isinstance(result, Outcome):
            self._conclude(attempt.held, attempt.id, result, attempt.signed)
        elif isinstance(result, CutShort):
            self._cut_short(attempt)
        else:
            self._start(partial(self._send, unread=result), attempt)
            return
        self._tell_end()

    def _cut_short(self, attempt: UnderWay) -> None:
        assert attempt.exchange is not None
        self._interrupted(attempt, _OUT_OF_TOUCH, attempt.exchange.started_at)

    def _abandon(self, attempt: UnderWay) -> None:
        assert attempt.exchange is not None
        attempt.exchange.abandon()
        self._interrupted(attempt, _SHUT_DOWN, attempt.exchange.started_at)

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
        # Looked at last: while this waited for something, another node may have taken over.
        if not self._lease.covers(delivery.claimed_by):
            self._postpone(held, attempt.id)
            return
        headers = _headers(delivery, attempt.id, attempt.signed, self._trace_headers)
        attempt.request = (
            Request(target, headers, body)
            if rules is None
            else Request(target, _with_extra(headers, rules), body, rules.timeout)
        )
        await self._send(attempt)

    async def _send(self, attempt: UnderWay, unread: Unread | None = None) -> None:
        assert attempt.request is not None
        started_at = unread.started_at if unread is not None else self._clock.now()

        def may_send() -> bool:
            return self._lease.covers(attempt.held.delivery.claimed_by)

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

    def _conclude(
        self, held: Held, attempt_id: str, outcome: Outcome, signed: Signed | None
    ) -> None:
        """Judge what an attempt met and put it on record. `signed` None: it came not so far."""
        delivery, settings = held.delivery, self._settings
        verdict = self._classify(outcome, delivery)
        if self._health is not None and (
            verdict.decision != "success" or delivery.destination in self._health.failing
        ):
            self._health.ended(held, outcome, verdict)
        after = after_attempt(
            delivery,
            verdict,
            outcome.ended_at,
            jitter=settings.jitter and random.uniform(0, settings.jitter),  # noqa: S311 - no secret
            wait_cap=settings.retry_after_cap.micros,
        )
        if after.due_at is None or not self._scheduler.keeps(after):
            after = msgspec.structs.replace(after, claimed_by=None)
        attempt = of_outcome(
            attempt_id,
            after,
            outcome,
            verdict,
            signed.secret_id if signed else None,
            settings.max_response_body,
        )
        failed = None if outcome.failure == "internal_error" else verdict.destination_failed
        answered = attempt.status_code is not None
        self._done(held, failed, outcome.ended_at, answered)
        self._records.give(self._record(held, attempt, self._pinned(after, signed)))

    def _interrupted(self, attempt: UnderWay, cause: str, started_at: Micros) -> None:
        """Put an attempt that was cut short on record; for others to go on with it."""
        now, held, signed = self._clock.now(), attempt.held, attempt.signed
        assert signed is not None
        after = msgspec.structs.replace(after_interruption(held.delivery, now), claimed_by=None)
        record = of_interruption(attempt.id, after, cause, started_at, now, signed.secret_id)
        self._done(held, None, now, answered=False)
        self._records.give(self._record(held, record, self._pinned(after, signed)))

    def _done(self, held: Held, failed: bool | None, now: Micros, answered: bool) -> None:
        """Give its destination its due; what became of the delivery is its commit's business."""
        change = self._destinations.done(held, failed, now, answered=answered)
        if change is not None:
            self._scheduler.turned(held.delivery.destination, change)
            _tell_change(held.delivery.destination, change)
            self._on_event(destination_turned(held.delivery, change, now))

    def _pinned(self, after: Delivery, signed: Signed | None) -> Delivery:
        """Pinned to the secret it was signed with, where its own is disabled (contract 6.3)."""
        if signed is None or signed.secret_id == after.signing_secret_id:
            return after
        if after.signing_secret_id is not None:
            event = secret_disabled_in_use(after, signed.secret_id)
            log.warning(event.log_name, **event.data)
            self._on_event(event)
        return msgspec.structs.replace(after, signing_secret_id=signed.secret_id)

    def _record(self, held: Held, attempt: Attempt, after: Delivery) -> Record:
        def settle(fate: Fate, delivery: Delivery) -> None:
            self._over(after.id, attempt.id)
            if fate != "lost":
                self._on_recorded(RecordedAttempt(attempt, delivery))
            self._scheduler.settle(held, after if fate == "recorded" else None)
            if fate == "recorded" and after.status == "failed":
                _tell_failure(after)
                self._on_event(delivery_failed(after))

        holder = held.delivery.claimed_by
        assert holder is not None
        return Record(attempt, after, holder, settle)


def _headers(
    delivery: Delivery, attempt_id: str, signed: Signed, of_trace: TraceHeaders | None
) -> Headers:
    """What every attempt carries (contract 6.4), its signatures, and its trace context if any."""
    headers = (
        *_FIXED_HEADERS,
        ("Primeflow-Delivery-Id", delivery.id),
        ("Primeflow-Attempt", str(delivery.attempt_count + 1)),
        ("Primeflow-Request-Id", attempt_id),
        *signed.headers,
    )
    return headers if of_trace is None else headers + of_trace(delivery, attempt_id)


def _with_extra(headers: Headers, rules: Rules) -> Headers:
    """With those that an operator adds, where a signer has not set them."""
    if not rules.headers:
        return headers
    taken = {name.lower() for name, _ in headers}
    return (*headers, *(each for each in rules.headers if each[0].lower() not in taken))


def _tell_change(destination: str, change: Change) -> None:
    if change == "recovered":
        log.info("destination_recovered", destination=destination)
        return
    log.warning(
        "destination_suspended",
        destination=destination,
        hint="it gives no answer; see delivery.suspend_after, suspend_period and suspend_max",
    )


def _tell_failure(after: Delivery) -> None:
    log.warning(
        "delivery_failed",
        delivery_id=after.id,
        batch_id=after.batch_id,
        destination=after.destination,
        reason=after.failure_reason,
        detail=after.failure_detail,
        attempts=after.attempt_count,
    )
