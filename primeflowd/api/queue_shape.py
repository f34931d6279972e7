"""`/v1/deliveries/shape`: how many deliveries wait, by destination and by how long they are due.

After Postfix's qshape. The age counts from when a delivery was due, not from when it was made: a
retry that waits for its delay is no backlog, however old its batch. Takes a key with the scope
`admin`; an operator key that names no org is shown all orgs together.
"""

from collections.abc import Sequence
from operator import methodcaller
from typing import Final

import msgspec

from primeflowd.access_keys import ADMIN
from primeflowd.api import cursors, shapes
from primeflowd.api.answer import Answer
from primeflowd.api.auth import ORG_HEADERS, org_of
from primeflowd.api.call import Call, Route
from primeflowd.api.shapes import Count, Time
from primeflowd.durations import parse
from primeflowd.hookspecs import Shape
from primeflowd.instants import rfc3339
from primeflowd.model import OPERATOR_ORG

AGES: Final = ("10s", "1m", "5m", "15m", "1h", "6h", "1d")
BUCKETS: Final = ("later", *AGES, f"{AGES[-1]}+")
"""What is not due yet; what has been due for at most each age; for longer than the last."""


class CrowdShape(msgspec.Struct, frozen=True):
    """How many deliveries wait, in all and in each bucket."""

    waiting: Count
    counts: tuple[Count, ...]


class DestinationCrowdShape(CrowdShape, frozen=True, kw_only=True):
    """The same of one destination."""

    destination: str


class QueueShape(msgspec.Struct, frozen=True):
    """What waits; `org_id` is null for all orgs, `destinations` how many there are in all."""

    as_of: Time
    org_id: str | None
    buckets: tuple[str, ...]
    destinations: Count
    total: CrowdShape
    largest: list[DestinationCrowdShape]


async def get(call: Call) -> Answer:
    """Count what waits; `limit` destinations are named, those with most."""
    org_id = _org(call)
    limit = cursors.requested_page(call).limit
    now = call.services.clock.now()
    # Ascending instants: the oldest age first. An instant more, so that due now is due.
    edges = (*(now - parse(age) for age in reversed(AGES)), now + 1)
    found: Shape = await call.services.storage.read(methodcaller("shape", org_id, edges, limit))
    return shapes.answer(
        200,
        QueueShape(
            as_of=rfc3339(now),
            org_id=org_id,
            buckets=BUCKETS,
            destinations=found.destinations,
            total=CrowdShape(*_counts(found.total)),
            largest=[
                DestinationCrowdShape(*_counts(counts), destination=destination)
                for destination, counts in found.largest
            ],
        ),
    )


def _org(call: Call) -> str | None:
    named = any(header in call.headers for header in ORG_HEADERS)
    if call.key.org_id == OPERATOR_ORG and not named:
        return None
    return org_of(call.key, call.headers)


def _counts(ascending: Sequence[int]) -> tuple[int, tuple[int, ...]]:
    return sum(ascending), tuple(reversed(ascending))


ROUTES: Final = (Route("GET", "/v1/deliveries/shape", ADMIN, get, "none"),)
