"""The bounded sender pool: take, sign, send, classify, record, reschedule.

`delivery.concurrency` tasks, each with one delivery at a time. Attempts are put on record together
(records.py), as many as there are senders at most: so slow storage slows sending.

Guarantees: every attempt that was started is on record, or is made again under the same number
after a crash; an attempt cut short by a drain is on record as `interrupted` and uses up no retry
(contract 5.6). What follows from an attempt follows from its commit, in the order of commits: an
order to cancel or hasten the delivery that is committed next finds it where it belongs.

Blocks on the destination queues, the network and storage. Failures of the network, of signers and
of classifiers end as outcomes; anything else that raises here is a bug, and brings the daemon down
for systemd to restart it.
"""

import random
from collections.abc import Callable, Collection
from typing import Protocol

import msgspec
import structlog
import trio

from primeflowd import __version__
from primeflowd.attempts import of_interruption, of_outcome, unsent
from primeflowd.callback_url import parse
from primeflowd.clock import Clock
from primeflowd.config import DeliverySettings
from primeflowd.destinations import Change, Destinations, Held
from primeflowd.errors import StorageUnavailable
from primeflowd.hookspecs import Fate, RecordedAttempt, Storage
from primeflowd.instants import SECOND, Micros
from primeflowd.model import Attempt, Delivery, Outcome, Verdict, new_id
from primeflowd.records import Record, Records
from primeflowd.retry import after_attempt, after_interruption
from primeflowd.signing import Signatures, Signed, SigningFailed
from primeflowd.transport import CutShort, Request

log = structlog.get_logger()

_FIXED_HEADERS = (
    ("Content-Type", "application/json"),
    ("User-Agent", f"primeflowd/{__version__}"),
)
# Seconds that storage may take to put on record what was cut short.
_LAST_WORDS = 2.0


class Wire(Protocol):
    """What the senders need of the transport."""

    async def send(self, request: Request, may_send: Callable[[], bool]) -> Outcome: ...


class Tenure(Protocol):
    """What the senders need of the lease."""

    def covers(self, claimed_by: str | None) -> bool: ...


class Desk(Protocol):
    """What the senders need of the scheduler."""

    def keeps(self, after: Delivery) -> bool: ...
    def settle(self, held: Held, after: Delivery | None) -> None: ...
    def postpone(self, held: Held, until: Micros) -> None: ...
    def turned(self, destination: str, change: Change) -> None: ...


