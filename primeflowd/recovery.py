"""Bulk redelivery: a durable, paced job that redelivers the failed deliveries of a window.

`start_recovery` stores the job; `Recoveries` works on every running one, a page at a time, each
page in one transaction together with the job's position. Jobs take turns, and all of them together
keep the pace. A job resumes where it was after a restart, and redelivers a batch once however many
of its deliveries failed. Progress is the stored job.

Blocks on storage and on the pace (`delivery.recovery_rate`). While storage is out of reach it
waits and tries again.
"""

from collections.abc import Callable

import msgspec
import structlog
import trio

from primeflowd.config import DeliverySettings
from primeflowd.errors import NotFound, Overloaded, StateRefused, StorageUnavailable
from primeflowd.hookspecs import DeliveryFilter, Page, Storage, Tx
from primeflowd.instants import Micros
from primeflowd.intake import Intake
from primeflowd.model import Delivery, FailureReason, Recovery, new_id
from primeflowd.redelivery import redeliver
from primeflowd.unit import Unit

log = structlog.get_logger()

# A page is a burst: never more than a second's worth, nor so much that it holds up other writes.
_MAX_PAGE = 50
# A job asked for by another process is noticed after this many seconds at the latest.
_LOOK_EVERY = 5.0


def start_recovery(
    unit: Unit,
    org_id: str,
    since: Micros,
    until: Micros | None,
    destination: str | None,
    failure_reason: FailureReason | None,
) -> Recovery:
    """Store a job for the failed deliveries created from `since` to `until` (None: now).

    A later `until` means now as well: what fails after this is none of the job's business.
    """
    recovery = Recovery(
        id=new_id(),
        org_id=org_id,
        since=since,
        until=unit.now if until is None else min(until, unit.now),
        destination=destination,
        failure_reason=failure_reason,
        status="running",
        matched=0,
        redelivered=0,
        skipped=0,
        position=None,
        created_at=unit.now,
        completed_at=None,
    )
    matched = unit.tx.count_deliveries(org_id, _window(recovery))
    recovery = msgspec.structs.replace(recovery, matched=matched)
    unit.tx.put_recovery(recovery)
    return recovery


class Recoveries:
    """The service that works on running jobs."""

    def __init__(
        self,
        storage: Storage,
        intake: Intake,
        settings: DeliverySettings,
        is_eldest: Callable[[], bool] = lambda: True,
    ) -> None:
        """`is_eldest`: of several nodes only one works, or they would not keep the pace."""
        self._storage = storage
        self._is_eldest = is_eldest
        self._intake = intake
        self._wake = trio.Event()
        self.reconfigure(settings)

    def reconfigure(self, settings: DeliverySettings) -> None:
        """Keep this pace from the next page on."""
        self._rate = settings.recovery_rate
        self._page = max(1, min(_MAX_PAGE, int(settings.recovery_rate)))

    def rouse(self) -> None:
        """There is a new job."""
        self._wake.set()

    async def run(self) -> None:
        """Work on jobs until cancelled."""
        while True:
            self._wake = trio.Event()
            try:
                jobs = await self._running()
                for job in jobs:
                    await self._advance(job)
            except (StorageUnavailable, Overloaded) as error:
                log.warning("recovery_delayed", error=str(error))
                jobs = []
            if not jobs:
                with trio.move_on_after(_LOOK_EVERY):
                    await self._wake.wait()

    async def _running(self) -> list[Recovery]:
        if not self._is_eldest():
            return []
        return await self._storage.read(lambda tx: tx.running_recoveries())

    async def _advance(self, found: Recovery) -> None:
        """Do one page of a job, and wait for as long as its redeliveries may take."""
        started = trio.current_time()
        job, made = await self._intake.perform(
            lambda unit: _redeliver_page(unit, found.org_id, found.id, self._page)
        )
        if job.status == "completed":
            log.info(
                "recovery_completed",
                recovery_id=job.id,
                redelivered=job.redelivered,
                skipped=job.skipped,
            )
        await trio.sleep_until(started + made / self._rate)


def _redeliver_page(unit: Unit, org_id: str, recovery_id: str, size: int) -> tuple[Recovery, int]:
    """Redeliver the next few deliveries of a job and store how far it is; how many were made."""
    # Read here, not handed in: another node may have done a page of it since.
    job = unit.tx.recovery(org_id, recovery_id)
    assert job is not None
    if job.status == "completed":
        return job, 0
    page = unit.tx.failed_after(job.org_id, _window(job), job.position, size)
    # One that failed only after the job was asked for is not among those it matched.
    matched = [d for d in page if d.completed_at is not None and d.completed_at <= job.created_at]
    made = 0
    for delivery in matched:
        if _wants_redelivery(unit.tx, job, delivery):
            try:
                redeliver(unit, job.org_id, delivery.batch_id)
            except (NotFound, StateRefused):
                continue
            made += 1
    job = msgspec.structs.replace(
        job,
        redelivered=job.redelivered + made,
        skipped=job.skipped + len(matched) - made,
        position=page[-1].id if page else job.position,
    )
    if len(page) < size:
        job = msgspec.structs.replace(job, status="completed", completed_at=unit.now)
    unit.tx.put_recovery(job)
    return job, made


def _wants_redelivery(tx: Tx, job: Recovery, delivery: Delivery) -> bool:
    """Not if the batch has got through since, is on its way, or was redelivered by this job."""
    latest = tx.deliveries(job.org_id, DeliveryFilter(batch_id=delivery.batch_id), Page(1))
    # Another node may have removed an old batch just now. By id: of two made within a microsecond,
    # the id still tells which came later.
    return bool(latest) and latest[0].status == "failed" and latest[0].id < job.id


def _window(job: Recovery) -> DeliveryFilter:
    return DeliveryFilter(
        status="failed",
        failure_reason=job.failure_reason,
        destination=job.destination,
        # The filter's bounds are exclusive, those of a recovery are not.
        created_after=job.since - 1,
        created_before=job.until + 1,
    )
