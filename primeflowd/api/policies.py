"""`/v1/policies/retry`: retry policies, exactly as document A has them (contract section 3)."""

import re
from functools import partial
from typing import Final

import msgspec
from msgspec import Raw

from primeflowd.api import decode, idempotency, shapes
from primeflowd.api.answer import Answer
from primeflowd.api.call import Call, Route
from primeflowd.api.decode import ABSENT
from primeflowd.api.shapes import Count, Time
from primeflowd.durations import InvalidDuration, parse_delay
from primeflowd.errors import InvalidRequest, NotFound
from primeflowd.hookspecs import Tx
from primeflowd.instants import rfc3339
from primeflowd.model import RetryPolicy
from primeflowd.retry_policies import effective_policy, put_policy
from primeflowd.unit import Unit

MAX_DELAYS: Final = 50
MAX_RETRIES: Final = 100

_INTEGER: Final = re.compile(rb"0|[1-9][0-9]{0,2}")
_LONGEST_VALUE: Final = 200


class PolicyBody(msgspec.Struct, frozen=True):
    """A's request body; fields that A does not know are ignored.

    `delays` and `max_retries` are taken raw, to tell `3` from `3.0`, `"3"` and `true`.
    """

    plan_id: str | None = None
    delays: Raw = ABSENT
    max_retries: Raw = ABSENT


class PolicyShape(msgspec.Struct, frozen=True):
    """When a callback that failed is tried again."""

    org_id: str
    plan_id: str
    delays: tuple[str, ...]
    max_retries: Count
    created_at: Time
    updated_at: Time


_body: Final = msgspec.json.Decoder(PolicyBody)
_delays: Final = msgspec.json.Decoder(list[Raw])
_string: Final = msgspec.json.Decoder(str)


async def put(call: Call) -> Answer:
    """Create or replace a policy."""
    body = await decode.body(call, _body)
    plan_id = decode.plan_id(body.plan_id)
    delays = _read_delays(body.delays)
    operation = partial(
        put_policy,
        org_id=call.org_id,
        plan_id=plan_id,
        delays=delays,
        max_retries=_read_max_retries(body.max_retries, len(delays)),
    )
    return await idempotency.perform(call, operation, _render)


async def get(call: Call) -> Answer:
    """The policy of exactly this plan, or of the org where no plan is named."""
    plan_id = decode.plan_id(call.query("plan_id"))
    policy = await call.services.storage.read(partial(_find, call.org_id, plan_id))
    return shapes.answer(200, _shape(policy))


async def delete(call: Call) -> Answer:
    """Forget a policy; deliveries that were made under it keep their copy."""
    plan_id = decode.plan_id(call.query("plan_id"))
    operation = partial(_delete, call.org_id, plan_id)
    return await idempotency.perform(call, operation, _no_content, by_query=True)


async def list_all(call: Call) -> Answer:
    """All policies of the org: a bare array, as A has it (contract 2.9)."""
    policies = await call.services.storage.read(partial(_list, call.org_id))
    return shapes.answer(200, [_shape(policy) for policy in policies])


async def effective(call: Call) -> Answer:
    """The policy that a delivery made now would get (contract 3.5)."""
    plan_id = decode.plan_id(call.query("plan_id"))
    function = partial(
        effective_policy,
        org_id=call.org_id,
        plan_id=plan_id,
        default=call.services.config.delivery.default_policy,
    )
    policy = await call.services.storage.read(function)
    return shapes.answer(200, shapes.effective_policy(policy))


def _find(org_id: str, plan_id: str, tx: Tx) -> RetryPolicy:
    policy = tx.policy(org_id, plan_id)
    if policy is None:
        raise NotFound
    return policy


def _delete(org_id: str, plan_id: str, unit: Unit) -> None:
    if not unit.tx.delete_policy(org_id, plan_id):
        raise NotFound


def _list(org_id: str, tx: Tx) -> list[RetryPolicy]:
    return tx.policies(org_id)


def _shape(value: RetryPolicy) -> PolicyShape:
    return PolicyShape(
        org_id=value.org_id,
        plan_id=value.plan_id,
        delays=value.delays,
        max_retries=value.max_retries,
        created_at=rfc3339(value.created_at),
        updated_at=rfc3339(value.updated_at),
    )


def _render(policy: RetryPolicy) -> Answer:
    return shapes.answer(200, _shape(policy))


def _no_content(_: None) -> Answer:
    return Answer(204)


def _read_delays(raw: Raw) -> tuple[str, ...]:
    """Contract 3.2: the delays as sent, every one of them in the grammar."""
    if bytes(raw) in (b"", b"null"):
        raise InvalidRequest("delays_required", "delays is required", {"field": "delays"})
    try:
        values = _delays.decode(raw)
    except msgspec.ValidationError as error:
        raise decode.invalid("delays", 'expected an array, as ["15m", "1h"]') from error
    if len(values) > MAX_DELAYS:
        raise InvalidRequest(
            "too_many_delays", f"delays: at most {MAX_DELAYS}", {"field": "delays"}
        )
    return tuple(_read_delay(index, bytes(value)) for index, value in enumerate(values))


def _read_delay(index: int, raw: bytes) -> str:
    value = _string.decode(raw) if raw.startswith(b'"') else None
    try:
        if value is None:
            raise InvalidDuration("not a string")
        parse_delay(value)
    except InvalidDuration as error:
        shown = raw.decode() if value is None else value
        raise InvalidRequest(
            "invalid_delay",
            f'delays[{index}]: expected a duration of 1ms to 30d, as "15m", "1h30m" or "7d"',
            {"index": str(index), "value": shown[:_LONGEST_VALUE]},
        ) from error
    return value


def _read_max_retries(raw: Raw, delays: int) -> int:
    """Contract 3.3: an integer and nothing like one; absent, the number of delays."""
    text = bytes(raw)
    if text in (b"", b"null"):
        return delays
    if not _INTEGER.fullmatch(text) or int(text) > MAX_RETRIES:
        raise decode.invalid("max_retries", f"expected an integer from 0 to {MAX_RETRIES}")
    if int(text) and not delays:
        raise decode.invalid("max_retries", "there are no delays to wait before a retry")
    return int(text)


_PATH: Final = "/v1/policies/retry"

ROUTES: Final = (
    Route("POST", _PATH, "policies:write", put, "header"),
    Route("GET", _PATH, "policies:read", get, "header"),
    Route("DELETE", _PATH, "policies:write", delete, "header"),
    Route("GET", f"{_PATH}/list", "policies:read", list_all, "header"),
    Route("GET", f"{_PATH}/effective", "policies:read", effective, "header"),
)
