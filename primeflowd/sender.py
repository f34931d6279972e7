"""The bounded sender pool: take, sign, send, classify, record, reschedule.

`delivery.concurrency` tasks, each with one delivery at a time. A sender keeps its place until the
attempt is durable, so that slow storage slows sending instead of filling memory.

Guarantees: every attempt that was started is on record, or is made again under the same number
after a crash; an attempt cut short by a drain is on record as `interrupted` and uses up no retry
(contract 5.6). Blocks on the destination queues, the network and storage. Failures of the network,
of signers and of classifiers end as outcomes; anything else that raises here is a bug, and brings
the daemon down for systemd to restart it.
"""

import codecs
import random
from collections.abc import Callable, Collection
from typing import Protocol

import msgspec
import structlog
import trio

from primeflowd import __version__
from primeflowd.callback_url import parse
from primeflowd.clock import Clock
from primeflowd.config import DeliverySettings
from primeflowd.destinations import Destinations, Held
from primeflowd.errors import StorageUnavailable
from primeflowd.hookspecs import Fate, Storage
from primeflowd.instants import MILLISECOND, SECOND, Micros
from primeflowd.model import Attempt, Delivery, Outcome, Verdict, new_id
from primeflowd.retry import after_attempt, after_interruption
from primeflowd.signing import Signatures, SigningFailed
from primeflowd.transport import Request

log = structlog.get_logger()

_FIXED_HEADERS = (
    ("Content-Type", "application/json"),
    ("User-Agent", f"primeflowd/{__version__}"),
)
# How long a sender that is being cut short may take to put that on record.
_LAST_WORDS = 2.0
_STORAGE_RETRY = 0.5


class Wire(Protocol):
    """What the senders need of the transport."""

    async def send(self, request: Request) -> Outcome: ...


