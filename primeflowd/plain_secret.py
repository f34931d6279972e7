"""A signing secret in the clear: its spelling, and the key material that follows from it.

`whsec_` and the base64 of 32 random bytes (contract 6.1), the form that Standard Webhooks gives
its secrets. Pure; nothing here stores or logs one. How a signer uses a secret is its own business
but for the Ed25519 key pair: signers sign with one half and the API shows the other.
"""

import base64
import binascii
import secrets
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

PREFIX: Final = "whsec_"
PUBLIC_KEY_PREFIX: Final = "whpk_"
_LENGTH: Final = 32
# Part of the wire contract: another text here changes every public key that was ever handed out.
_ED25519_INFO: Final = b"primeflowd ed25519 signing key v1"


def generate() -> str:
    """A new plain secret, from the system's random source."""
    return PREFIX + base64.b64encode(secrets.token_bytes(_LENGTH)).decode()


def shown_part(plain: str) -> str:
    """The beginning that may be shown for good, so that people can tell secrets apart.

    Four characters of base64 give away 24 of 256 bits.
    """
    return plain[: len(PREFIX) + 4]


def key_bytes(plain: str) -> bytes:
    """The bytes that the secret spells.

    Raises:
        ValueError: not `whsec_` and base64. The message does not hold the secret.
    """
    try:
        # validate=True: without it Python skips characters it does not know, and we would sign
        # with another key than the receiver verifies with.
        key = base64.b64decode(plain.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not key or not plain.startswith(PREFIX):
        raise ValueError(f"a signing secret is not {PREFIX} and base64")
    return key


def ed25519_key(plain: str) -> Ed25519PrivateKey:
    """The private key of the pair that belongs to this secret, always the same.

    Its seed is derived, so that the HMAC key itself never serves a second algorithm.

    Raises:
        ValueError: as key_bytes().
    """
    derive = HKDF(algorithm=hashes.SHA256(), length=_LENGTH, salt=None, info=_ED25519_INFO)
    return Ed25519PrivateKey.from_private_bytes(derive.derive(key_bytes(plain)))


def public_key(plain: str) -> str:
    """`whpk_` and base64 of the Ed25519 public key, as Standard Webhooks spells it.

    Raises:
        ValueError: as key_bytes().
    """
    raw = ed25519_key(plain).public_key().public_bytes_raw()
    return PUBLIC_KEY_PREFIX + base64.b64encode(raw).decode()
