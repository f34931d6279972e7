"""The daemon: one nursery runs the HTTP API, the scheduler and the sender pool.

Reads as a table of contents: open storage, start the services, wait for a signal, drain. No
service is supervised: one that raises is a bug, brings the nursery down and ends the process with
a non-zero exit code, for systemd to start it again. What is in storage carries on from there.

Drain (contract section 8), with one deadline for all of it:
    readiness red, intake closed -> scheduler stopped, destination queues closed -> wait for the
    busy senders -> cut the rest short, on record -> give all claims back -> API and storage close.
A second signal jumps to the cut.
"""

import faulthandler
import gc
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final

import structlog
import trio

from primeflowd import service_manager
from primeflowd.announcer import Announcer
from primeflowd.api import front_door, listener, server
from primeflowd.api.app import App, create_app
from primeflowd.api.services import Services
from primeflowd.clock import Clock, SharedClock, SystemClock
from primeflowd.config import Config, parse_bind
from primeflowd.destinations import Destinations
from primeflowd.errors import StorageUnavailable
from primeflowd.explanation import DestinationNow
from primeflowd.heartbeat import Heartbeat
from primeflowd.hookspecs import RecordedAttempt, Storage, Tx
from primeflowd.housekeeping import Housekeeping
from primeflowd.instants import SECOND
from primeflowd.intake import Intake
from primeflowd.keyring import Keyring, load_or_create
from primeflowd.keyring import check as check_master_key
from primeflowd.lease import Lease
from primeflowd.metrics import Metrics, Reading
from primeflowd.model import new_id
from primeflowd.plugins import Plugins
from primeflowd.recovery import Recoveries
from primeflowd.scheduler import Scheduler
from primeflowd.sender import Senders
from primeflowd.service_manager import ServiceManager
from primeflowd.signing import Signatures
from primeflowd.sql.copying import check_complete
from primeflowd.tallies import AttemptTally, RequestTally, loop_lags, watch_loop
from primeflowd.transport import Transport

log = structlog.get_logger()

# Besides the deadline for attempts, what the last commits, the API's open requests and the plugins
# that are told of attempts may take.
_CLOSING = 5.0

CLOSE_WITHIN: Final = 60.0
"""Seconds that a shutdown takes at most besides `[drain] deadline`: requests under way, last words,
claims, API and plugins, connections, and a storage that is slow to close."""


