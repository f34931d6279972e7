"""An org's signing secrets: made, promoted, disabled (contract 6.1), as operations over a Unit.

What holds after each: an org with an enabled secret has exactly one current secret, and it is
enabled; an org without has none, and its callbacks go unsigned. Like those of lifecycle.py, these
look first and write last: when one raises `Refused`, nothing was written. Only the last run of a
transaction function counts, so a secret drawn in a run that was undone was never anybody's.
"""

import msgspec
from msgspec import UNSET, UnsetType

from primeflowd import plain_secret
from primeflowd.errors import NotFound, StateRefused
from primeflowd.events import secret_rotated
from primeflowd.keyring import Keyring, bound_to_secret
from primeflowd.model import SigningSecret, new_id
from primeflowd.unit import Unit

MAX_ENABLED = 20
"""Enabled secrets an org may have: each adds a signature to every callback, and receivers limit
the size of a header. An org that rotates without disabling learns it here, not from a 431."""


def create_secret(
    unit: Unit, keyring: Keyring, org_id: str, label: str | None
) -> tuple[SigningSecret, str]:
    """A new secret and its plain text, which is not kept. Current where no other is.

    Raises:
        StateRefused: `too_many_secrets`.
    """
    enabled = _enabled(unit, org_id)
    if len(enabled) >= MAX_ENABLED:
        raise StateRefused(
            "too_many_secrets",
            f"{len(enabled)} secrets are enabled already; disable those that are out of use first",
        )
    secret_id, plain = new_id(), plain_secret.generate()
    secret = SigningSecret(
        id=secret_id,
        org_id=org_id,
        key_prefix=plain_secret.shown_part(plain),
        sealed=keyring.seal(plain.encode(), bound_to_secret(org_id, secret_id)),
        is_current=not enabled,
        label=label,
        disabled_at=None,
        last_used_at=None,
        created_at=unit.now,
        updated_at=unit.now,
    )
    unit.tx.put_secret(secret)
    return secret, plain


def update_secret(
    unit: Unit,
    org_id: str,
    secret_id: str,
    label: str | UnsetType | None = UNSET,
    is_current: bool | UnsetType = UNSET,
) -> SigningSecret:
    """Relabel a secret, promote it, or both; what is UNSET stays.

    Raises:
        NotFound: the org has no such secret.
        StateRefused: `secret_is_current`: the current one steps down only for another;
            `invalid_state`: a disabled one cannot be promoted.
    """
    secret = _secret(unit, org_id, secret_id)
    if is_current is False and secret.is_current:
        raise StateRefused(
            "secret_is_current", "this is the current secret; promote another one instead"
        )
    if is_current is True and secret.disabled_at is not None:
        raise StateRefused("invalid_state", "a disabled secret cannot be made current")
    changed = secret
    if label is not UNSET:
        changed = msgspec.structs.replace(changed, label=label)
    if is_current is True:
        changed = msgspec.structs.replace(changed, is_current=True)
        former = unit.tx.current_secret(org_id)
        if former is not None and former.id != secret_id:
            # First: storage allows one current secret per org at any moment.
            unit.tx.put_secret(
                msgspec.structs.replace(former, is_current=False, updated_at=unit.now)
            )
        if former is None or former.id != secret_id:
            unit.event = secret_rotated(secret, former, unit.now)
    if changed == secret:
        return secret
    changed = msgspec.structs.replace(changed, updated_at=unit.now)
    unit.tx.put_secret(changed)
    return changed


def disable_secret(unit: Unit, org_id: str, secret_id: str) -> None:
    """Sign nothing more with it, for good. Disabling it again changes nothing.

    Raises:
        NotFound: the org has no such secret.
        StateRefused: `secret_is_current`, while another one could take its place.
    """
    secret = _secret(unit, org_id, secret_id)
    if secret.disabled_at is not None:
        return
    if secret.is_current and len(_enabled(unit, org_id)) > 1:
        raise StateRefused(
            "secret_is_current", "this is the current secret; promote another one first"
        )
    unit.tx.put_secret(
        msgspec.structs.replace(secret, is_current=False, disabled_at=unit.now, updated_at=unit.now)
    )


def plain_text(keyring: Keyring, secret: SigningSecret) -> str:
    """The plain secret.

    Raises:
        MasterKeyError: it does not open.
    """
    return keyring.open(secret.sealed, bound_to_secret(secret.org_id, secret.id)).decode()


def public_key(keyring: Keyring, secret: SigningSecret) -> str:
    """`whpk_` and base64 of the key that verifies what the ed25519 signer made with it.

    Raises:
        MasterKeyError: the secret does not open.
    """
    return plain_secret.public_key(plain_text(keyring, secret))


def _secret(unit: Unit, org_id: str, secret_id: str) -> SigningSecret:
    secret = unit.tx.secret(org_id, secret_id)
    if secret is None:
        raise NotFound
    return secret


def _enabled(unit: Unit, org_id: str) -> list[SigningSecret]:
    return [secret for secret in unit.tx.secrets(org_id) if secret.disabled_at is None]
