"""Makes the headers `Content-Digest`, `Signature-Input` and `Signature` of a callback.

The signature base and its parameters are http-message-signatures' work. It is given what will go
over the wire rather than a URL to take apart: its own parser is for URLs of RFC 3986 to the
letter, and refuses `?ids[]=1`, which is sent as it stands.

Pure. One Ed25519 signature, and one derivation of its key, per attempt.
"""

import base64
import datetime
import hashlib
from collections.abc import Iterable
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from http_message_signatures import ContentDigest, HTTPMessageSigner
from http_message_signatures.algorithms import ED25519
from http_sf.compat import Item

from primeflowd import callback_url, plain_secret
from primeflowd.hookspecs import SigningRequest
from primeflowd_http_signatures.settings import PUBLIC_KEY, THUMBPRINT, Settings


class _Callback(msgspec.Struct, frozen=True):
    """A request as the library sees one: its headers, of which it needs none, and the values of
    everything that can be signed."""

    values: dict[str, str]
    headers: dict[str, str] = {}


class _Values:
    """Tells the library what a component's value is."""

    def __init__(self, callback: _Callback) -> None:
        self._values = callback.values

    def resolve(self, component: Item) -> str:
        return self._values[str(component.value)]


_library: Final = HTTPMessageSigner(signature_algorithm=ED25519, component_resolver_class=_Values)


class HttpSignatures:
    """RFC 9421 with Ed25519.

    Signs with the key of the pinned secret only: `keyid` says which it is, and a receiver that
    knows the next one's public key before it is promoted never meets a key that it does not know.
    """

    name: Final = "http-signatures"

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def sign(self, request: SigningRequest) -> Iterable[tuple[str, str]]:
        settings = self._settings
        key = plain_secret.ed25519_key(request.secrets[0])
        digest = ContentDigest.create(request.body)
        after = settings.expires_after
        prepared = _library.prepare(
            _Callback(_values(request, digest)),
            key_id=_keyid(settings.keyid, key),
            created=_instant(request.timestamp),
            expires=_instant(request.timestamp + int(after.seconds)) if after else None,
            nonce=request.attempt_id if settings.include_nonce else None,
            label=settings.label,
            tag=settings.tag or None,
            covered_component_ids=settings.components,
        )
        signature = base64.b64encode(key.sign(prepared.signature_base)).decode()
        return (
            ("Content-Digest", digest),
            ("Signature-Input", f"{prepared.label}={prepared.signature_params}"),
            # A byte sequence of RFC 9651.
            ("Signature", f"{prepared.label}=:{signature}:"),
        )


def thumbprint(public_key: bytes) -> str:
    """The JWK thumbprint (RFC 7638, RFC 8037) of a raw Ed25519 public key."""
    jwk = f'{{"crv":"Ed25519","kty":"OKP","x":"{_base64url(public_key)}"}}'
    return _base64url(hashlib.sha256(jwk.encode()).digest())


def _keyid(template: str, key: Ed25519PrivateKey) -> str:
    raw = key.public_key().public_bytes_raw()
    # As primeflowd's API spells it.
    shown = plain_secret.PUBLIC_KEY_PREFIX + base64.b64encode(raw).decode()
    return template.replace(THUMBPRINT, thumbprint(raw)).replace(PUBLIC_KEY, shown)


def _values(request: SigningRequest, digest: str) -> dict[str, str]:
    """The value of every component that may be signed, as the request carries it."""
    target = callback_url.parse(request.url)
    path, _, query = target.request_target.partition("?")
    return {
        "@method": "POST",
        "@target-uri": f"{target.scheme}://{target.host_header}{target.request_target}",
        "@authority": target.host_header,
        "@scheme": target.scheme,
        "@request-target": target.request_target,
        "@path": path,
        # RFC 9421 2.2.7: the question mark is part of it, and stands alone where there is none.
        "@query": "?" + query,
        "content-digest": digest,
        "content-type": "application/json",
        "primeflow-delivery-id": request.delivery_id,
        "primeflow-request-id": request.attempt_id,
    }


def _instant(timestamp: int) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(timestamp, datetime.UTC)


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
