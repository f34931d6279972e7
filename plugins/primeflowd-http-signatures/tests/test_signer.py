"""What is signed, by the README's verifier, by hand, and by the library's reading of the URL."""

import base64
import hashlib
import string
import time
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature as WrongSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from http_message_signatures import (
    HTTPMessageVerifier,
    InvalidSignature,
    MappingKeyResolver,
    algorithms,
)
from hypothesis import given
from hypothesis import strategies as st

from primeflowd import callback_url, plain_secret
from primeflowd.durations import Duration
from primeflowd.hookspecs import SigningRequest
from primeflowd_http_signatures import HttpSignatures, Settings
from primeflowd_http_signatures.settings import DERIVED, FIELDS
from primeflowd_http_signatures.signer import thumbprint

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
OTHER = "whsec_" + base64.b64encode(bytes(32)).decode()
BODY = '{"event":"batch.succeeded","metadata":"größe"}'.encode()


def signing_request(**changes: Any) -> SigningRequest:
    fields: dict[str, Any] = {
        "batch_id": "01920000-0000-7000-8000-0000000000ba",
        "delivery_id": "01920000-0000-7000-8000-0000000000de",
        "attempt_id": "01920000-0000-7000-8000-0000000000aa",
        "timestamp": int(time.time()),
        "body": BODY,
        "secrets": (SECRET, OTHER),
        "url": "https://receiver.example/hook?a=1",
    }
    return SigningRequest(**{**fields, **changes})


def signed(settings: Settings | None = None, **changes: Any) -> dict[str, str]:
    """All headers of a callback that the plugin may sign, and those that it adds."""
    request = signing_request(**changes)
    return {
        "Content-Type": "application/json",
        "Primeflow-Delivery-Id": request.delivery_id,
        "Primeflow-Request-Id": request.attempt_id,
        **dict(HttpSignatures(settings or Settings()).sign(request)),
    }


def test_readme_verifier_accepts_it(customer: SimpleNamespace) -> None:
    callback = customer.Callback("POST", "https://receiver.example/hook?a=1", signed())
    keys = customer.trusted([plain_secret.public_key(OTHER), plain_secret.public_key(SECRET)])
    assert customer.verify(callback, BODY, keys) == "01920000-0000-7000-8000-0000000000aa"


@pytest.mark.parametrize(
    "tampered",
    [
        {"method": "PUT"},
        {"url": "https://receiver.example/hook?a=2"},
        {"url": "http://receiver.example/hook?a=1"},
        {"url": "https://other.example/hook?a=1"},
        {"body": BODY + b" "},
        {"body": b""},
        {"Content-Type": "text/plain"},
        # An attacker's body with its own digest.
        {"body": b"{}", "Content-Digest": signed(body=b"{}")["Content-Digest"]},
        {"nonce": "another"},
        {"secret": OTHER},
        {"timestamp": int(time.time()) - 3600},
    ],
    ids=str,
)
def test_readme_verifier_refuses_what_was_changed(
    customer: SimpleNamespace, tampered: dict[str, Any]
) -> None:
    at = {"timestamp": tampered["timestamp"]} if "timestamp" in tampered else {}
    headers = signed(**at)
    headers.update({k: v for k, v in tampered.items() if k[0].isupper()})
    if "nonce" in tampered:
        headers["Signature-Input"] = headers["Signature-Input"].replace("0aa", "0ab")
    keys = customer.trusted([plain_secret.public_key(tampered.get("secret", SECRET))])
    callback = customer.Callback(
        tampered.get("method", "POST"),
        tampered.get("url", "https://receiver.example/hook?a=1"),
        headers,
    )
    with pytest.raises(InvalidSignature):
        customer.verify(callback, tampered.get("body", BODY), keys)


