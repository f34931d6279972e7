"""Small recurring chores: probing a failed storage, purging old answers, last use of secrets.

Each chore is one short transaction at a time, so that none holds up a callback. While storage is
out of reach the chores fail quietly, but for the probe, whose success makes the node ready again.
"""

from collections.abc import Callable

import structlog
import trio

from primeflowd.clock import Clock
from primeflowd.errors import StorageUnavailable
from primeflowd.hookspecs import Storage, Tx
from primeflowd.instants import DAY, Micros, rfc3339
from primeflowd.signing import Signatures

log = structlog.get_logger()

ANSWER_LIFETIME: Micros = DAY
"""How long the answer to an idempotency key is kept (contract 2.6)."""

_PROBE_EVERY = 1.0
_FLUSH_EVERY = 60.0
_PURGE_EVERY = 600.0
_PURGE_AT_ONCE = 500


class Housekeeping:
    """The service that does the chores."""

    def __init__(
        self,
        storage: Storage,
        signatures: Signatures,
        clock: Clock,
        is_eldest: Callable[[], bool] = lambda: True,
    ) -> None:
        """`is_eldest`: of several nodes only one purges for all."""
        self._is_eldest = is_eldest
        self._storage = storage
        self._signatures = signatures
        self._clock = clock

    async def run(self) -> None:
        """Do the chores, each at its own pace, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._probe)
            nursery.start_soon(self._flush)
            nursery.start_soon(self._purge)

    async def _probe(self) -> None:
        """Write something small while storage is unhealthy: only a commit shows that it is back."""
        failures, troubled = self._storage.statistics().failures, False
        while True:
            await trio.sleep(_PROBE_EVERY)
            found = self._storage.statistics()
            # It may have failed, and have been found well by somebody else's write, since.
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
                log.info("storage_recovered")
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

    async def _purge(self) -> None:
        while True:
            await trio.sleep(_PURGE_EVERY)
            if not self._is_eldest():
                continue
            forgotten = _PURGE_AT_ONCE
            try:
                while forgotten == _PURGE_AT_ONCE:
                    forgotten = await self._storage.write(self._forget_answers)
            except StorageUnavailable as error:
                log.debug("answers_not_purged", error=str(error))

    def _forget_answers(self, tx: Tx) -> int:
        return tx.delete_answers(self._clock.now() - ANSWER_LIFETIME, _PURGE_AT_ONCE)