class Daemon:
    """The parts of one running node, wired together. Made once storage is open."""

    def __init__(
        self,
        config: Config,
        storage: Storage,
        lease: Lease,
        clock: Clock,
        keyring: Keyring,
        plugins: Plugins,
        manager: ServiceManager,
    ) -> None:
        self.config = config
        self.manager = manager
        self.storage = storage
        self.lease = lease
        self.clock = clock
        self.plugins = plugins
        self.tally, self.requests, self.loop_lags = AttemptTally(), RequestTally(), loop_lags()
        settings = config.delivery
        self.destinations = Destinations(settings)
        self.heartbeat = Heartbeat(
            manager,
            storage,
            clock,
            lease,
            status=self._status,
            attempts=lambda: self._attempts,
        )
        self.scheduler = Scheduler(
            self.heartbeat.scheduling, self.destinations, clock, settings, lease
        )
        self.intake = Intake(storage, self.scheduler, clock, config)
        self.signatures = Signatures(storage, keyring, plugins.signers(config), clock)
        self.transport = Transport(settings, clock)
        self.announcer = Announcer(plugins.recorders())
        self.senders = Senders(
            storage=storage,
            destinations=self.destinations,
            scheduler=self.scheduler,
            signatures=self.signatures,
            transport=self.transport,
            classify=self.tally.timing(plugins.classify),
            on_recorded=self.tally.recording(self._recorded),
            clock=clock,
            settings=settings,
            lease=lease,
        )
        self.recoveries = Recoveries(storage, self.intake, settings, self._is_eldest)
        self.housekeeping = Housekeeping(storage, self.signatures, clock, self._is_eldest)
        lease.on_lapsed = self.transport.cut_short
        lease.on_lost = self._lost
        lease.on_freed = self.scheduler.rouse
        self.services = Services(
            storage=storage,
            intake=self.intake,
            config=config,
            clock=clock,
            keyring=keyring,
            delivering=self.senders.is_sending,
            delivering_now=lambda: self.senders.sending,
            not_ready=self.not_ready,
            statistics=self.statistics,
            scrape=Metrics(self.reading).scrape,
            requests=self.requests,
            secrets_changed=self.signatures.forget,
            recovery_started=self.recoveries.rouse,
            node_id=lambda: self.lease.node_id,
            destination=self._destination_now,
        )
        self._running = False
        self._attempts = 0

    def _recorded(self, record: RecordedAttempt) -> None:
        self._attempts += 1
        self.announcer.tell(record)

    def _status(self) -> str:
        """What systemctl shows beside the attempts per second."""
        state = self.not_ready() or "ready"
        held, due = len(self.scheduler), len(self.destinations)
        return f"{state}: {held} held, {due} due, {self.senders.busy} sending"

    def not_ready(self) -> str | None:
        """Why /readyz is red, or None."""
        if self.intake.closed:
            return "draining"
        if not self._running:
            return "starting"
        if not self.storage.statistics().healthy:
            return "storage is unavailable"
        if not self.lease.holds():
            return "out of touch with the storage for too long"
        return None

    def _lost(self) -> None:
        self.transport.cut_short()
        self.scheduler.renounce()

    def _is_eldest(self) -> bool:
        return self.lease.holds() and self.lease.is_eldest

    def _destination_now(self, name: str) -> DestinationNow:
        known = self.destinations.statistics().get(name)
        if known is None:
            return DestinationNow()
        return DestinationNow(
            queued=known.queued,
            in_flight=known.in_flight,
            window=known.window,
            suspended_until=known.suspended_until,
            probing=known.suspended_until is None and name in self.destinations.ill(),
        )

    def statistics(self) -> dict[str, Any]:
        """What /v1/stats shows of this node."""
        storage = self.storage.statistics()
        return {
            "node_id": self.lease.node_id,
            "is_eldest": self._is_eldest(),
            "held": len(self.scheduler),
            "waiting": self.scheduler.waiting(),
            "due": len(self.destinations),
            "sending": self.senders.busy,
            "storage_healthy": storage.healthy,
            "storage_backlog": storage.backlog,
            "commits": storage.commits,
            "operations": storage.operations,
            "attempts_not_announced": self.announcer.not_announced,
        }

    def reading(self) -> Reading:
        """What /metrics shows of this node."""
        return Reading(
            now=self.clock.now(),
            ready=self.not_ready() is None,
            accepted=self.intake.accepted,
            cancelled=self.intake.cancelled,
            attempts=self.tally,
            waiting=self.scheduler.waiting(),
            due=len(self.destinations),
            sending=self.senders.busy,
            held_limit=self.config.delivery.active_limit,
            senders=self.config.delivery.concurrency,
            destinations=self.destinations.statistics(),
            transport=self.transport.statistics(),
            storage=self.storage.statistics(),
            backlog_limit=self.config.storage.max_backlog,
            lease_held=self.lease.holds(),
            is_eldest=self._is_eldest(),
            loop_lags=self.loop_lags,
            requests=self.requests,
            plugin_failures=self.plugins.failures,
            not_announced=self.announcer.not_announced,
        )

    async def run(self) -> None:
        """Serve until a signal, then drain.

        Raises:
            OperatorError: the address cannot be listened on.
        """
        api_closing, api_closed = trio.Event(), trio.Event()
        app = create_app(self.services)
        async with trio.open_nursery() as nursery, _signals(nursery) as (asked, hurried):
            with_scope = partial(_start_scoped, nursery)
            bound = await nursery.start(self._serve, app, api_closing, api_closed)
            holding = [with_scope(self.transport.run), with_scope(self.lease.run)]
            scheduling = with_scope(self.scheduler.run)
            chores = [with_scope(self.recoveries.run), with_scope(self.housekeeping.run)]
            chores.append(with_scope(partial(watch_loop, self.loop_lags)))
            nursery.start_soon(self.announcer.run)
            sent = trio.Event()
            sending = with_scope(partial(_then_set, self.senders.run, sent))
            self._running = True
            _quieten_collector()
            log.info("daemon_ready", url=bound[0], node_id=self.lease.node_id)
            await self.manager.tell("READY=1", f"STATUS={self._status()}")
            beating = with_scope(self.heartbeat.run)

            await asked.wait()
            log.info("drain_started", sending=self.senders.busy)
            at_most = self.config.drain.deadline.micros + round(CLOSE_WITHIN * SECOND)
            await self.manager.tell("STOPPING=1", f"EXTEND_TIMEOUT_USEC={at_most}")
            self.heartbeat.draining = True
            if self.config.api.reuse_port or self.manager.listener is not None:
                # The other processes on the port take what comes, or the next on the socket that
                # systemd keeps open; here it would meet a 503.
                api_closing.set()
                await _first(api_closed.wait, hurried.wait)
            self.intake.close()
            for scope in chores:
                scope.cancel()
            self.scheduler.close()
            scheduling.cancel()
            self.destinations.close()
            with trio.move_on_after(self.config.drain.deadline.seconds):
                await self._release_waiting()
                await _first(sent.wait, hurried.wait)
            cut = self.senders.busy
            sending.cancel()
            await sent.wait()
            self.announcer.close()
            for scope in holding:
                scope.cancel()
            with trio.move_on_after(_CLOSING):
                await self._release()
            api_closing.set()
            beating.cancel()
            log.info("drain_finished", cut_short=cut)
            nursery.cancel_scope.deadline = trio.current_time() + _CLOSING

    async def _serve(
        self,
        app: App,
        closing: trio.Event,
        closed: trio.Event,
        *,
        task_status: trio.TaskStatus[list[str]],
    ) -> None:
        api, passed = self.config.api, self.manager.listener
        serve = front_door.serve if api.server == "lean" else server.serve
        await serve(
            app,
            parse_bind(api.bind) if passed is None else (listener.INHERITED, passed),
            closing,
            reuse_port=api.reuse_port,
            task_status=task_status,
        )
        closed.set()

    async def _release_waiting(self) -> None:
        """Give back what no sender has: other nodes need not wait for the attempts under way."""
        node_id, ids = self.lease.node_id, self.scheduler.let_go()

        def give_back(tx: Tx) -> None:
            tx.release(node_id, ids)
            for other in tx.nodes():
                # To look at one of them is to ask for all: sooner than at its regular time, on a
                # storage that cannot wake it.
                if ids and other != node_id:
                    tx.put_order(other, next(iter(ids)))

        try:
            await self.storage.write(give_back)
        except StorageUnavailable as error:
            log.warning("claims_not_released", error=str(error))

    async def _release(self) -> None:
        """Give every claim back, so that another node or the next start takes over at once."""
        try:
            await self.signatures.flush_last_used()
            await self.lease.end()
        except StorageUnavailable as error:
            # The lease expires, and they are freed then.
            log.warning("claims_not_released", error=str(error))


