"""Whether a callback is genuine: what a receiver does with each of the built-in signatures. Pure.

Written apart from the signers, from what receivers are told, so that one proves the other.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Literal, TypeAlias

from cryptography.exceptions import InvalidSignature

from primeflowd.durations import shown
from primeflowd.instants import MINUTE, SECOND, Micros
from primeflowd.plain_secret import ed25519_key, key_bytes

Finding: TypeAlias = Literal["genuine", "wrong", "stale", "unchecked"]
"""`wrong`: none of the secrets made it. `stale`: one did, too long ago. `unchecked`: no secret."""

TOLERANCE: Final[Micros] = 5 * MINUTE
"""How far the timestamp of a genuine callback may be from our clock, as Standard Webhooks says."""


def findings(
    headers: Mapping[str, str],
    body: bytes,
    secrets: Sequence[str],
    now: Micros,
    *,
    hmac_header: str,
    hmac_prefix: str,
) -> dict[str, Finding]:
    """What is to be said of each signature, by signer; empty for what carries none.

    `headers` by name in lower case.
    """
    found: dict[str, Finding] = {}
    timestamp = headers.get("webhook-timestamp", "")
    signed = b"%b.%b.%b" % (
        headers.get("webhook-id", "").encode("latin-1", "replace"),
        timestamp.encode("latin-1", "replace"),
        body,
    )
    offered = headers.get("webhook-signature", "").split()
    for name, version, is_by in (
        ("standard-webhooks", "v1", _is_by_hmac),
        ("ed25519", "v1a", _is_by_ed25519),
    ):
        marks = [each.partition(",")[2] for each in offered if each.startswith(version + ",")]
        if marks:
            found[name] = _judge(marks, signed, secrets, is_by)
            if found[name] == "genuine" and age(timestamp, now) is None:
                found[name] = "stale"
    given = headers.get(hmac_header.lower())
    if given is not None:
        found["hmac-sha256"] = _judge([given.removeprefix(hmac_prefix)], body, secrets, _is_hex)
    return found


def age(timestamp: str, now: Micros) -> str | None:
    """How far a timestamp is from `now`, for people; None if that is too far, or it is none."""
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) < 12):
        return None
    off = abs(now - int(timestamp) * SECOND)
    return shown(off) if off <= TOLERANCE else None


def _judge(
    marks: Iterable[str],
    signed: bytes,
    secrets: Sequence[str],
    is_by: Callable[[str, bytes, str], bool],
) -> Finding:
    if not secrets:
        return "unchecked"
    genuine = any(is_by(mark, signed, secret) for mark in marks for secret in secrets)
    return "genuine" if genuine else "wrong"


def _is_by_hmac(mark: str, signed: bytes, secret: str) -> bool:
    try:
        expected = hmac.digest(key_bytes(secret), signed, hashlib.sha256)
        return hmac.compare_digest(base64.b64decode(mark, validate=True), expected)
    except ValueError:
        return False  # the mark or the secret is not base64: this secret did not make this mark


def _is_by_ed25519(mark: str, signed: bytes, secret: str) -> bool:
    try:
        key = ed25519_key(secret).public_key()
        key.verify(base64.b64decode(mark, validate=True), signed)
    except (ValueError, binascii.Error, InvalidSignature):
        return False
    return True


def _is_hex(mark: str, signed: bytes, secret: str) -> bool:
    expected = hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()
    return hmac.compare_digest(mark.encode(), expected.encode())
