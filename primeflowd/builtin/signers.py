"""The built-in signers (contract 6.2). Each adds its headers to the same frozen bytes.

- `standard-webhooks`: HMAC-SHA256 over id, timestamp and body, one signature per enabled secret;
  any library for Standard Webhooks verifies it.
- `hmac-sha256`: HMAC-SHA256 over the body alone, with the whole secret string as the key.
- `ed25519`: the asymmetric kind of Standard Webhooks; receivers hold only a public key.

The first and the last share the header `webhook-signature`; signing.py joins their values.
"""

import base64
import hashlib
import hmac
from collections.abc import Callable, Iterable
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
        # The secret's text is the key here, whatever it spells.
        digest = hmac.digest(request.secrets[0].encode(), request.body, hashlib.sha256)
        return ((self._header, self._prefix + digest.hex()),)


@hookimpl
def register_signers(config: Config) -> tuple[Signer, ...]:
    signing = config.signing
    return (
        StandardWebhooks(),
        HmacSha256(signing.hmac_header, signing.hmac_prefix),
        Ed25519(),
    )


def _headers(
    request: SigningRequest, version: str, signature: Callable[[str, bytes], bytes]
) -> tuple[tuple[str, str], ...]:
    timestamp = str(request.timestamp)
    signed = b"%b.%b.%b" % (request.batch_id.encode(), timestamp.encode(), request.body)
    signatures = " ".join(
        f"{version},{base64.b64encode(signature(secret, signed)).decode()}"
        for secret in request.secrets
    )
    return ((ID, request.batch_id), (TIMESTAMP, timestamp), (SIGNATURE, signatures))


def _hmac_sha256(secret: str, signed: bytes) -> bytes:
    return hmac.digest(key_bytes(secret), signed, hashlib.sha256)


def _ed25519(secret: str, signed: bytes) -> bytes:
    return ed25519_key(secret).sign(signed)
