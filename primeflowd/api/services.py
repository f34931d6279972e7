"""What the HTTP API needs of the rest of the daemon, as plain values and callables.

`daemon.py` fills this in; nothing in `api/` reaches further down than these fields.
"""

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Protocol, TypeVar

import msgspec
import outcome

from primeflowd.clock import Clock
from primeflowd.config import Config
from primeflowd.destination_policies import Turn
from primeflowd.explanation import DestinationNow
from primeflowd.hookspecs import Storage
from primeflowd.keyring import Keyring
from primeflowd.reload import Reloaded
from primeflowd.tallies import RequestTally
from primeflowd.tracing import Tracing
from primeflowd.unit import Unit

T = TypeVar("T")


class NodeStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What a node is doing, as it counts it since its start.

    Attributes:
        is_eldest: it does what one node does for all.
        held, waiting, due, sending: deliveries in its memory, and of those: not due yet, due and
            queued, being attempted.
        storage_backlog: operations that wait for their commit.
        attempts_not_announced: attempts that a slow plugin was not told of.
    """

    node_id: str
    is_eldest: bool
    held: int
    waiting: int
    due: int
    sending: int
    storage_healthy: bool
    storage_backlog: int
    commits: int
    operations: int
    attempts_not_announced: int


class Performer(Protocol):
    """What the API needs of intake: see intake.Intake."""

    async def perform(self, operation: Callable[[Unit], T]) -> T: ...
    def submit(
        self, operation: Callable[[Unit], T], on_end: Callable[[outcome.Maybe[T]], None]
    ) -> None: ...


@dataclass(slots=True, kw_only=True)
class Services:
    """The daemon as the API sees it. All callables are called in the Trio thread.

    Attributes:
        config: the present one; another takes its place when it is reloaded.
        delivering: whether a sender is on this delivery right now.
        delivering_now: the ids of all deliveries of which that is true.
        not_ready: why this node should get no requests, None when it should.
        secrets_changed: told of an org whose signing secrets may have changed.
        recovery_started: told that a recovery was asked for, once it is durable.
        statistics: what /v1/stats shows.
        scrape: what /metrics shows and its content type, for the request's `Accept`.
        requests: where answers are counted.
        tracing: where spans of requests come from; None: there are none.
        node_id: under what name this node claims at present.
        destination: what this node does for a destination at this moment.
        destination_changed: told of a destination whose policy may have changed, and whether that
            disabled or enabled it.
        reload: reload the configuration; raises OperatorError if it is refused.
    """

    storage: Storage
    intake: Performer
    config: Config
    clock: Clock
    keyring: Keyring
    delivering: Callable[[str], bool]
    delivering_now: Callable[[], Collection[str]]
    not_ready: Callable[[], str | None]
    secrets_changed: Callable[[str], None]
    recovery_started: Callable[[], None]
    statistics: Callable[[], NodeStatistics]
    scrape: Callable[[str], tuple[bytes, str]]
    requests: RequestTally
    tracing: Tracing | None = None
    node_id: Callable[[], str]
    destination: Callable[[str], DestinationNow]
    destination_changed: Callable[[str, Turn | None], None]
    reload: Callable[[], Awaitable[Reloaded]]
