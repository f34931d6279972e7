"""`/v1/destinations`: what operators set for destinations, whoever's callbacks go there.

A destination is a scheme, a host and a port. Orgs share it, as they share its window: one that is
slow, or limits how often it may be called, is so to all of them. So its policy is nobody's in
particular, and takes an operator key with the scope `admin`. The values of headers are written
only: encrypted at rest, shown nowhere.
"""

import uuid
from collections.abc import Callable
from functools import partial
from typing import Annotated, Final, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from primeflowd import destination_policies as policies
from primeflowd.access_keys import ADMIN
from primeflowd.api import cursors, decode, idempotency, shapes
from primeflowd.api.answer import Answer
from primeflowd.api.call import Call, Route
from primeflowd.api.errors import Rejected
from primeflowd.api.shapes import Time
from primeflowd.callback_url import destination_of
from primeflowd.errors import InvalidRequest, NotFound
from primeflowd.hookspecs import Tx
from primeflowd.instants import Micros, rfc3339
from primeflowd.model import OPERATOR_ORG, DestinationPolicy
from primeflowd.unit import Unit

T = TypeVar("T")

MAX_REASON: Final = 500

Source: TypeAlias = Literal["file", "api", "none"]
"""Where settings come from."""


class DestinationBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to change; null is the default again, a header of null is taken away, `disabled_reason`
    of null enables the destination."""

    rate: Annotated[float, Meta(ge=0, le=100_000)] | UnsetType | None = UNSET
    burst: Annotated[int, Meta(ge=1, le=10_000)] | UnsetType | None = UNSET
    concurrency: Annotated[int, Meta(ge=0, le=10_000)] | UnsetType | None = UNSET
    timeout: str | UnsetType | None = UNSET
    while_disabled: Literal["wait", "fail"] | UnsetType | None = UNSET
    disable_when_gone: bool | UnsetType | None = UNSET
    disable_after: str | UnsetType | None = UNSET
    headers: dict[str, str | None] | UnsetType = UNSET
    disabled_reason: str | UnsetType | None = UNSET


class DestinationShape(msgspec.Struct, frozen=True, kw_only=True):
    """The policy of a destination; of `headers` the names."""

    destination: str
    source: Source
    rate: float
    burst: int
    concurrency: int
    timeout: str
    while_disabled: Literal["wait", "fail"]
    disable_when_gone: bool
    disable_after: str
    headers: list[str]
    disabled_reason: str | None
    disabled_at: Time | None
    failing_since: Time | None
    created_at: Time | None
    updated_at: Time | None


_body: Final = msgspec.json.Decoder(DestinationBody)
_SETTINGS: Final = [
    name for name in DestinationBody.__struct_fields__ if name not in ("headers", "disabled_reason")
]


async def list_page(call: Call) -> Answer:
    """A page of the destinations of which anything is set or known, those of the file last."""
    _check_operator(call)
    page = cursors.requested_page(call)
    stored = await call.services.storage.read(_list)
    known = {name: policies.empty(name, 0) for name in call.services.config.destinations}
    known |= {policy.destination: policy for policy in stored}
    every = sorted(known.values(), key=_position, reverse=True)
    found, following = cursors.slice_page(every, _position, page)
    return shapes.page([_of(call, policy) for policy in found], following)


async def get(call: Call) -> Answer:
    """The policy of one destination."""
    destination = _destination(call)
    policy = await call.services.storage.read(partial(_find, destination))
    if policy is None:
        if destination not in call.services.config.destinations:
            raise NotFound(f"{destination} has no policy")
        policy = policies.empty(destination, 0)
    return shapes.answer(200, _of(call, policy))


async def change(call: Call) -> Answer:
    """Change a policy, or give a destination one; also how it is disabled and enabled."""
    destination = _destination(call)
    body = await decode.body(call, _body)
    reason = body.disabled_reason
    if reason is not UNSET:
        reason = decode.text(reason, "disabled_reason", MAX_REASON)
        if reason == "":
            raise decode.invalid("disabled_reason", "say why; null enables the destination")
    set_now = {name: getattr(body, name) for name in _SETTINGS}
    operation = partial(
        policies.change,
        keyring=call.services.keyring,
        configured=call.services.config.destinations,
        destination=destination,
        wanted=policies.Change(
            settings={name: value for name, value in set_now.items() if value is not UNSET},
            headers={} if body.headers is UNSET else body.headers,
            disabled=reason,
        ),
    )
    return await _perform(
        call, destination, operation, lambda policy: shapes.answer(200, _of(call, policy))
    )


async def delete(call: Call) -> Answer:
    """Forget a policy: the destination is as any other, and enabled."""
    destination = _destination(call)
    operation = partial(
        policies.remove, configured=call.services.config.destinations, destination=destination
    )
    return await _perform(call, destination, operation, lambda _: Answer(204))


async def _perform(
    call: Call,
    destination: str,
    operation: Callable[[Unit], tuple[T, policies.Turn | None]],
    render: Callable[[T], Answer],
) -> Answer:
    """As idempotency.perform; then the node is told what has become of the destination."""
    turn: list[policies.Turn | None] = [None]

    def perform(unit: Unit) -> T:
        result, turn[0] = operation(unit)
        return result

    committed = False
    try:
        answer = await idempotency.perform(call, perform, render, by_query=True)
        committed = True
    finally:
        # Also when this client hung up: the change may be durable all the same.
        call.services.destination_changed(destination, turn[0] if committed else None)
    return answer


def _destination(call: Call) -> str:
    """The destination that the query names, for an operator.

    Raises:
        Rejected: 403, the key is an org's.
        InvalidRequest: `destination_required`, `invalid_destination`.
    """
    _check_operator(call)
    named = call.query("destination")
    if not named:
        raise InvalidRequest(
            "destination_required", "name the destination in the query", {"field": "destination"}
        )
    try:
        return destination_of(named)
    except ValueError as error:
        raise decode.invalid("destination", str(error)) from error


def _check_operator(call: Call) -> None:
    if call.key.org_id != OPERATOR_ORG:
        raise Rejected(403, "forbidden", "this needs an operator key: orgs share destinations")


def _find(destination: str, tx: Tx) -> DestinationPolicy | None:
    return tx.destination_policy(destination)


def _list(tx: Tx) -> list[DestinationPolicy]:
    return tx.destination_policies()


def _position(policy: DestinationPolicy) -> tuple[Micros, str]:
    # Cursors are made of an instant and an id.
    return policy.created_at, str(uuid.uuid5(uuid.NAMESPACE_URL, policy.destination))


def _of(call: Call, policy: DestinationPolicy) -> DestinationShape:
    configured = call.services.config.destinations.get(policy.destination)
    settings = policies.settings_of(policy, configured)
    headers = settings.headers or policies.headers_of(policy, call.services.keyring)
    source: Source = "none" if policy.settings is None else "api"
    return DestinationShape(
        destination=policy.destination,
        source=source if configured is None else "file",
        rate=settings.rate,
        burst=settings.burst,
        concurrency=settings.concurrency,
        timeout=settings.timeout.text,
        while_disabled=settings.while_disabled,
        disable_when_gone=settings.disable_when_gone,
        disable_after=settings.disable_after.text,
        headers=list(headers),
        disabled_reason=policies.disabled_reason(policy, configured),
        disabled_at=_time(policy.disabled_at),
        failing_since=_time(policy.failing_since),
        created_at=_time(policy.created_at),
        updated_at=_time(policy.updated_at),
    )


def _time(instant: Micros | None) -> str | None:
    # 0 is that of a policy that stands in the file only.
    return rfc3339(instant) if instant else None


_PATH: Final = "/v1/destinations"

ROUTES: Final = (
    Route("GET", _PATH, ADMIN, list_page, "none"),
    Route("GET", f"{_PATH}/policy", ADMIN, get, "none"),
    Route("PATCH", f"{_PATH}/policy", ADMIN, change, "none"),
    Route("DELETE", f"{_PATH}/policy", ADMIN, delete, "none"),
)
