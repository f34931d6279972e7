"""Contract 6.2: the built-in signers, checked with other people's code where there is some."""

import base64
import time

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from primeflowd import config, plain_secret
from primeflowd.builtin.signers import register_signers
from primeflowd.hookspecs import Signer, SigningRequest

PINNED, OTHER = (
    "whsec_" + base64.b64encode(bytes([first, *range(31)])).decode() for first in (1, 2)
)
BODY = '{"event":"batch.succeeded","output":"Grüße"}'.encode()

VECTOR_SECRET = "whsec_primeflowd_example_0001"
VECTOR_BODY = (
    b'{"event":"batch.partial_succeeded","batch_id":"01920000-0000-7000-8000-00000000abcd",'
    b'"status":"partial_succeeded","output":{"items":[],"succeeded":2,"failed":1,"cancelled":0,'
    b'"total":3},"duration_ms":1500,"created_at":"2026-05-06T10:00:00+00:00",'
    b'"completed_at":"2026-05-06T10:00:01.500000+00:00","metadata":null}'
)
VECTOR_HEX = "2ffcaf30617273c5de2e02c955063595df2516be200cd57dec93b5118475c3ba"


def signer(name: str, **signing: str) -> Signer:
    settings = config.from_mapping({"signing": signing})
    return {found.name: found for found in register_signers(settings)}[name]


def request(
    secrets: tuple[str, ...] = (PINNED,), body: bytes = BODY, timestamp: int | None = None
) -> SigningRequest:
    return SigningRequest(
        batch_id="01920000-0000-7000-8000-00000000abcd",
        delivery_id="01920000-0000-7000-8000-00000000d001",
        attempt_id="01920000-0000-7000-8000-00000000a001",
        timestamp=int(time.time()) if timestamp is None else timestamp,
        body=body,
        secrets=secrets,
        url="https://example.com/hook",
    )


def test_6_2_the_vector_of_the_contract() -> None:
    """6.2: the key is the whole secret string, base64 or not; the signature covers the body."""
    assert len(VECTOR_BODY) == 311
    headers = list(signer("hmac-sha256").sign(request((VECTOR_SECRET, PINNED), VECTOR_BODY)))
    assert headers == [("Primeflow-Signature", VECTOR_HEX)]


def test_6_2_header_and_prefix_of_hmac_sha256_are_settings() -> None:
    custom = signer("hmac-sha256", hmac_header="X-Hub-Signature-256", hmac_prefix="sha256=")
    headers = list(custom.sign(request((VECTOR_SECRET,), VECTOR_BODY)))
    assert headers == [("X-Hub-Signature-256", "sha256=" + VECTOR_HEX)]


def test_6_2_standard_webhooks_is_verified_by_the_public_package() -> None:
    headers = dict(signer("standard-webhooks").sign(request()))
    assert set(headers) == {"webhook-id", "webhook-timestamp", "webhook-signature"}
    assert headers["webhook-id"] == request().batch_id
    Webhook(PINNED).verify(BODY, headers)
    for wrong_body, secret in ((BODY + b" ", PINNED), (BODY, OTHER)):
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(wrong_body, headers, json_parse=False)


def test_6_2_during_rotation_each_secret_verifies_and_the_pinned_one_comes_first() -> None:
    headers = dict(signer("standard-webhooks").sign(request((PINNED, OTHER), timestamp=1)))
    alone = dict(signer("standard-webhooks").sign(request((PINNED,), timestamp=1)))
    first, second = headers["webhook-signature"].split(" ")
    assert first == alone["webhook-signature"]
    assert second.startswith("v1,")
    now = dict(signer("standard-webhooks").sign(request((PINNED, OTHER))))
    for secret in (PINNED, OTHER):
        Webhook(secret).verify(BODY, now)


def verify_v1a(public_key: str, headers: dict[str, str], body: bytes) -> None:
    """As a receiver does it that knows nothing but the public key and the specification."""
    raw = base64.b64decode(public_key.removeprefix("whpk_"))
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    signatures = [
        base64.b64decode(text.removeprefix("v1a,"))
        for text in headers["webhook-signature"].split(" ")
        if text.startswith("v1a,")
    ]
    for signature in signatures:
        try:
            Ed25519PublicKey.from_public_bytes(raw).verify(signature, signed)
        except InvalidSignature:
            continue
        return
    raise InvalidSignature


def test_6_2_ed25519_is_verified_with_the_public_key_of_each_secret() -> None:
    headers = dict(signer("ed25519").sign(request((PINNED, OTHER))))
    for secret in (PINNED, OTHER):
        verify_v1a(plain_secret.public_key(secret), headers, BODY)
        with pytest.raises(InvalidSignature):
            verify_v1a(plain_secret.public_key(secret), headers, BODY + b" ")
    with pytest.raises(InvalidSignature):
        verify_v1a(plain_secret.public_key(plain_secret.generate()), headers, BODY)


@pytest.mark.parametrize("name", ["standard-webhooks", "ed25519"])
def test_a_secret_that_is_not_base64_signs_nothing(name: str) -> None:
    """Skipping what is not base64 would sign with a key that no receiver has."""
    with pytest.raises(ValueError, match="base64"):
        list(signer(name).sign(request((VECTOR_SECRET,))))


@given(st.binary(max_size=300), st.integers(min_value=0, max_value=2**40))
def test_6_2_every_signer_takes_any_bytes_and_is_pure(body: bytes, timestamp: int) -> None:
    asked = request((PINNED, OTHER), body, timestamp)
    for each in register_signers(config.Config()):
        headers = list(each.sign(asked))
        assert headers == list(each.sign(asked))
        assert all(text.isascii() and text.isprintable() for pair in headers for text in pair)