class Senders:
    """The pool. `on_recorded` is told of each attempt right after its commit."""

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
        clock: Clock,
        settings: DeliverySettings,
        lease: Tenure,
    ) -> None:
        self._storage = storage
        self._destinations = destinations
        self._scheduler = scheduler
        self._signatures = signatures
        self._transport = transport
        self._classify = classify
        self._on_recorded = on_recorded
        self._clock = clock
        self._settings = settings
        self._lease = lease
        self._records = Records(storage, settings.concurrency)
        # The id of the attempt by that of its delivery, until it is on record.
        self._busy: dict[str, str] = {}

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
                async with trio.open_nursery() as senders:
                    for _ in range(self._settings.concurrency):
                        senders.start_soon(self._work)
                await self._records.all_stored()
            finally:
                with trio.move_on_after(_LAST_WORDS, shield=True):
                    await self._records.all_stored()
                self._records.stop()

    async def _work(self) -> None:
        while (held := await self._destinations.take()) is not None:
            delivery_id, attempt_id = held.delivery.id, new_id()
            self._busy[delivery_id] = attempt_id
            try:
                await self._attempt(held, attempt_id)
            except trio.Cancelled:
                self._over(delivery_id, attempt_id)
                raise

    def _over(self, delivery_id: str, attempt_id: str) -> None:
        # Settled, it may be with another sender by now.
        if self._busy.get(delivery_id) == attempt_id:
            del self._busy[delivery_id]

    async def _attempt(self, held: Held, attempt_id: str) -> None:
        delivery = held.delivery
        try:
            target = parse(delivery.callback_url)
        except ValueError as error:
            # The rules have become stricter since it was accepted: one bad row must not keep the
            # daemon from running.
            outcome = unsent("url_not_allowed", str(error), self._clock.now())
            await self._conclude(held, attempt_id, outcome, None)
            return
        try:
            body = await self._body(held)
            signed = await self._signatures.sign(delivery, attempt_id, body)
        except StorageUnavailable as error:
            log.warning("attempt_postponed", delivery_id=delivery.id, error=str(error))
            self._postpone(held, attempt_id)
            return
        except SigningFailed as error:
            log.error("signer_failed", signer=error.name, delivery_id=delivery.id, error=str(error))
            outcome = unsent("internal_error", str(error), self._clock.now())
            await self._conclude(held, attempt_id, outcome, None)
            return
        request = Request(target, _headers(delivery, attempt_id, signed), body)

        def may_send() -> bool:
            return self._lease.covers(delivery.claimed_by)

        # Looked at last: while this waited for something, another node may have taken over.
        if not may_send():
            self._postpone(held, attempt_id)
            return
        started_at = self._clock.now()
        try:
            outcome = await self._transport.send(request, may_send)
        except CutShort:
            cause = "this node lost touch with its storage"
            self._interrupted(held, attempt_id, cause, started_at, signed)
            return
        except trio.Cancelled:
            self._interrupted(held, attempt_id, "primeflowd was shut down", started_at, signed)
            raise
        await self._conclude(held, attempt_id, outcome, signed)

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

    async def _conclude(
        self, held: Held, attempt_id: str, outcome: Outcome, signed: Signed | None
    ) -> None:
        """Judge what an attempt met and put it on record. `signed` None: it came not so far."""
        delivery, settings = held.delivery, self._settings
        verdict = self._classify(outcome, delivery)
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
        self._done(held, failed, answered)
        await self._records.give(self._record(held, attempt, _pinned(after, signed)))

    def _interrupted(
        self, held: Held, attempt_id: str, cause: str, started_at: Micros, signed: Signed
    ) -> None:
        """Put an attempt that was cut short on record; for others to go on with it."""
        now = self._clock.now()
        after = msgspec.structs.replace(after_interruption(held.delivery, now), claimed_by=None)
        attempt = of_interruption(attempt_id, after, cause, started_at, now, signed.secret_id)
        self._done(held, None, answered=False)
        self._records.give_nowait(self._record(held, attempt, _pinned(after, signed)))

    def _done(self, held: Held, failed: bool | None, answered: bool) -> None:
        """Give its destination its due; what became of the delivery is its commit's business."""
        change = self._destinations.done(held, failed, self._clock.now(), answered=answered)
        if change is not None:
            self._scheduler.turned(held.delivery.destination, change)
            _tell_change(held.delivery.destination, change)

    def _record(self, held: Held, attempt: Attempt, after: Delivery) -> Record:
        def settle(fate: Fate, delivery: Delivery) -> None:
            self._over(after.id, attempt.id)
            if fate != "lost":
                self._on_recorded(RecordedAttempt(attempt, delivery))
            self._scheduler.settle(held, after if fate == "recorded" else None)
            if fate == "recorded" and after.status == "failed":
                _tell_failure(after)

        holder = held.delivery.claimed_by
        assert holder is not None
        return Record(attempt, after, holder, settle)


def _headers(delivery: Delivery, attempt_id: str, signed: Signed) -> tuple[tuple[str, str], ...]:
    """What every attempt carries (contract 6.4), and its signatures."""
    return (
        *_FIXED_HEADERS,
        ("Primeflow-Delivery-Id", delivery.id),
        ("Primeflow-Attempt", str(delivery.attempt_count + 1)),
        ("Primeflow-Request-Id", attempt_id),
        *signed.headers,
    )


def _pinned(after: Delivery, signed: Signed | None) -> Delivery:
    """Pinned to the secret it was signed with, where its own is disabled by now (contract 6.3)."""
    if signed is None or signed.secret_id == after.signing_secret_id:
        return after
    return msgspec.structs.replace(after, signing_secret_id=signed.secret_id)


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
