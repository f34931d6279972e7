"""The daemon: one nursery runs the HTTP API, the scheduler and the sender pool.

Reads as a table of contents: open storage, start the services, wait for a signal, drain. No
service is supervised: one that raises is a bug, brings the nursery down and ends the process with
a non-zero exit code, for systemd to start it again. What is in storage carries on from there.

Drain (contract section 8), with one deadline for all of it:
    readiness red, intake closed -> scheduler stopped, destination queues closed -> wait for the
    busy senders -> cut the rest short, on record -> give all claims back -> API and storage close.
A second signal jumps to the cut. SIGHUP reloads the configuration; see reload.py.
"""

import faulthandler
import gc
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Final

import structlog
import trio

from primeflowd import service_manager
from primeflowd.api import front_door, listener, server
from primeflowd.api.app import App, create_app
from primeflowd.clock import SharedClock
from primeflowd.config import Config, parse_bind
from primeflowd.errors import OperatorError, StorageUnavailable
from primeflowd.hookspecs import Tx
from primeflowd.instants import SECOND
from primeflowd.keyring import check as check_master_key
from primeflowd.keyring import load_or_create
from primeflowd.lease import Lease
from primeflowd.model import new_id
from primeflowd.node import Node
from primeflowd.plugins import Plugins
from primeflowd.reload import Reloader
from primeflowd.span_export import open_export
from primeflowd.sql.copying import check_complete
from primeflowd.tallies import watch_loop
from primeflowd.tracing import Tracing

log = structlog.get_logger()

# Besides the deadline for attempts, what the last commits, the API's open requests and the plugins
# that are told of attempts may take.
_CLOSING = 5.0

CLOSE_WITHIN: Final = 60.0
"""Seconds that a shutdown takes at most besides `[drain] deadline`: requests under way, last words,
claims, API and plugins, connections, and a storage that is slow to close."""


async def run(config: Config, plugins: Plugins, source: Callable[[], Config]) -> None:
    """Run a daemon from start to drained. `plugins` are loaded from the same `config`; `source`
    reads its file anew, in some thread.

    Raises:
        OperatorError: the host or the configuration is wrong; see errors.py.
    """
    # From the start on: it must not end a daemon that is still starting.
    with trio.open_signal_receiver(signal.SIGHUP) as hangups:
        await _run(config, plugins, source, hangups)


async def _run(
    config: Config,
    plugins: Plugins,
    source: Callable[[], Config],
    hangups: AsyncIterator[int],
) -> None:
    manager = service_manager.take(os.environ)
    if manager.watchdog is not None:
        # SIGABRT then comes from the watchdog: leave word where each thread hung.
        faulthandler.enable()
    # At once, for what it may ask the operator to mend.
    spans = open_export(config.tracing)
    node_id = f"{socket.gethostname()}-{os.getpid()}-{new_id()[-8:]}"
    async with plugins.open_storage(config, node_id) as storage:
        keyring, created = load_or_create(config)

        def may_begin(tx: Tx) -> None:
            check_complete(tx)
            check_master_key(keyring, tx)

        clock = SharedClock()
        lease = Lease(storage, clock, node_id, config.storage.lease_ttl.micros)
        # Before anything else touches storage: a wrong key must change nothing.
        freed = await lease.begin(may_begin)
        if created is not None:
            log.info(
                "master_key_created", path=str(created), hint="back it up, apart from the database"
            )
        if freed:
            log.info("claims_recovered", deliveries=freed)
        tracing = None if spans is None else Tracing(config.tracing, spans, clock)
        node = Node(config, storage, lease, clock, keyring, plugins, manager, tracing, source)
        try:
            await _serve(node, hangups)
        finally:
            with trio.move_on_after(_CLOSING, shield=True):
                await node.transport.aclose()
            if spans is not None:
                with trio.CancelScope(shield=True):
                    await spans.aclose()


