"""One node: its parts wired together, and what it says of itself.

Nothing here runs or waits. Where a lower part calls a higher one, this passes it a plain callable.
"""

from collections.abc import Callable, Sequence

from primeflowd import log
from primeflowd.announcer import Announcer
from primeflowd.api.services import NodeStatistics, Services
from primeflowd.clock import Clock
from primeflowd.config import Config
from primeflowd.destinations import Destinations
from primeflowd.errors import Draining
from primeflowd.event_callbacks import EventCallbacks
from primeflowd.explanation import DestinationNow
from primeflowd.exposition import Exposition
from primeflowd.heartbeat import Heartbeat
from primeflowd.holdings import Holdings
from primeflowd.hookspecs import RecordedAttempt, Storage
from primeflowd.housekeeping import Housekeeping
from primeflowd.intake import Intake
from primeflowd.keyring import Keyring
from primeflowd.lease import Lease
from primeflowd.metrics import Reading, families
from primeflowd.model import Delivery
from primeflowd.plugins import Plugins
from primeflowd.recovery import Recoveries
from primeflowd.reload import Prepared, Reloaded, Reloader
from primeflowd.retention import Retention
from primeflowd.rulebook import Rulebook
from primeflowd.scheduler import Scheduler
from primeflowd.sender import Senders
from primeflowd.service_manager import ServiceManager
from primeflowd.signing import Signatures
from primeflowd.tallies import AttemptTally, RequestTally, loop_lags
from primeflowd.tracing import Tracing
from primeflowd.transport import Transport


