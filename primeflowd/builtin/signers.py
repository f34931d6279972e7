"""The built-in signers (contract 6.2). Each adds its headers to the same frozen bytes.

- `standard-webhooks`: HMAC-SHA256 over id, timestamp and body, one signature per enabled secret;
  any library for Standard Webhooks verifies it.
- `hmac-sha256`: HMAC-SHA256 over the body alone, with the whole secret string as the key.
- `ed25519`: the asymmetric kind of Standard Webhooks; receivers hold only a public key.

The first and the last share the header `webhook-signature`; signed_headers.py joins their values.
"""

from abc import ABC, abstractmethod
from binascii import b2a_base64
from collections.abc import Iterable
from functools import lru_cache
from typing import ClassVar, Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from primeflowd.config import Config
from primeflowd.hookspecs import Signer, SigningRequest, hookimpl
from primeflowd.plain_secret import ed25519_key, key_bytes

ID: Final = "webhook-id"
TIMESTAMP: Final = "webhook-timestamp"
SIGNATURE: Final = "webhook-signature"


class _Standard(ABC):
    """Either kind of Standard Webhooks. The message id is the batch's, so that a receiver can drop
    what it has seen, redeliveries included."""

    name: ClassVar[str]
    version: ClassVar[str]

    def sign(self, request: SigningRequest) -> Iterable[tuple[str, str]]:
        timestamp, signatures = str(request.timestamp), ""
        start = f"{request.batch_id}.{timestamp}.".encode()
        for secret in request.secrets:
            signature = b2a_base64(self._signature(secret, start, request.body), newline=False)
            signatures += f" {self.version},{signature.decode()}"
        return ((ID, request.batch_id), (TIMESTAMP, timestamp), (SIGNATURE, signatures[1:]))

    @abstractmethod
    def _signature(self, secret: str, start: bytes, body: bytes) -> bytes:
        """Of `start` and `body`, as one."""


class StandardWebhooks(_Standard):
    """Symmetric Standard Webhooks, `v1`."""

    name = "standard-webhooks"
    version = "v1"

    def _signature(self, secret: str, start: bytes, body: bytes) -> bytes:
        keyed = _keyed(secret).copy()
        keyed.update(start)
        keyed.update(body)
        return keyed.finalize()


class Ed25519(_Standard):
    """Asymmetric Standard Webhooks, `v1a`."""

    name = "ed25519"
    version = "v1a"

    def _signature(self, secret: str, start: bytes, body: bytes) -> bytes:
        return ed25519_key(secret).sign(start + body)


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
        return ((self._header, self._prefix + keyed.finalize().hex()),)


@hookimpl
def register_signers(config: Config) -> tuple[Signer, ...]:
    signing = config.signing
    return (
        StandardWebhooks(),
        HmacSha256(signing.hmac_header, signing.hmac_prefix),
        Ed25519(),
    )


# Taking in the key is half the work of a short HMAC, and the same secrets sign again and again. Not
# the standard library's HMAC: with its Python code around OpenSSL's it takes half as long again.
@lru_cache(maxsize=1024)
def _keyed(secret: str) -> HMAC:
    return HMAC(key_bytes(secret), SHA256())


@lru_cache(maxsize=1024)
def _keyed_by_text(secret: str) -> HMAC:
    # The secret's text is the key here, whatever it spells.
    return HMAC(secret.encode(), SHA256())
