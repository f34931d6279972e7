"""Callbacks to the operator about events of the daemon, to `[events] url`.

An event becomes a batch that was born ended, of the org `[events] org` and with its kind as the
plan, and that batch's delivery: so it is durable, signed, retried, on record and sent again on
request like any other callback.

Guarantees: at most one callback per kind and subject in `events.interval`; the first is told of at
once, those that follow are counted and told of together. Nothing is told about that org, so no
event follows from the sending of one. Memory is bounded: beyond a thousand subjects at a time the
events of one kind are counted together.

An event is stored right after what it is about, not with it: a process that is killed loses those
of the last moment, and those that it has only counted. A drain stores them all.

Blocks on storage. While that is out of reach it keeps what it has and tries again.
"""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Final

import msgspec
import structlog
import trio

from primeflowd.clock import Clock
from primeflowd.config import Config
from primeflowd.errors import StorageUnavailable
from primeflowd.events import (
    DESTINATION_RECOVERED,
    DESTINATION_SUSPENDED,
    SECRET_DISABLED_IN_USE,
    Event,
    freeze,
    spelt,
)
from primeflowd.hookspecs import Storage, Tx
from primeflowd.instants import Micros
from primeflowd.lifecycle import NOTHING_KNOWN
from primeflowd.model import Batch, Delivery, new_id
from primeflowd.redelivery import make_delivery
from primeflowd.unit import Unit

log = structlog.get_logger()

# Kinds and subjects that are counted apart, and destinations known to be suspended.
_MOST: Final = 1000
# Seconds between tries while storage is out of reach.
_RETRY: Final = 1.0


class _Count:
    """Events of one kind and subject that are still to be told of.

    Attributes:
        first: None if there are none.
        quiet_until: on Trio's clock; none is told of before.
    """

    __slots__ = ("first", "last_at", "number", "quiet_until")

    def __init__(self) -> None:
        self.first: Event | None = None
        self.number = 0
        self.last_at: Micros = 0
        self.quiet_until = float("-inf")


class _Parcel(msgspec.Struct, frozen=True):
    """A callback that is to be stored. Its id is kept for a commit that is tried again, as one
    that failed may have happened all the same."""

    id: str
    event: Event
    payload: bytes


