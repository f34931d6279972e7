"""Small recurring chores: probing a failed storage, last use of secrets.

Each chore is one short transaction at a time, so that none holds up a callback. While storage is
out of reach the chores fail quietly, but for the probe, whose success makes the node ready again.
"""

from collections.abc import Callable

import structlog
import trio

from primeflowd.clock import Clock
from primeflowd.errors import StorageUnavailable
from primeflowd.events import Event, storage_recovered
from primeflowd.hookspecs import Storage, Tx
from primeflowd.instants import rfc3339
from primeflowd.signing import Signatures

log = structlog.get_logger()

_PROBE_EVERY = 1.0
_FLUSH_EVERY = 60.0


class Housekeeping:
    """The service that does the chores."""

    def __init__(
        self,
        storage: Storage,
        signatures: Signatures,
        clock: Clock,
        on_event: Callable[[Event], None],
    ) -> None:
        """`on_event` is told when storage has recovered."""
        self._storage = storage
        self._signatures = signatures
        self._clock = clock
        self._on_event = on_event

    async def run(self) -> None:
        """Do the chores, each at its own pace, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._probe)
            nursery.start_soon(self._flush)

    async def _probe(self) -> None:
        """Write something small while storage is unhealthy: only a commit shows that it is back."""
        failures, troubled = self._storage.statistics().failures, False
        since = self._clock.now()
        while True:
            await trio.sleep(_PROBE_EVERY)
            found = self._storage.statistics()
            # It may have failed, and have been found well by somebody else's write, since.
            if not troubled:
                since = self._clock.now()
            troubled = troubled or not found.healthy or found.failures != failures
            failures = found.failures
            if not troubled:
                continue
            try:
                if not found.healthy:
                    await self._storage.write(self._touch)
            except StorageUnavailable as error:
                log.error("storage_unavailable", error=str(error))
            else:
                event = storage_recovered(since, self._clock.now(), found.last_failure)
                log.info("storage_recovered", **event.data)
                self._on_event(event)
                failures, troubled = self._storage.statistics().failures, False

    def _touch(self, tx: Tx) -> None:
        tx.put_note("last_probe", rfc3339(self._clock.now()))

    async def _flush(self) -> None:
        while True:
            await trio.sleep(_FLUSH_EVERY)
            try:
                await self._signatures.flush_last_used()
            except StorageUnavailable as error:
                log.debug("last_use_not_stored", error=str(error))
