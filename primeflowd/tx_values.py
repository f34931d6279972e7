"""What the statements of a transaction take and return, besides the nouns of model.py."""

from typing import Literal, TypeAlias

import msgspec

from primeflowd.instants import Micros

Fate: TypeAlias = Literal["recorded", "ended", "lost"]
"""What became of an attempt's record; see Tx.record_attempt."""


class Page(msgspec.Struct, frozen=True):
    """A stretch of a newest-first list: at most `limit` rows strictly older than `before`,
    the (`created_at`, `id`) of the last row already seen; None starts at the newest."""

    limit: int
    before: tuple[Micros, str] | None = None


class BatchFilter(msgspec.Struct, frozen=True):
    """Conditions that all must hold; None asks nothing. Times are exclusive bounds."""

    status: str | None = None
    plan_id: str | None = None
    created_after: Micros | None = None
    created_before: Micros | None = None


class DeliveryFilter(msgspec.Struct, frozen=True):
    """As BatchFilter. `ids` limits the answer to these deliveries."""

    status: str | None = None
    batch_id: str | None = None
    failure_reason: str | None = None
    destination: str | None = None
    created_after: Micros | None = None
    created_before: Micros | None = None
    ids: tuple[str, ...] | None = None


class Shape(msgspec.Struct, frozen=True):
    """How many deliveries wait, by destination and by when they are due.

    Attributes:
        largest: destinations with their counts, the one with most first: before the first edge,
            from each edge to the next, and from the last one on.
        total: the same of all destinations.
        destinations: how many there are in all.
    """

    largest: tuple[tuple[str, tuple[int, ...]], ...]
    total: tuple[int, ...]
    destinations: int


class Renewal(msgspec.Struct, frozen=True):
    """What a node learns when it renews its lease: the storage's clock, and whether it is the
    eldest of the living nodes, which does the chores that one node shall do for all."""

    now: Micros
    is_eldest: bool


BatchPosition: TypeAlias = tuple[str, Micros, str]
"""A place in the order of (`org_id`, `created_at`, `id`)."""


class Removed(msgspec.Struct, frozen=True):
    """How many rows are gone; `complete` is False if there were more than were asked for."""

    batches: int = 0
    items: int = 0
    deliveries: int = 0
    attempts: int = 0
    complete: bool = True
