"""What the HTTP API needs of the rest of the daemon, as plain values and callables.

`daemon.py` fills this in; nothing in `api/` reaches further down than these fields.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from primeflowd.clock import Clock
from primeflowd.config import Config
from primeflowd.explanation import DestinationNow
from primeflowd.hookspecs import Storage
from primeflowd.keyring import Keyring
from primeflowd.tallies import RequestTally
from primeflowd.unit import Unit

T = TypeVar("T")


class Performer(Protocol):
    """What the API needs of intake: see intake.Intake.perform."""

    async def perform(self, operation: Callable[[Unit], T]) -> T: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The daemon as the API sees it. All callables are called in the Trio thread.

    Attributes:
        delivering: whether a sender is on this delivery right now.
        delivering_now: the ids of all deliveries of which that is true.
        not_ready: why this node should get no requests, None when it should.
        secrets_changed: told of an org whose signing secrets may have changed.
        recovery_started: told that a recovery was asked for, once it is durable.
        statistics: what /v1/stats shows; values that JSON can hold.
        scrape: what /metrics shows and its content type, for the request's `Accept`.
        requests: where answers are counted.
        node_id: under what name this node claims at present.
        destination: what this node does for a destination at this moment.
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
    statistics: Callable[[], Mapping[str, object]]
    scrape: Callable[[str], tuple[bytes, str]]
    requests: RequestTally
    node_id: Callable[[], str]
    destination: Callable[[str], DestinationNow]