class EventCallbacks:
    """Is told of events, and makes callbacks of them. For the Trio thread."""

    def __init__(
        self,
        storage: Storage,
        clock: Clock,
        config: Config,
        node_id: Callable[[], str],
        on_made: Callable[[Sequence[Delivery]], None],
    ) -> None:
        """`on_made` is called with each commit: these deliveries are in storage, unclaimed."""
        self._storage = storage
        self._clock = clock
        self._settings = config.events
        self._default_policy = config.delivery.default_policy
        self._node_id = node_id
        self._on_made = on_made
        self._kinds = frozenset(config.events.kinds if config.events.url else ())
        self._counts: dict[tuple[str, str | None], _Count] = {}
        self._outbox: list[_Parcel] = []
        # Destinations whose suspension was told of, and since when it lasts.
        self._suspended: dict[str, Micros] = {}
        self._wake = trio.Event()

    def tell(self, event: Event) -> None:
        """Something has happened. Never blocks."""
        if not self._kinds or event.org_id == self._settings.org:
            return
        if event.kind in (DESTINATION_SUSPENDED, DESTINATION_RECOVERED):
            turned = self._turn(event)
            if turned is None:
                return
            event = turned
        if event.kind in self._kinds:
            self._count(event)

    async def run(self) -> None:
        """Make callbacks, until cancelled."""
        if not self._kinds:
            return
        await self._warn_if_unsigned()
        while True:
            self._wake = trio.Event()
            self._pack(trio.current_time())
            if self._outbox:
                try:
                    await self._store()
                except StorageUnavailable as error:
                    log.warning("events_delayed", events=len(self._outbox), error=str(error))
                    await trio.sleep(_RETRY)
                continue
            quiet = [count.quiet_until for count in self._counts.values()]
            with trio.move_on_at(min(quiet, default=float("inf"))):
                await self._wake.wait()

    async def flush(self) -> None:
        """Store all that is still to be told of: the last chance, so one try."""
        try:
            # First what is packed already: it stays by itself, or its ids would be lost.
            if self._outbox:
                await self._store()
            self._pack(float("inf"))
            if self._outbox:
                await self._store()
        except StorageUnavailable as error:
            lost = len(self._outbox) + sum(count.number for count in self._counts.values())
            log.warning("events_lost", events=lost, error=str(error))

    def _turn(self, event: Event) -> Event | None:
        """Whether a destination's turn is news; a recovery, with the suspension it ends."""
        destination = event.data["destination"]
        assert isinstance(destination, str)
        if event.kind == DESTINATION_RECOVERED:
            since = self._suspended.pop(destination, None)
            if since is None:
                return None
            data = {**event.data, "suspended_at": spelt(since)}
            return msgspec.structs.replace(event, data=data)
        if destination in self._suspended:
            return None  # a probe failed: it is suspended still
        while len(self._suspended) >= _MOST:
            del self._suspended[next(iter(self._suspended))]
        self._suspended[destination] = event.at
        return event

    def _count(self, event: Event) -> None:
        key = (event.kind, event.subject)
        count = self._counts.get(key)
        if count is None:
            if len(self._counts) >= _MOST:
                key = (event.kind, None)
            count = self._counts.setdefault(key, _Count())
        if count.first is None:
            count.first = event
            if count.quiet_until <= trio.current_time():
                self._wake.set()
        count.number += 1
        count.last_at = event.at

    def _pack(self, now: float) -> None:
        """Make parcels of the events whose time has come, and forget who is quiet.

        Not while there are parcels from before: else they would pile up while storage is away.
        """
        if self._outbox:
            return
        for (kind, subject), count in list(self._counts.items()):
            if count.quiet_until > now:
                continue
            if count.first is None:
                del self._counts[kind, subject]
                continue
            event_id = new_id()
            payload = freeze(
                event_id, self._node_id(), count.first, subject, count.number, count.last_at
            )
            self._outbox.append(_Parcel(event_id, count.first, payload))
            count.first, count.number = None, 0
            count.quiet_until = now + self._settings.interval.seconds

    async def _store(self) -> None:
        parcels = tuple(self._outbox)

        def stored(made: Sequence[Delivery]) -> None:
            # With the commit: a task that is cancelled meanwhile leaves them to nobody.
            ids = {parcel.id for parcel in parcels}
            self._outbox = [parcel for parcel in self._outbox if parcel.id not in ids]
            self._on_made(made)

        await self._storage.write(partial(self._insert, parcels), stored)

    def _insert(self, parcels: Collection[_Parcel], tx: Tx) -> list[Delivery]:
        # Unclaimed: whoever has room for them finds them, this node at once.
        unit = Unit(tx, self._clock.now(), self._default_policy, lambda _: None)
        stored = tx.taken_batch_ids([parcel.id for parcel in parcels])
        for parcel in parcels:
            if parcel.id not in stored and _is_true(tx, parcel.event):
                batch = self._batch(parcel, unit.now)
                tx.insert_batch(batch)
                make_delivery(unit, batch, parcel.payload, is_automatic=True)
        return [delivery for delivery, _ in unit.made]

    def _batch(self, parcel: _Parcel, now: Micros) -> Batch:
        return msgspec.structs.replace(
            NOTHING_KNOWN,
            id=parcel.id,
            org_id=self._settings.org,
            plan_id=parcel.event.kind,
            callback_url=self._settings.url,
            status="succeeded",
            payload=parcel.payload,
            created_at=now,
            completed_at=now,
            updated_at=now,
        )

    async def _warn_if_unsigned(self) -> None:
        org_id = self._settings.org
        try:
            secret = await self._storage.read(lambda tx: tx.current_secret(org_id))
        except StorageUnavailable:
            return  # it is only a hint
        if secret is None:
            log.warning(
                "events_unsigned",
                org_id=org_id,
                hint="make a signing secret for this org, or callbacks about events go unsigned",
            )


def _is_true(tx: Tx, event: Event) -> bool:
    """Of a secret made through another node within the last second, this one may not have known:
    that it did not sign with it does not mean that it is disabled."""
    if event.kind != SECRET_DISABLED_IN_USE or event.org_id is None or event.subject is None:
        return True
    secret = tx.secret(event.org_id, event.subject)
    return secret is None or secret.disabled_at is not None
