"""`/v1/keys`: an org's API keys, made, listed and revoked by a key of that org (contract 2.1, 2.2).

A key cannot make another that may do more than itself. Operator keys are made on the command line
only.
"""

from functools import partial
from typing import Final

import msgspec

from primeflowd.access_keys import check_scopes, grants, new_key
from primeflowd.api import cursors, decode, idempotency, shapes
from primeflowd.api.answer import Answer
from primeflowd.api.call import Call, Route
from primeflowd.api.errors import Rejected
from primeflowd.api.shapes import Id, Time
from primeflowd.errors import NotFound
from primeflowd.hookspecs import Tx
from primeflowd.instants import Micros, rfc3339
from primeflowd.model import ApiKey
from primeflowd.unit import Unit


class NewKeyBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A new key; without `scopes` it gets those of the key that makes it."""

    scopes: list[str] | None = None
    label: str | None = None


class KeyShape(msgspec.Struct, frozen=True):
    """An API key, without the key."""

    id: Id
    org_id: str
    key_prefix: str
    scopes: tuple[str, ...]
    label: str | None
    revoked_at: Time | None
    created_at: Time


class NewKeyShape(KeyShape, frozen=True):
    """An API key in the one answer that shows it."""

    key: str


_new: Final = msgspec.json.Decoder(NewKeyBody)


async def create(call: Call) -> Answer:
    """Make a key and show it, this once."""
    body = await decode.body(call, _new, may_be_absent=True)
    scopes = call.key.scopes if body.scopes is None else check_scopes(body.scopes)
    missing = grants(scopes) - grants(call.key.scopes)
    if missing:
        scope = min(missing)
        raise Rejected(
            403, "forbidden", f"a key cannot grant what it lacks: {scope}", {"scope": scope}
        )
    key, plain = new_key(call.org_id, scopes, body.label, call.services.clock.now())
    return await idempotency.perform(
        call, partial(_put, key), partial(_created, plain), holds_secret=True
    )


async def list_page(call: Call) -> Answer:
    """A page of the org's keys, revoked ones too."""
    page = cursors.requested_page(call)
    every = await call.services.storage.read(partial(_list, call.org_id))
    keys, following = cursors.slice_page(every, _position, page)
    return shapes.page([_shape(key) for key in keys], following)


async def revoke(call: Call) -> Answer:
    """Revoke a key; again is no error. Other nodes may trust it for one more second."""
    key_id = call.identifier("key_id")
    answer = await idempotency.perform(call, partial(_revoke, call.org_id, key_id), _revoked)
    call.authenticator.forget(key_id)
    return answer


def _put(key: ApiKey, unit: Unit) -> ApiKey:
    unit.tx.put_key(key)
    return key


def _revoke(org_id: str, key_id: str, unit: Unit) -> None:
    key = next((key for key in unit.tx.keys(org_id) if key.id == key_id), None)
    if key is None:
        raise NotFound
    if key.revoked_at is None:
        unit.tx.put_key(msgspec.structs.replace(key, revoked_at=unit.now))


def _list(org_id: str, tx: Tx) -> list[ApiKey]:
    return tx.keys(org_id)


def _position(key: ApiKey) -> tuple[Micros, str]:
    return key.created_at, key.id


def _shape(value: ApiKey) -> KeyShape:
    return KeyShape(
        id=value.id,
        org_id=value.org_id,
        key_prefix=value.key_prefix,
        scopes=value.scopes,
        label=value.label,
        revoked_at=shapes.time(value.revoked_at),
        created_at=rfc3339(value.created_at),
    )


def _new_shape(value: ApiKey, plain: str) -> NewKeyShape:
    return NewKeyShape(**msgspec.structs.asdict(_shape(value)), key=plain)


def _created(plain: str, key: ApiKey) -> Answer:
    return shapes.answer(201, _new_shape(key, plain))


def _revoked(_: None) -> Answer:
    return Answer(204)


_PATH: Final = "/v1/keys"

ROUTES: Final = (
    Route("POST", _PATH, "keys:write", create),
    Route("GET", _PATH, "keys:read", list_page),
    Route("DELETE", f"{_PATH}/<key_id>", "keys:write", revoke),
)
