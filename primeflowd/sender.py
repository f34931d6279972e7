"""The bounded sender pool: take, sign, send, and have what comes of it recorded.

At most `delivery.concurrency` attempts are under way at once. One for which all is at hand (the
payload, the org's secrets, a kept connection) needs no task: it is begun here, and ended by whoever
reads its answer. That is the case of nearly all of them in a busy daemon, and costs half of what
resuming tasks does. Every other attempt is handed to waiting_attempts.py. What follows from an
attempt is the business of conclusions.py. None is begun while too many are still to be put on
record: so slow storage slows sending.

Guarantees: every attempt that was started is on record, or is made again under the same number
after a crash; an attempt cut short by a drain is on record as `interrupted` and uses up no retry
(contract 5.6).

Blocks on the destination queues, the network and storage. Failures of the network, of signers and
of classifiers end as outcomes; anything else that raises here is a bug, and brings the daemon down
for systemd to restart it.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Protocol

import trio

from primeflowd import conclusions, waiting_attempts
from primeflowd.callback_request import TraceHeaders
from primeflowd.clock import Clock
from primeflowd.conclusions import Conclusions, Health
from primeflowd.config import DeliverySettings
from primeflowd.destinations import Destinations
from primeflowd.events import Event
from primeflowd.exchange import CutShort, Unread
from primeflowd.hookspecs import RecordedAttempt, Storage
from primeflowd.instants import Micros
from primeflowd.model import Delivery, Outcome, Verdict, new_id
from primeflowd.preparation import Preparation, UnderWay
from primeflowd.signing import Signatures
from primeflowd.waiting_attempts import OUT_OF_TOUCH, SHUT_DOWN, Tenure, WaitingAttempts

# Attempts begun between two turns of other tasks.
_AT_ONCE = 32
# Seconds that storage may take to put on record what was cut short.
_LAST_WORDS = 2.0


class Wire(waiting_attempts.Wire, Protocol):
    """What the senders need of the transport."""

    def begin(
        self,
        exchange: UnderWay,
        ended: Callable[[UnderWay, Outcome | Unread | CutShort], None],
        now: float,
        started_at: Micros,
    ) -> bool: ...

    def abandon(self, exchange: UnderWay) -> None: ...


class Desk(conclusions.Desk, waiting_attempts.Desk, Protocol):
    """What the senders need of the holdings."""


class Senders:
    """The pool. `on_recorded` is told of the attempts of a commit right after it, `on_event` of
    what the operator should know, `on_late` how much later than due a retry was begun."""

    def __init__(
        self,
        *,
        storage: Storage,
        destinations: Destinations,
        desk: Desk,
        signatures: Signatures,
        transport: Wire,
        classify: Callable[[Outcome, Delivery], Verdict],
        on_recorded: Callable[[Sequence[RecordedAttempt]], None],
        on_event: Callable[[Event], None],
        clock: Clock,
        settings: DeliverySettings,
        lease: Tenure,
        health: Health | None = None,
        trace_headers: TraceHeaders | None = None,
        on_late: Callable[[Micros], None] = lambda _: None,
    ) -> None:
        self._destinations = destinations
        self._transport = transport
        self._clock = clock
        self._settings = settings
        self._lease = lease
        # The id of the attempt by that of its delivery, until it is on record.
        self._busy: dict[str, str] = {}
        self._conclusions = Conclusions(
            storage=storage,
            destinations=destinations,
            desk=desk,
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
        preparation = Preparation(storage, signatures, trace_headers)
        self._prepare_now = preparation.prepare_now
        # Attempts that have not ended yet, with and without a task.
        self._waiting = WaitingAttempts(
            preparation=preparation,
            transport=transport,
            lease=lease,
            destinations=destinations,
            desk=desk,
            conclusions=self._conclusions,
            clock=clock,
            busy=self._busy,
            on_end=self._tell_end,
        )
        self._direct: set[UnderWay] = set()
        self._running = False
        # What `begin` met, for `run` to raise.
        self._bug: Exception | None = None
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

    def gather(self) -> None:
        """Wait for `begin` with what becomes due: there is more to come at this moment."""
        self._destinations.gather()

    def begin(self) -> None:
        """Begin what was gathered, here and now, as far as that can be; the rest in its turn."""
        if not self._destinations.gathering:
            return
        try:
            room = self._room()
            if self._running and room > 0 and not self._records.full:
                self._begin_some(min(room, _AT_ONCE))
        except Exception as bug:  # noqa: BLE001 -- not the caller's: `run` raises it
            self._bug = bug
            self._destinations.close()
            self._tell_end()
        finally:
            self._destinations.announce()

    async def run(self) -> None:
        """Send until the destination queues are closed and every attempt is on record.

        Cancelled, it cuts short what is under way, and puts that on record if storage is quick.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._records.run)
            try:
                async with trio.open_nursery() as self._waiting.nursery:
                    self._running = True
                    try:
                        await self._hand_out()
                    finally:
                        # Cancelled, the nursery takes no more tasks from some moment on.
                        self._running = False
                    while self._direct:
                        await self._one_ended()
                await self._records.all_stored()
            finally:
                for attempt in self._direct:
                    self._transport.abandon(attempt)
                    self._interrupted(attempt, SHUT_DOWN)
                with trio.move_on_after(_LAST_WORDS, shield=True):
                    await self._records.all_stored()
                self._records.stop()

    async def _hand_out(self) -> None:
        """Begin attempts as there is room for them, until the destination queues are closed."""
        while not self._destinations.closed:
            room = self._room()
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
        if self._bug is not None:
            raise self._bug

    def _room(self) -> int:
        return self._settings.concurrency - len(self._direct) - len(self._waiting)

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
        ready: list[UnderWay] = []
        while begun < most and (held := self._destinations.take_now()) is not None:
            attempt_id = self._busy[held.delivery.id] = new_id()
            attempt = self._prepare_now(held, attempt_id, now, instant)
            if attempt is None:
                self._waiting.prepare(held, attempt_id)
            else:
                ready.append(attempt)
            begun += 1
        self._begin(ready, now)
        return begun

    def _begin(self, ready: list[UnderWay], now: float) -> None:
        """Send: without a task over a kept connection, else in one."""
        covers, begin, ended = self._lease.covers, self._transport.begin, self._ended
        time_of_day = self._clock.now
        try:
            for attempt in ready:
                self._direct.add(attempt)
                # The lease is looked at last.
                if not (
                    covers(attempt.held.delivery.claimed_by)
                    and begin(attempt, ended, now, time_of_day())
                ):
                    self._direct.remove(attempt)
                    self._waiting.send(attempt)
        except Exception:
            # A bug: this one has not begun, and what has not cannot be abandoned by `run`.
            self._direct.discard(attempt)
            raise

    async def _one_ended(self) -> None:
        self._end = trio.Event()
        await self._end.wait()

    def _tell_end(self) -> None:
        if self._end is not None:
            self._end.set()
            self._end = None

    def _ended(self, attempt: UnderWay, result: Outcome | Unread | CutShort) -> None:
        """An attempt without a task has come to its end, or needs one now."""
        self._direct.remove(attempt)
        if isinstance(result, Outcome):
            self._conclude(attempt.held, attempt.id, result, attempt.signed)
        elif isinstance(result, CutShort):
            self._interrupted(attempt, OUT_OF_TOUCH)
        else:
            self._waiting.send(attempt, result)
            return
        if self._end is not None:
            self._tell_end()

    def _interrupted(self, attempt: UnderWay, cause: str) -> None:
        self._conclusions.interrupted(
            attempt.held, attempt.id, cause, attempt.started_at, attempt.signed
        )
