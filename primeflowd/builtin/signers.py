"""The built-in signers (contract 6.2). Each adds its headers to the same frozen bytes.

- `standard-webhooks`: HMAC-SHA256 over id, timestamp and body, one signature per enabled secret;
  any library for Standard Webhooks verifies it.
- `hmac-sha256`: HMAC-SHA256 over the body alone, with the whole secret string as the key.
- `ed25519`: the asymmetric kind of Standard Webhooks; receivers hold only a public key.

The first and the last share the header `webhook-signature`; signing.py joins their values.
"""

import hmac
from binascii import b2a_base64
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Final

from primeflowd.config import Config
from primeflowd.hookspecs import Signer, SigningRequest, hookimpl
from primeflowd.plain_secret import ed25519_key, key_bytes

ID: Final = "webhook-id"
TIMESTAMP: Final = "webhook-timestamp"
SIGNATURE: Final = "webhook-signature"


class StandardWebhooks:
    """Symmetric Standard Webhooks, `v1`. The message id is the batch's, so that a receiver can
    drop what it has seen, redeliveries included."""

    name = "standard-webhooks"

    def sign(self, request: SigningRequest) -> Iterable[tuple[str, str]]:
        return _headers(request, "v1", _hmac_sha256)


class Ed25519:
    """Asymmetric Standard Webhooks, `v1a`."""

    name = "ed25519"

    def sign(self, request: SigningRequest) -> Iterable[tuple[str, str]]:
        return _headers(request, "v1a", _ed25519)


class HmacSha256:
    """Hex HMAC of the body, as many a handwritten receiver checks it.

    With the pinned secret only: such a receiver compares one signature.
    """

    name = "hmac-sha256"

    def __init__(self, header: str, prefix: str) -> None:
        self._header = header
        self._prefix = prefix

    def sign(self, request: SigningRequest) -> Iterable[tuple[str, str]]:
        keyed = _keyed_by_text(request.secrets[0]).copy()
        keyed.update(request.body)
        return ((self._header, self._prefix + keyed.hexdigest()),)


@hookimpl
def register_signers(config: Config) -> tuple[Signer, ...]:
    signing = config.signing
    return (
        StandardWebhooks(),
        HmacSha256(signing.hmac_header, signing.hmac_prefix),
        Ed25519(),
    )


def _headers(
    request: SigningRequest, version: str, signature: Callable[[str, bytes, bytes], bytes]
) -> tuple[tuple[str, str], ...]:
    timestamp = str(request.timestamp)
    start = f"{request.batch_id}.{timestamp}.".encode()
    signatures = [
        f"{version},{b2a_base64(signature(secret, start, request.body), newline=False).decode()}"
        for secret in request.secrets
    ]
    return ((ID, request.batch_id), (TIMESTAMP, timestamp), (SIGNATURE, " ".join(signatures)))


def _hmac_sha256(secret: str, start: bytes, body: bytes) -> bytes:
    keyed = _keyed(secret).copy()
    keyed.update(start)
    keyed.update(body)
    return keyed.digest()


def _ed25519(secret: str, start: bytes, body: bytes) -> bytes:
    return ed25519_key(secret).sign(start + body)


# Taking in the key is half the work of a short HMAC, and the same secrets sign again and again.
@lru_cache(maxsize=1024)
def _keyed(secret: str) -> hmac.HMAC:
    return hmac.new(key_bytes(secret), digestmod="sha256")


@lru_cache(maxsize=1024)
def _keyed_by_text(secret: str) -> hmac.HMAC:
    # The secret's text is the key here, whatever it spells.
    return hmac.new(secret.encode(), digestmod="sha256")