class Node:
    """All parts. Made once storage is open; daemon.py runs them.

    Attributes:
        running: it serves; until then, /readyz says that it is starting.
        on_reloaded: told of a new configuration, with all other parts.
    """

    def __init__(
        self,
        config: Config,
        storage: Storage,
        lease: Lease,
        clock: Clock,
        keyring: Keyring,
        plugins: Plugins,
        manager: ServiceManager,
        tracing: Tracing | None,
        source: Callable[[], Config],
    ) -> None:
        """`source` reads `config` anew, in some thread."""
        self.config = config
        self.manager = manager
        self.storage = storage
        self.lease = lease
        self.clock = clock
        self.plugins = plugins
        self._tracing = tracing
        self.tally, self.requests, self.loop_lags = AttemptTally(), RequestTally(), loop_lags()
        settings = config.delivery
        self.destinations = Destinations(settings, clock)
        self.heartbeat = Heartbeat(
            manager,
            storage,
            clock,
            lease,
            status=self.status,
            attempts=lambda: self._attempts,
        )
        self.holdings = Holdings(self.destinations, clock, settings, lease)
        self.scheduler = Scheduler(
            self.heartbeat.scheduling, self.holdings, self.destinations, clock, lease
        )
        self.rulebook = Rulebook(storage, keyring, clock, config, self.holdings.govern)
        self.intake = Intake(
            storage, self.holdings, clock, config, tracing.follow if tracing else None
        )
        self.events = EventCallbacks(
            storage, clock, config, lambda: self.lease.node_id, self._events_made
        )
        self.intake.on_event = self.events.tell
        self.rulebook.on_event = self.events.tell
        self.signatures = Signatures(storage, keyring, plugins.signers(config), clock)
        self.transport = Transport(settings, clock)
        self.announcer = Announcer(plugins.recorders())
        self.senders = Senders(
            storage=storage,
            destinations=self.destinations,
            desk=self.holdings,
            signatures=self.signatures,
            transport=self.transport,
            classify=plugins.classify,
            on_recorded=self.tally.recording(
                tracing.recording(self._recorded) if tracing else self._recorded
            ),
            on_event=self.events.tell,
            clock=clock,
            settings=settings,
            lease=lease,
            health=self.rulebook,
            trace_headers=tracing.headers if tracing else None,
            on_late=self.tally.lateness.observe,
        )
        self.intake.pool = self.senders
        self.recoveries = Recoveries(storage, self.intake, settings, self._is_eldest)
        self.housekeeping = Housekeeping(storage, self.signatures, clock, self.events.tell)
        self.retention = Retention(storage, config.retention, clock, self._is_eldest)
        self.reloader = Reloader(config, source, plugins, self._apply, manager.tell, self.status)
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
            scrape=Exposition(lambda: families(self.reading())).scrape,
            requests=self.requests,
            tracing=tracing,
            secrets_changed=self.signatures.forget,
            recovery_started=self.recoveries.rouse,
            node_id=lambda: self.lease.node_id,
            destination=self._destination_now,
            destination_changed=self.rulebook.changed,
            reload=self._reload,
        )
        self.running = False
        self.on_reloaded: Callable[[Config], None] = lambda _: None
        self._attempts = 0

    async def _reload(self) -> Reloaded:
        if self.intake.closed:
            raise Draining("this node is shutting down", retry_after=1)
        return await self.reloader.reload()

    def _apply(self, new: Prepared) -> None:
        """Have every part go by a new configuration. Nobody runs meanwhile but storage's threads,
        and these ask for single values only."""
        config = self.config = self.services.config = new.config
        settings = config.delivery
        log.set_level(config.log)
        self.destinations.reconfigure(settings)
        self.rulebook.reconfigure(config)
        self.holdings.reconfigure(settings)
        self.intake.reconfigure(config)
        self.signatures.reconfigure(new.signers)
        self.transport.reconfigure(new.loaded)
        self.senders.reconfigure(settings)
        self.recoveries.reconfigure(settings)
        self.retention.reconfigure(config.retention)
        self.on_reloaded(config)

    def _recorded(self, records: Sequence[RecordedAttempt]) -> None:
        self._attempts += len(records)
        self.announcer.tell(records)

    def _events_made(self, deliveries: Sequence[Delivery]) -> None:
        self.intake.accepted += len(deliveries)
        if self._tracing is not None:
            self._tracing.follow()(deliveries)
        self.scheduler.rouse()

    def status(self) -> str:
        """What systemctl shows beside the attempts per second."""
        state = self.not_ready() or "ready"
        held, due = len(self.holdings), len(self.destinations)
        return f"{state}: {held} held, {due} due, {self.senders.busy} sending"

    def not_ready(self) -> str | None:
        """Why /readyz is red, or None."""
        if self.intake.closed:
            return "draining"
        if not self.running:
            return "starting"
        if not self.storage.statistics().healthy:
            return "storage is unavailable"
        if not self.lease.holds():
            return "out of touch with the storage for too long"
        return None

    def _lost(self) -> None:
        self.transport.cut_short()
        self.holdings.renounce()

    def _is_eldest(self) -> bool:
        return self.lease.holds() and self.lease.is_eldest

    def _destination_now(self, name: str) -> DestinationNow:
        known = self.destinations.statistics().get(name)
        rules = self.rulebook.rules(name)
        disabled = rules.disabled if rules.shut else None
        if known is None:
            return DestinationNow(disabled=disabled)
        return DestinationNow(
            queued=known.queued,
            in_flight=known.in_flight,
            window=known.window,
            suspended_until=known.suspended_until,
            probing=known.suspended_until is None
            and name in self.destinations.ill()
            and not self.destinations.is_shut(name),
            disabled=disabled,
            rate=rules.rate,
            concurrency=rules.concurrency,
        )

    def statistics(self) -> NodeStatistics:
        """What /v1/stats shows of this node."""
        storage = self.storage.statistics()
        return NodeStatistics(
            node_id=self.lease.node_id,
            is_eldest=self._is_eldest(),
            held=len(self.holdings),
            waiting=self.holdings.waiting(),
            due=len(self.destinations),
            sending=self.senders.busy,
            storage_healthy=storage.healthy,
            storage_backlog=storage.backlog,
            commits=storage.commits,
            operations=storage.operations,
            attempts_not_announced=self.announcer.not_announced,
        )

    def reading(self) -> Reading:
        """What /metrics shows of this node."""
        return Reading(
            now=self.clock.now(),
            ready=self.not_ready() is None,
            accepted=self.intake.accepted,
            cancelled=self.intake.cancelled,
            attempts=self.tally,
            waiting=self.holdings.waiting(),
            due=len(self.destinations),
            sending=self.senders.busy,
            held_limit=self.config.delivery.active_limit,
            senders=self.config.delivery.concurrency,
            destinations=self.destinations.statistics(),
            disabled=self.rulebook.disabled(),
            transport=self.transport.statistics(),
            storage=self.storage.statistics(),
            backlog_limit=self.config.storage.max_backlog,
            lease_held=self.lease.holds(),
            is_eldest=self._is_eldest(),
            loop_lags=self.loop_lags,
            requests=self.requests,
            plugin_failures=self.plugins.failures,
            not_announced=self.announcer.not_announced,
            removed=self.retention.removed,
            purged_at=self.retention.purged_at,
        )
