"""The way in: admission control, a durable transaction, and scheduling on its commit.

Every change that a client asks for goes through `Intake`, by `perform` or `submit`. It guarantees
that nothing is answered before it is durable, and that what a commit created is scheduled by the
commit itself: a client that hangs up cancels the task that waits, never the consequences.

`perform` blocks on the group commit. Fails with Overloaded or Draining (nothing was tried), with
StorageUnavailable (nothing is stored) and with whatever the operation raises.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeAlias, TypeVar

import outcome
import structlog

from primeflowd.clock import Clock
from primeflowd.config import Config
from primeflowd.errors import Draining, Overloaded, StorageUnavailable
from primeflowd.events import Event
from primeflowd.hookspecs import Storage, Tx
from primeflowd.model import Delivery
from primeflowd.unit import Shared, Unit

T = TypeVar("T")

log = structlog.get_logger()


Follow: TypeAlias = Callable[[], Callable[[Sequence[Delivery]], None]]
"""Called where an operation is asked for; what it gives is told of the deliveries made, once they
are durable."""


class Schedule(Protocol):
    """What intake needs of holdings. Calls in the Trio thread, but for node_id, node_for."""

    @property
    def node_id(self) -> str:
        """Which node claims are made for. Any thread."""
        ...

    def in_touch(self) -> bool:
        """Whether this node may act: it is not cut off from storage."""
        ...

    def node_for(self, destination: str) -> str | None:
        """This node's id if it has room for another delivery to `destination`. Any thread."""
        ...

    def admit(self, made: Iterable[tuple[Delivery, bytes | None]]) -> None: ...
    def drop(self, delivery_id: str) -> None: ...
    def hasten(self, delivery: Delivery) -> None: ...


class Pool(Protocol):
    """What intake needs of the senders. Calls in the Trio thread."""

    def gather(self) -> None: ...
    def begin(self) -> None: ...


class Intake:
    """Admits operations, commits them, schedules what they made.

    Attributes:
        pool: who sends what is scheduled; None: they find out by themselves.
        accepted: how many deliveries were made since the start.
        cancelled: how many were ended by a person's order.
        on_event: told of the events of operations, each with its commit.
    """

    def __init__(
        self,
        storage: Storage,
        schedule: Schedule,
        clock: Clock,
        config: Config,
        follow: Follow | None = None,
    ) -> None:
        self._storage = storage
        self._schedule = schedule
        self._clock = clock
        self.reconfigure(config)
        self._follow = follow
        self._closed = False
        self.accepted = 0
        self.cancelled = 0
        self.on_event: Callable[[Event], None] = _nothing
        self.pool: Pool | None = None

    def reconfigure(self, config: Config) -> None:
        """Go by `config` from the next operation on."""
        self._default_policy = config.delivery.default_policy
        self._max_backlog = config.storage.max_backlog

    def close(self) -> None:
        """Refuse everything from now on, with Draining."""
        self._closed = True

    @property
    def closed(self) -> bool:
        return self._closed

    async def perform(self, operation: Callable[[Unit], T]) -> T:
        """Run `operation` in a transaction; return its result once it is durable.

        `operation` may run more than once, each time on a fresh Unit; see Storage.write.

        Raises:
            Draining, Overloaded: not tried.
            StorageUnavailable: nothing of it is stored.
        """
        return await self._storage.write(*self._prepared(operation))

    def submit(
        self, operation: Callable[[Unit], T], on_end: Callable[[outcome.Maybe[T]], None]
    ) -> None:
        """As `perform`, for whoever has no task that waits; see Storage.submit.

        What a commit made is begun to be sent right after it, together, and before `on_end`: no
        task is woken for it, which would come a round of Trio's loop later.

        Raises:
            Draining, Overloaded, StorageUnavailable: as there. Nobody will be told.
        """
        function, follow = self._prepared(operation)

        def committed(result: T) -> None:
            if self.pool is not None:
                self.pool.gather()
            follow(result)

        def ended(result: outcome.Maybe[T]) -> None:
            if self.pool is not None:
                self.pool.begin()
            on_end(result)

        self._storage.submit(function, committed, ended)

    def _prepared(
        self, operation: Callable[[Unit], T]
    ) -> tuple[Callable[[Tx], T], Callable[[T], None]]:
        """The transaction of an operation, and what follows its commit.

        Raises:
            Draining, Overloaded, StorageUnavailable: it may not be tried now.
        """
        if self._closed:
            raise Draining("this node is shutting down", retry_after=1)
        if not self._schedule.in_touch():
            # It would wait for as long as storage hangs; the client had better ask another node.
            raise StorageUnavailable("this node is cut off from its storage")
        if self._storage.statistics().backlog >= self._max_backlog:
            raise Overloaded("too many writes are waiting to be stored", retry_after=1)
        default_policy = self._default_policy
        tell = None if self._follow is None else self._follow()
        # Of the latest run, which is the one that is committed.
        unit: Unit

        def function(tx: Tx) -> T:
            nonlocal unit
            shared = tx.memo.get(Shared)
            if shared is None or shared.default_policy is not default_policy:
                shared = tx.memo[Shared] = Shared(self._clock.now(), default_policy)
            unit = Unit(
                tx=tx,
                now=shared.now,
                default_policy=default_policy,
                node_for=self._schedule.node_for,
                patterns=shared.patterns,
                claims=shared.claims,
            )
            result = operation(unit)
            if unit.dropped or unit.hastened:
                self._tell_holders(unit)
            return result

        def follow(_: T) -> None:
            if tell is not None:
                tell([delivery for delivery, _ in unit.made])
            self._committed(unit)

        return function, follow

    def _tell_holders(self, unit: Unit) -> None:
        """Orders about deliveries that other nodes hold reach them by storage."""
        for delivery in (*unit.dropped, *unit.hastened):
            if delivery.claimed_by not in (None, self._schedule.node_id):
                unit.tx.put_order(delivery.claimed_by, delivery.id)

    def _committed(self, unit: Unit) -> None:
        self.accepted += len(unit.made)
        if unit.made:
            self._schedule.admit(unit.made)
        for delivery in unit.dropped:
            self.cancelled += 1
            self._schedule.drop(delivery.id)
        for delivery in unit.hastened:
            self._schedule.hasten(delivery)
        if unit.event is not None:
            log.info(unit.event.log_name, **unit.event.data)
            self.on_event(unit.event)


def _nothing(_: Event) -> None:
    """For when nobody wants to be told."""