async def run(config: Config, plugins: Plugins) -> None:
    """Run a daemon from start to drained. `plugins` are loaded from the same `config`.

    Raises:
        OperatorError: the host or the configuration is wrong; see errors.py.
    """
    manager = service_manager.take(os.environ)
    if manager.watchdog is not None:
        # SIGABRT then comes from the watchdog: leave word where each thread hung.
        faulthandler.enable()
    node_id = f"{socket.gethostname()}-{os.getpid()}-{new_id()[-8:]}"
    async with plugins.open_storage(config, node_id) as storage:
        keyring, created = load_or_create(config)

        def may_begin(tx: Tx) -> None:
            check_complete(tx)
            check_master_key(keyring, tx)

        clock = SharedClock(SystemClock())
        lease = Lease(storage, clock, node_id, config.storage.lease_ttl.micros)
        # Before anything else touches storage: a wrong key must change nothing.
        freed = await lease.begin(may_begin)
        if created is not None:
            log.info(
                "master_key_created", path=str(created), hint="back it up, apart from the database"
            )
        if freed:
            log.info("claims_recovered", deliveries=freed)
        daemon = Daemon(config, storage, lease, clock, keyring, plugins, manager)
        try:
            await daemon.run()
        finally:
            with trio.move_on_after(_CLOSING, shield=True):
                await daemon.transport.aclose()


def _quieten_collector() -> None:
    """Collect cyclic garbage seldom, and without walking what was loaded at the start.

    Every callback makes and drops hundreds of objects, nearly none of them in cycles; at the
    default threshold the collector runs several times per callback's worth of work and finds
    nothing.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@asynccontextmanager
async def _signals(nursery: trio.Nursery) -> AsyncIterator[tuple[trio.Event, trio.Event]]:
    """Events for the first and the second SIGTERM or SIGINT."""
    asked, hurried = trio.Event(), trio.Event()
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:

        async def watch() -> None:
            async for _ in received:
                if asked.is_set():
                    hurried.set()
                asked.set()

        scope = _start_scoped(nursery, watch)
        yield asked, hurried
        scope.cancel()


def _start_scoped(
    nursery: trio.Nursery, service: Callable[[], Awaitable[None]]
) -> trio.CancelScope:
    """Start a service that can be cancelled apart from the others."""
    scope = trio.CancelScope()

    async def scoped() -> None:
        with scope:
            await service()

    nursery.start_soon(scoped)
    return scope


async def _then_set(service: Callable[[], Awaitable[None]], ended: trio.Event) -> None:
    try:
        await service()
    finally:
        ended.set()


async def _first(*waits: Callable[[], Awaitable[None]]) -> None:
    """Return when the first of `waits` does."""
    async with trio.open_nursery() as nursery:

        async def one(wait: Callable[[], Awaitable[None]]) -> None:
            await wait()
            nursery.cancel_scope.cancel()

        for wait in waits:
            nursery.start_soon(one, wait)
