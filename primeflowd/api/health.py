"""How this node is: `/healthz` and `/readyz` for machines, without a key, and `/v1/stats`.

`/v1/stats` shows the whole node, across orgs, so it takes a key with the scope `admin`.
"""

from typing import Final, Literal

import msgspec

from primeflowd.access_keys import ADMIN
from primeflowd.api import errors, shapes
from primeflowd.api.answer import Answer
from primeflowd.api.call import Call, Route
from primeflowd.api.incoming import Fields
from primeflowd.api.services import Services


class HealthShape(msgspec.Struct, frozen=True):
    """The answer of a node that is well."""

    status: Literal["ok", "ready"]


_ALIVE: Final = shapes.answer(200, HealthShape("ok"))
_READY: Final = shapes.answer(200, HealthShape("ready"))


def alive(_: Services, __: Fields) -> Answer:
    """The process runs its event loop; says nothing of storage."""
    return _ALIVE


def ready(services: Services, _: Fields) -> Answer:
    """Whether this node should get requests: 503 with the reason while it should not."""
    reason = services.not_ready()
    return _READY if reason is None else errors.unavailable("not_ready", f"not ready: {reason}")


async def statistics(call: Call) -> Answer:
    """What the node is doing, as the daemon counts it."""
    return shapes.answer(200, call.services.statistics())


OPEN_ROUTES: Final = (("/healthz", alive), ("/readyz", ready))

ROUTES: Final = (Route("GET", "/v1/stats", ADMIN, statistics, "none"),)
