"""What follows from an attempt: judge what it met, put it on record, and settle its delivery.

What an attempt says of its destination counts at once. What becomes of its delivery follows from
its commit, in the order of commits: an order to cancel or hasten the delivery that is committed
next finds it where it belongs. Attempts are put on record together, and settled together.

Nothing here blocks; `records` does, in a task of its own (records.py).
"""

import random
from collections.abc import Callable, Container, Sequence
from typing import Protocol

import msgspec
import structlog

from primeflowd.attempts import of_interruption, of_outcome
from primeflowd.clock import Clock
from primeflowd.config import DeliverySettings
from primeflowd.destination import Change, Held
from primeflowd.destinations import Destinations
from primeflowd.events import (
    Event,
    delivery_failed,
    destination_turned,
    secret_disabled_in_use,
)
from primeflowd.hookspecs import RecordedAttempt, Storage
from primeflowd.instants import Micros
from primeflowd.model import Delivery, Outcome, Verdict
from primeflowd.records import Otherwise, Record, Records
from primeflowd.retry import after_attempt, after_interruption, after_success
from primeflowd.signing import Signed

log = structlog.get_logger()


class Desk(Protocol):
    """What is needed of the holdings."""

    def keeps(self, after: Delivery) -> bool: ...
    def settle(self, held: Held, after: Delivery) -> None: ...
    def forget(self, ended: Sequence[Held]) -> None: ...
    def turned(self, destination: str, change: Change) -> None: ...


class Health(Protocol):
    """Who keeps count of what becomes of attempts, to disable destinations.

    Attributes:
        failing: the destinations of which a success matters.
    """

    @property
    def failing(self) -> Container[str]: ...
    def ended(self, held: Held, outcome: Outcome, verdict: Verdict) -> None: ...


class Conclusions:
    """For the senders; see Senders for what is told to whom.

    Attributes:
        records: what is still to be put on record.
    """

    def __init__(
        self,
        *,
        storage: Storage,
        destinations: Destinations,
        desk: Desk,
        classify: Callable[[Outcome, Delivery], Verdict],
        on_recorded: Callable[[Sequence[RecordedAttempt]], None],
        on_event: Callable[[Event], None],
        on_late: Callable[[Micros], None],
        clock: Clock,
        settings: DeliverySettings,
        health: Health | None,
        busy: dict[str, str],
    ) -> None:
        """`busy`: the ids of attempts by those of their deliveries, from which an attempt is taken
        once it is on record."""
        self._destinations = destinations
        self._desk = desk
        self._classify = classify
        self._on_recorded = on_recorded
        self._on_event = on_event
        self._on_late = on_late
        self._clock = clock
        self._settings = settings
        self._health = health
        self._busy = busy
        self.records = Records(storage, 2 * settings.concurrency, self._recorded)

    def reconfigure(self, settings: DeliverySettings) -> None:
        """Go by `settings` from now on."""
        self._settings = settings
        self.records.reconfigure(2 * settings.concurrency)

    def conclude(
        self, held: Held, attempt_id: str, outcome: Outcome, signed: Signed | None
    ) -> None:
        """Judge what an attempt met and put it on record. `signed` None: it came not so far."""
        delivery, now = held.delivery, outcome.ended_at
        if delivery.attempt_count and delivery.due_at is not None:
            self._on_late(outcome.started_at - delivery.due_at)
        verdict = self._classify(outcome, delivery)
        succeeded = verdict.decision == "success"
        if self._health is not None and (
            not succeeded or delivery.destination in self._health.failing
        ):
            self._health.ended(held, outcome, verdict)
        after = after_success(delivery, now) if succeeded else self._failed(delivery, verdict, now)
        secret_id = None
        if signed is not None:
            secret_id = signed.secret_id
            if secret_id != after.signing_secret_id:
                after = self._pinned(after, secret_id)
        attempt = of_outcome(
            attempt_id, after, outcome, verdict, secret_id, self._settings.max_response_body
        )
        failed = None if outcome.failure == "internal_error" else verdict.destination_failed
        change = self._destinations.done(held, failed, now, outcome.status_code is not None)
        if change is not None:
            self._turned(delivery, change, now)
        self.records.give(Record(held, attempt, after))

    def _failed(self, delivery: Delivery, verdict: Verdict, now: Micros) -> Delivery:
        settings = self._settings
        after = after_attempt(
            delivery,
            verdict,
            now,
            jitter=settings.jitter and random.uniform(0, settings.jitter),  # noqa: S311 - no secret
            wait_cap=settings.retry_after_cap.micros,
        )
        if after.due_at is None or self._desk.keeps(after):
            return after
        return msgspec.structs.replace(after, claimed_by=None)

    def interrupted(
        self, held: Held, attempt_id: str, cause: str, started_at: Micros, signed: Signed
    ) -> None:
        """Put an attempt that was cut short on record; for others to go on with it."""
        now = self._clock.now()
        after = msgspec.structs.replace(after_interruption(held.delivery, now), claimed_by=None)
        if signed.secret_id != after.signing_secret_id:
            after = self._pinned(after, signed.secret_id)
        attempt = of_interruption(attempt_id, after, cause, started_at, now, signed.secret_id)
        self._destinations.done(held, None, now)
        self.records.give(Record(held, attempt, after))

    def _turned(self, delivery: Delivery, change: Change, now: Micros) -> None:
        self._desk.turned(delivery.destination, change)
        _tell_change(delivery.destination, change)
        self._on_event(destination_turned(delivery, change, now))

    def _pinned(self, after: Delivery, secret_id: str | None) -> Delivery:
        """Pinned to the secret it was signed with, as its own is disabled (contract 6.3)."""
        if after.signing_secret_id is not None:
            event = secret_disabled_in_use(after, secret_id)
            log.warning(event.log_name, **event.data)
            self._on_event(event)
        return msgspec.structs.replace(after, signing_secret_id=secret_id)

    def _recorded(self, records: Sequence[Record], otherwise: Otherwise) -> None:
        """For the records, by a commit: attempts are on record, but for what is said otherwise."""
        told: list[RecordedAttempt] = []
        gone: list[Held] = []
        busy = self._busy
        for record in records:
            held, attempt, after = record.held, record.attempt, record.after
            if busy.get(after.id) == attempt.id:
                del busy[after.id]
            if attempt.id in otherwise:
                fate, stored = otherwise[attempt.id]
                if fate == "ended":
                    told.append(RecordedAttempt(attempt, stored))
                gone.append(held)
                continue
            told.append(RecordedAttempt(attempt, after))
            if after.claimed_by is None:
                gone.append(held)
            else:
                self._desk.settle(held, after)
            if after.status == "failed":
                _tell_failure(after)
                self._on_event(delivery_failed(after))
        self._on_recorded(told)
        self._desk.forget(gone)


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