def test_signature_base_is_that_of_rfc_9421() -> None:
    """By hand, without the library on either side."""
    headers = signed(Settings(expires_after=Duration("5m")), timestamp=1_778_061_600)
    digest = base64.b64encode(hashlib.sha256(BODY).digest()).decode()
    raw = base64.b64decode(plain_secret.public_key(SECRET).removeprefix("whpk_"))
    parameters = (
        '("@method" "@target-uri" "content-digest" "content-type");created=1778061600;'
        f'keyid="{thumbprint(raw)}";alg="ed25519";expires=1778061900;'
        'nonce="01920000-0000-7000-8000-0000000000aa";tag="primeflowd"'
    )
    assert headers["Content-Digest"] == f"sha-256=:{digest}:"
    assert headers["Signature-Input"] == f"primeflowd={parameters}"
    base = (
        '"@method": POST\n'
        '"@target-uri": https://receiver.example/hook?a=1\n'
        f'"content-digest": sha-256=:{digest}:\n'
        '"content-type": application/json\n'
        f'"@signature-params": {parameters}'
    )
    label, _, value = headers["Signature"].partition("=")
    assert (label, value[0], value[-1]) == ("primeflowd", ":", ":")
    signature = base64.b64decode(value.strip(":"), validate=True)
    key = Ed25519PublicKey.from_public_bytes(raw)
    key.verify(signature, base.encode())
    with pytest.raises(WrongSignature):
        key.verify(signature, base.encode() + b"\n")


def test_thumbprint_is_that_of_rfc_8037() -> None:
    """The example of its appendix A.3."""
    x = base64.urlsafe_b64decode("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo=")
    assert thumbprint(x) == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"


def test_settings_decide() -> None:
    settings = Settings(
        components=("content-digest",),
        label="sig1",
        tag="",
        keyid="acme/{public_key}",
        include_nonce=False,
    )
    headers = signed(settings, timestamp=1)
    assert headers["Signature-Input"] == (
        'sig1=("content-digest");created=1;'
        f'keyid="acme/{plain_secret.public_key(SECRET)}";alg="ed25519"'
    )
    assert headers["Signature"].startswith("sig1=:")


PATH = st.text(string.ascii_letters + string.digits + "/-._~!$&'()*+,;=:@", max_size=20)
HOSTS = ("receiver.example", "RECEIVER.example:8443", "127.0.0.1:80", "[2001:DB8:0::1]:443")
ODD = ("/%C3%BC%20", "/ü?größe=1&x=%41", "?", "/a//b/../c?", "?q=?&r=/", "/" + "/" * 5)


@given(
    scheme=st.sampled_from(["http", "HTTPS"]),
    host=st.sampled_from([*HOSTS, "größe.example", "receiver.example."]),
    rest=PATH.map(lambda path: f"/{path}") | st.sampled_from(["", *ODD]),
    query=PATH | st.none(),
)
def test_every_component_is_as_the_library_reads_it_from_the_request(
    scheme: str, host: str, rest: str, query: str | None
) -> None:
    """The library takes the request apart that arrived, with code that is not ours."""
    url = f"{scheme}://{host}{rest}" + ("" if query is None or "?" in rest else f"?{query}")
    target = callback_url.parse(url)
    arrived = SimpleNamespace(
        method="POST",
        url=f"{target.scheme}://{target.host_header}{target.request_target}",
        headers=signed(Settings(components=DERIVED + FIELDS), url=url),
    )
    raw = base64.b64decode(plain_secret.public_key(SECRET).removeprefix("whpk_"))
    keys = MappingKeyResolver(
        public_keys={thumbprint(raw): Ed25519PublicKey.from_public_bytes(raw)}, private_keys={}
    )
    verifier = HTTPMessageVerifier(signature_algorithm=algorithms.ED25519, key_resolver=keys)
    [result] = verifier.verify(arrived, body=BODY)
    assert set(result.covered_components) >= {f'"{name}"' for name in DERIVED + FIELDS}


def test_url_that_the_library_would_refuse_is_signed_as_it_is_sent() -> None:
    headers = signed(Settings(components=("@target-uri", "content-digest")), url="http://a/?i[]={}")
    raw = base64.b64decode(plain_secret.public_key(SECRET).removeprefix("whpk_"))
    base = (
        '"@target-uri": http://a/?i[]={}\n'
        f'"content-digest": {headers["Content-Digest"]}\n'
        f'"@signature-params": {headers["Signature-Input"].removeprefix("primeflowd=")}'
    )
    signature = base64.b64decode(headers["Signature"].removeprefix("primeflowd=").strip(":"))
    Ed25519PublicKey.from_public_bytes(raw).verify(signature, base.encode())


def test_a_secret_that_is_none_is_the_hosts_to_report() -> None:
    with pytest.raises(ValueError, match="whsec_"):
        signed(secrets=("not one",))
