"""One operation's transaction, and what the daemon must do once it is durable."""

from collections.abc import Callable

import msgspec

from primeflowd.config import DefaultPolicy
from primeflowd.events import Event
from primeflowd.hookspecs import Tx
from primeflowd.instants import Micros
from primeflowd.model import Delivery


class Shared(msgspec.Struct):
    """What operations have in common that run in one transaction.

    It ends where one of them changes a policy or a secret, which therefore makes no deliveries.

    Attributes:
        patterns: what deliveries of an org and plan are like but for their batch and where they go.
        claims: which node claims deliveries to a destination, of those that have one that does.
            There may be room at any time for those that have none.
    """

    now: Micros
    default_policy: DefaultPolicy
    patterns: dict[tuple[str, str], Delivery] = msgspec.field(default_factory=dict)
    claims: dict[str, str] = msgspec.field(default_factory=dict)


class Unit(msgspec.Struct):
    """One operation's transaction, the instant it counts as happening at, and its orders.

    Attributes:
        node_for: which node shall claim a new delivery to a destination; None leaves it to
            whoever has room. Called in the storage's thread.
        patterns, claims: see Shared.
        made: new deliveries with their payloads, to be scheduled once committed.
        dropped: deliveries that no sender shall start any more.
        hastened: deliveries that wait no longer.
        event: what the operator shall be told of.
    """

    tx: Tx
    now: Micros
    default_policy: DefaultPolicy
    node_for: Callable[[str], str | None]
    patterns: dict[tuple[str, str], Delivery] = msgspec.field(default_factory=dict)
    claims: dict[str, str] = msgspec.field(default_factory=dict)
    made: list[tuple[Delivery, bytes]] = msgspec.field(default_factory=list)
    dropped: list[Delivery] = msgspec.field(default_factory=list)
    hastened: list[Delivery] = msgspec.field(default_factory=list)
    event: Event | None = None
