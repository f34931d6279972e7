"""`/v1/callback-secrets`: an org's signing secrets (contract 6.1).

The plain secret is in one answer, that of its creation; with an idempotency key that answer is
stored encrypted.
"""

from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from primeflowd.api import cursors, decode, idempotency, shapes
from primeflowd.api.answer import Answer
from primeflowd.api.call import Call, Route
from primeflowd.api.shapes import Id, Time
from primeflowd.errors import NotFound
from primeflowd.hookspecs import Tx
from primeflowd.instants import Micros, rfc3339
from primeflowd.model import SigningSecret
from primeflowd.signing_secrets import create_secret, disable_secret, public_key, update_secret
from primeflowd.unit import Unit

T = TypeVar("T")

MAX_LABEL: Final = 128


class NewSecretBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A new secret."""

    label: str | None = None


class ChangeBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to change; a `label` of null takes the label away."""

    label: str | UnsetType | None = UNSET
    is_current: bool | UnsetType = UNSET


class SecretShape(msgspec.Struct, frozen=True):
    """A signing secret, without the secret."""

    id: Id
    org_id: str
    key_prefix: str
    is_current: bool
    label: str | None
    disabled_at: Time | None
    last_used_at: Time | None
    created_at: Time
    updated_at: Time


class NewSecretShape(SecretShape, frozen=True):
    """A signing secret in the one answer that shows it."""

    plain_secret: str


class PublicKeyShape(msgspec.Struct, frozen=True):
    """What verifies the signatures that the ed25519 signer makes with a secret."""

    id: Id
    public_key: str


_new: Final = msgspec.json.Decoder(NewSecretBody)
_change: Final = msgspec.json.Decoder(ChangeBody)


async def create(call: Call) -> Answer:
    """Make a secret and show it, this once."""
    body = await decode.body(call, _new, may_be_absent=True)
    operation = partial(
        create_secret,
        keyring=call.services.keyring,
        org_id=call.org_id,
        label=decode.text(body.label, "label", MAX_LABEL),
    )
    return await _perform(call, operation, _created, holds_secret=True)


async def list_page(call: Call) -> Answer:
    """A page of the org's secrets, disabled ones too."""
    page = cursors.requested_page(call)
    every = await call.services.storage.read(partial(_list, call.org_id))
    secrets, following = cursors.slice_page(every, _position, page)
    return shapes.page([_shape(secret) for secret in secrets], following)


async def get(call: Call) -> Answer:
    """One secret, without the secret."""
    return shapes.answer(200, _shape(await _find(call)))


async def change(call: Call) -> Answer:
    """Relabel a secret, or make it the current one."""
    secret_id = call.identifier("secret_id")
    body = await decode.body(call, _change)
    label = body.label
    if label is not UNSET:
        label = decode.text(label, "label", MAX_LABEL)
    operation = partial(
        update_secret,
        org_id=call.org_id,
        secret_id=secret_id,
        label=label,
        is_current=body.is_current,
    )
    return await _perform(call, operation, _changed)


async def disable(call: Call) -> Answer:
    """Stop signing with a secret; the row stays, for the deliveries that name it."""
    operation = partial(disable_secret, org_id=call.org_id, secret_id=call.identifier("secret_id"))
    return await _perform(call, operation, _no_content)


async def get_public_key(call: Call) -> Answer:
    """The Ed25519 public key that goes with a secret, for receivers that verify `v1a`."""
    secret = await _find(call)
    key = public_key(call.services.keyring, secret)
    return shapes.answer(200, PublicKeyShape(secret.id, key))


async def _perform(
    call: Call,
    operation: Callable[[Unit], T],
    render: Callable[[T], Answer],
    *,
    holds_secret: bool = False,
) -> Answer:
    """As idempotency.perform; then the senders are told to read the org's secrets anew."""
    try:
        return await idempotency.perform(call, operation, render, holds_secret=holds_secret)
    finally:
        # Also when this client hung up: the change may be durable all the same.
        call.services.secrets_changed(call.org_id)


async def _find(call: Call) -> SigningSecret:
    return await call.services.storage.read(
        partial(_get, call.org_id, call.identifier("secret_id"))
    )


def _get(org_id: str, secret_id: str, tx: Tx) -> SigningSecret:
    secret = tx.secret(org_id, secret_id)
    if secret is None:
        raise NotFound
    return secret


def _list(org_id: str, tx: Tx) -> list[SigningSecret]:
    return tx.secrets(org_id)


def _position(secret: SigningSecret) -> tuple[Micros, str]:
    return secret.created_at, secret.id


def _shape(value: SigningSecret) -> SecretShape:
    return SecretShape(
        id=value.id,
        org_id=value.org_id,
        key_prefix=value.key_prefix,
        is_current=value.is_current,
        label=value.label,
        disabled_at=shapes.time(value.disabled_at),
        last_used_at=shapes.time(value.last_used_at),
        created_at=rfc3339(value.created_at),
        updated_at=rfc3339(value.updated_at),
    )


def _new_shape(value: SigningSecret, plain: str) -> NewSecretShape:
    return NewSecretShape(**msgspec.structs.asdict(_shape(value)), plain_secret=plain)


def _created(made: tuple[SigningSecret, str]) -> Answer:
    return shapes.answer(201, _new_shape(*made))


def _changed(secret: SigningSecret) -> Answer:
    return shapes.answer(200, _shape(secret))


def _no_content(_: None) -> Answer:
    return Answer(204)


_PATH: Final = "/v1/callback-secrets"

ROUTES: Final = (
    Route("POST", _PATH, "secrets:write", create),
    Route("GET", _PATH, "secrets:read", list_page),
    Route("GET", f"{_PATH}/<secret_id>", "secrets:read", get),
    Route("PATCH", f"{_PATH}/<secret_id>", "secrets:write", change),
    Route("DELETE", f"{_PATH}/<secret_id>", "secrets:write", disable),
    Route("GET", f"{_PATH}/<secret_id>/public-key", "secrets:read", get_public_key),
)