class Desk(Protocol):
    """What the senders need of the scheduler."""

    def keeps(self, after: Delivery) -> bool: ...
    def settle(self, held: Held, after: Delivery | None) -> None: ...
    def postpone(self, held: Held, until: Micros) -> None: ...


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
        on_recorded: Callable[[Attempt], None],
        clock: Clock,
        settings: DeliverySettings,
        node_id: str,
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
        self._node_id = node_id
        self._busy: set[str] = set()

    def is_sending(self, delivery_id: str) -> bool:
        """Whether a sender is on this delivery now: what the API shows as `delivering`."""
        return delivery_id in self._busy

    @property
    def sending(self) -> Collection[str]:
        """The ids of all deliveries of which that is true."""
        return self._busy

    @property
    def busy(self) -> int:
        return len(self._busy)

    async def run(self) -> None:
        """Send until the destination queues are closed and every sender has finished."""
        async with trio.open_nursery() as nursery:
            for _ in range(self._settings.concurrency):
                nursery.start_soon(self._work)

    async def _work(self) -> None:
        while (held := await self._destinations.take()) is not None:
            self._busy.add(held.delivery.id)
            try:
                await self._attempt(held)
            finally:
                self._busy.discard(held.delivery.id)

    async def _attempt(self, held: Held) -> None:
        delivery = held.delivery
        attempt_id = new_id()
        try:
            body = await self._body(held)
            signed = await self._signatures.sign(delivery, attempt_id, body)
        except StorageUnavailable as error:
            # Nothing was sent: this is no attempt, only a delay.
            log.warning("attempt_postponed", delivery_id=delivery.id, error=str(error))
            now = self._clock.now()
            self._destinations.done(held, None, now)
            self._scheduler.postpone(held, now + SECOND)
            return
        except SigningFailed as error:
            outcome = self._signing_failed(delivery, error)
            await self._conclude(held, attempt_id, outcome, None)
            return
        started_at = self._clock.now()
        try:
            outcome = await self._transport.send(
                self._request(delivery, attempt_id, body, signed.headers)
            )
        except trio.Cancelled:
            with trio.move_on_after(_LAST_WORDS, shield=True):
                await self._interrupted(held, attempt_id, started_at, signed.secret_id)
            raise
        await self._conclude(held, attempt_id, outcome, signed.secret_id)

    async def _body(self, held: Held) -> bytes:
        if held.body is not None:
            return held.body
        batch_id = held.delivery.batch_id
        return (await self._storage.read(lambda tx: tx.payloads([batch_id])))[batch_id]

    def _request(
        self,
        delivery: Delivery,
        attempt_id: str,
        body: bytes,
        signature: tuple[tuple[str, str], ...],
    ) -> Request:
        return Request(
            target=parse(delivery.callback_url),
            headers=(
                *_FIXED_HEADERS,
                ("Primeflow-Delivery-Id", delivery.id),
                ("Primeflow-Attempt", str(delivery.attempt_count + 1)),
                ("Primeflow-Request-Id", attempt_id),
                *signature,
            ),
            body=body,
        )

    def _signing_failed(self, delivery: Delivery, error: SigningFailed) -> Outcome:
        log.error("signer_failed", signer=error.name, delivery_id=delivery.id, error=str(error))
        now = self._clock.now()
        return Outcome(
            status_code=None,
            failure="internal_error",
            error_message=str(error),
            started_at=now,
            ended_at=now,
        )

    async def _conclude(
        self, held: Held, attempt_id: str, outcome: Outcome, secret_id: str | None
    ) -> None:
        """Record what an attempt met, then give the delivery and the destination their due."""
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
        attempt = Attempt(
            id=attempt_id,
            delivery_id=delivery.id,
            attempt_number=after.attempt_count,
            status_code=outcome.status_code,
            response_body=self._response_text(outcome),
            response_time=(outcome.ended_at - outcome.started_at) // MILLISECOND,
            error_message=outcome.error_message,
            failure_reason=None if verdict.decision == "success" else verdict.reason,
            signing_secret_id=secret_id,
            created_at=outcome.started_at,
        )
        fate = await self._record(attempt, after)
        failed = None if outcome.failure == "internal_error" else verdict.destination_failed
        if self._destinations.done(held, failed, self._clock.now()):
            _tell_suspension(delivery.destination)
        self._scheduler.settle(held, after if fate == "recorded" else None)
        if fate == "recorded" and after.status == "failed":
            _tell_failure(after)

    async def _record(self, attempt: Attempt, after: Delivery) -> Fate:
        """Make the attempt durable, however long storage takes.

        A write that has begun is seen through: cancelling it would leave in doubt whether the
        attempt is on record. Cancelled between tries, the attempt is made again after the restart.
        """
        while True:
            try:
                with trio.CancelScope(shield=True):
                    return await self._storage.write(
                        lambda tx: tx.record_attempt(self._node_id, attempt, after),
                        lambda fate: None if fate == "lost" else self._on_recorded(attempt),
                    )
            except StorageUnavailable as error:
                log.warning("attempt_not_recorded", delivery_id=after.id, error=str(error))
            await trio.sleep(_STORAGE_RETRY)

    async def _interrupted(
        self, held: Held, attempt_id: str, started_at: Micros, secret_id: str | None
    ) -> None:
        now = self._clock.now()
        after = msgspec.structs.replace(after_interruption(held.delivery, now), claimed_by=None)
        attempt = Attempt(
            id=attempt_id,
            delivery_id=after.id,
            attempt_number=after.attempt_count,
            status_code=None,
            response_body=None,
            response_time=(now - started_at) // MILLISECOND,
            error_message="interrupted: primeflowd was shut down during this attempt",
            failure_reason="interrupted",
            signing_secret_id=secret_id,
            created_at=started_at,
        )
        await self._record(attempt, after)

    def _response_text(self, outcome: Outcome) -> str | None:
        """The response body as valid text of at most so many bytes (contract 5.5)."""
        if outcome.status_code is None:
            return None
        limit = self._settings.max_response_body
        # A body that fills the limit may end within a character: the decoder, not told that this
        # is the end, leaves that character out instead of replacing it.
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text = decoder.decode(outcome.body, final=len(outcome.body) < limit)
        # NUL is text to SQLite but not to PostgreSQL; every storage shall show the same.
        text = text.replace("\x00", "\ufffd")
        # Replacement characters are longer than the bytes they stand for.
        return text.encode()[:limit].decode(errors="ignore")


def _tell_suspension(destination: str) -> None:
    log.warning(
        "destination_suspended",
        destination=destination,
        hint="it only fails; see delivery.suspend_after, suspend_min and suspend_max",
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