async def _serve(node: Node, hangups: AsyncIterator[int]) -> None:
    """Serve until a signal, then drain.

    Raises:
        OperatorError: the address cannot be listened on.
    """
    api_closing, api_closed = trio.Event(), trio.Event()
    app = create_app(node.services)
    node.on_reloaded = app.reconfigure
    async with trio.open_nursery() as nursery, _signals(nursery) as (asked, hurried):
        with_scope = partial(_start_scoped, nursery)
        bound = await nursery.start(_serve_api, node, app, api_closing, api_closed)
        await node.rulebook.load()
        holding = [with_scope(node.transport.run), with_scope(node.lease.run)]
        scheduling = with_scope(node.scheduler.run)
        chores = [with_scope(node.recoveries.run), with_scope(node.housekeeping.run)]
        chores.append(with_scope(node.retention.run))
        chores.append(with_scope(node.rulebook.run))
        chores.append(with_scope(node.events.run))
        chores.append(with_scope(partial(watch_loop, node.loop_lags)))
        nursery.start_soon(node.announcer.run)
        sent = trio.Event()
        sending = with_scope(partial(_then_set, node.senders.run, sent))
        node.running = True
        _quieten_collector()
        log.info("daemon_ready", url=bound[0], node_id=node.lease.node_id)
        await node.manager.tell("READY=1", f"STATUS={node.status()}")
        beating = with_scope(node.heartbeat.run)
        chores.append(with_scope(partial(_reload_on, hangups, node.reloader)))

        await asked.wait()
        log.info("drain_started", sending=node.senders.busy)
        at_most = node.config.drain.deadline.micros + round(CLOSE_WITHIN * SECOND)
        await node.manager.tell("STOPPING=1", f"EXTEND_TIMEOUT_USEC={at_most}")
        node.heartbeat.draining = True
        if node.config.api.reuse_port or node.manager.listener is not None:
            # The other processes on the port take what comes, or the next on the socket that
            # systemd keeps open; here it would meet a 503.
            api_closing.set()
            await _first(api_closed.wait, hurried.wait)
        node.intake.close()
        for scope in chores:
            scope.cancel()
        node.holdings.close()
        scheduling.cancel()
        node.destinations.close()
        with trio.move_on_after(node.config.drain.deadline.seconds):
            await _release_waiting(node)
            await _first(sent.wait, hurried.wait)
        cut = node.senders.busy
        sending.cancel()
        await sent.wait()
        node.announcer.close()
        for scope in holding:
            scope.cancel()
        with trio.move_on_after(_CLOSING):
            await _release(node)
        api_closing.set()
        beating.cancel()
        log.info("drain_finished", cut_short=cut)
        nursery.cancel_scope.deadline = trio.current_time() + _CLOSING


async def _reload_on(hangups: AsyncIterator[int], reloader: Reloader) -> None:
    """Reload at each SIGHUP; several at once count as one."""
    async for _ in hangups:
        with suppress(OperatorError):  # it is in the log, and nothing has changed
            await reloader.reload()


async def _serve_api(
    node: Node,
    app: App,
    closing: trio.Event,
    closed: trio.Event,
    *,
    task_status: trio.TaskStatus[list[str]],
) -> None:
    api, passed = node.config.api, node.manager.listener
    serve = front_door.serve if api.server == "lean" else server.serve
    await serve(
        app,
        parse_bind(api.bind) if passed is None else (listener.INHERITED, passed),
        closing,
        reuse_port=api.reuse_port,
        task_status=task_status,
    )
    closed.set()


async def _release_waiting(node: Node) -> None:
    """Give back what no sender has: other nodes need not wait for the attempts under way."""
    node_id, ids = node.lease.node_id, node.holdings.let_go()

    def give_back(tx: Tx) -> None:
        tx.release(node_id, ids)
        for other in tx.nodes():
            # To look at one of them is to ask for all: sooner than at its regular time, on a
            # storage that cannot wake it.
            if ids and other != node_id:
                tx.put_order(other, next(iter(ids)))

    try:
        await node.storage.write(give_back)
    except StorageUnavailable as error:
        log.warning("claims_not_released", error=str(error))


async def _release(node: Node) -> None:
    """Give every claim back, so that another node or the next start takes over at once."""
    try:
        await node.signatures.flush_last_used()
        await node.events.flush()
        await node.lease.end()
    except StorageUnavailable as error:
        # The lease expires, and they are freed then.
        log.warning("claims_not_released", error=str(error))


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
