"""The table `[plugins.http-signatures]`: its keys, their defaults, and what is allowed."""

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from primeflowd.durations import Duration, InvalidDuration
from primeflowd.errors import ConfigError

DERIVED: Final = (
    "@method",
    "@target-uri",
    "@authority",
    "@scheme",
    "@request-target",
    "@path",
    "@query",
)
"""Components that RFC 9421 derives from the request line and the host."""

FIELDS: Final = (
    "content-digest",
    "content-type",
    "primeflow-delivery-id",
    "primeflow-request-id",
)
"""Header fields whose values are settled before the signers are asked."""

THUMBPRINT: Final = "{thumbprint}"
PUBLIC_KEY: Final = "{public_key}"

_BODY: Final = "content-digest"
_LABEL: Final = re.compile(r"[a-z*][a-z0-9_.*-]{0,63}")
_TEXT: Final = re.compile(r"[\x20-\x7e]{0,256}")
_LONGEST: Final = Duration("24h")


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Checked settings.

    Attributes:
        components: what is signed, in this order.
        label: key of the signature in `Signature` and `Signature-Input`.
        tag: signed parameter by which a receiver picks this signature; empty leaves it out.
        keyid: THUMBPRINT and PUBLIC_KEY in it are replaced.
        include_nonce: whether the attempt's id is signed as the parameter `nonce`.
        expires_after: None leaves the parameter `expires` out.
    """

    components: tuple[str, ...] = ("@method", "@target-uri", "content-digest", "content-type")
    label: str = "primeflowd"
    tag: str = "primeflowd"
    keyid: str = THUMBPRINT
    include_nonce: bool = True
    expires_after: Duration | None = None


def read(table: Mapping[str, Any]) -> Settings:
    """Check a table.

    Raises:
        ConfigError: a key is unknown or a value not allowed; the message starts with the key.
    """
    try:
        settings = msgspec.convert(dict(table), Settings, dec_hook=_decode)
    except msgspec.ValidationError as error:
        what, at, where = str(error).rpartition(" - at `$.")
        raise ConfigError(f"{where.rstrip('`')}: {what}" if at else str(error)) from error
    _check(settings)
    return settings


def _decode(kind: type, value: object) -> object:
    if kind is Duration and isinstance(value, str):
        try:
            return Duration(value)
        except InvalidDuration as error:
            raise ValueError(str(error)) from error
    raise ValueError('Expected a duration in quotes, as "90s" or "5m"')


def _check(settings: Settings) -> None:
    for position, name in enumerate(settings.components):
        if name not in DERIVED + FIELDS:
            known = ", ".join(DERIVED + FIELDS)
            raise ConfigError(f'components: "{name}" cannot be signed; known are {known}')
        if name in settings.components[:position]:
            raise ConfigError(f'components: "{name}" stands there twice')
    if _BODY not in settings.components:
        raise ConfigError(f'components: "{_BODY}" is missing, without which no body is signed')
    if not _LABEL.fullmatch(settings.label):
        raise ConfigError(
            "label: expected a lower-case letter, then lower-case letters, digits and _-.*, "
            f"at most 64, not {settings.label!r}"
        )
    for key in ("tag", "keyid"):
        if not _TEXT.fullmatch(getattr(settings, key)):
            raise ConfigError(f"{key}: expected at most 256 characters of printable ASCII")
    rest = settings.keyid
    for placeholder in (THUMBPRINT, PUBLIC_KEY):
        rest = rest.replace(placeholder, "")
    if rest == settings.keyid or set("{}") & set(rest):
        # Each secret has its own key: one name for all would tell a receiver nothing.
        raise ConfigError(
            f"keyid: expected {THUMBPRINT} or {PUBLIC_KEY} in it, and nothing else in braces, "
            f"not {settings.keyid!r}"
        )
    after = settings.expires_after
    if after is not None and not Duration("1s").micros <= after.micros <= _LONGEST.micros:
        raise ConfigError(f"expires_after: expected 1s to {_LONGEST.text}, not {after.text}")
