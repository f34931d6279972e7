"""Signing secrets over HTTP (contract 6.1, 6.2)."""

import base64
import re

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from primeflowd.plain_secret import ed25519_key
from tests.api.harness import Api, problem

SECRETS = "/v1/callback-secrets"
FIELDS = [
    "id",
    "org_id",
    "key_prefix",
    "is_current",
    "label",
    "disabled_at",
    "last_used_at",
    "created_at",
    "updated_at",
]


async def test_the_plain_secret_is_shown_once(api: Api) -> None:
    """6.1: at creation and nowhere else."""
    made = await api.made(SECRETS, {"label": "first"})
    plain = made.pop("plain_secret")
    assert re.fullmatch(r"whsec_[A-Za-z0-9+/]{43}=", plain)
    assert plain.startswith(made["key_prefix"])
    assert list(made) == FIELDS
    assert made["label"] == "first"
    shown = await api.get(f"{SECRETS}/{made['id']}")
    assert shown.json() == made
    listed = await api.get(SECRETS)
    assert listed.json() == {"items": [made], "next": None}
    renamed = await api.call("PATCH", f"{SECRETS}/{made['id']}", {"label": None})
    assert renamed.json()["label"] is None
    for response in (shown, listed, renamed):
        assert plain not in response.text


async def test_the_first_is_current_and_others_by_promotion(api: Api) -> None:
    """6.1: exactly one is current."""
    first = await api.made(SECRETS)
    second = await api.made(SECRETS)
    assert (first["is_current"], second["is_current"]) == (True, False)
    response = await api.call("PATCH", f"{SECRETS}/{second['id']}", {"is_current": True})
    assert (response.status_code, response.json()["is_current"]) == (200, True)
    current = [
        each["id"] for each in (await api.get(SECRETS)).json()["items"] if each["is_current"]
    ]
    assert current == [second["id"]]


async def test_disabling(api: Api) -> None:
    """6.1: 204; the current one while another is enabled: 422."""
    first = await api.made(SECRETS)
    second = await api.made(SECRETS)
    refused = await api.call("DELETE", f"{SECRETS}/{first['id']}")
    assert problem(refused)[:2] == (422, "validation_error")
    done = await api.call("DELETE", f"{SECRETS}/{second['id']}")
    assert (done.status_code, done.content) == (204, b"")
    shown = (await api.get(f"{SECRETS}/{second['id']}")).json()
    assert shown["disabled_at"] == "2026-05-28T20:26:40Z"


async def test_the_senders_are_told_of_every_change(api: Api) -> None:
    """6.3: or they would go on signing with what is disabled."""
    secret = await api.made(SECRETS)
    await api.call("PATCH", f"{SECRETS}/{secret['id']}", {"label": "x"})
    await api.call("DELETE", f"{SECRETS}/{secret['id']}")
    assert api.changed == ["acme"] * 3


async def test_a_patch_of_nothing_changes_nothing(api: Api) -> None:
    """6.1."""
    made = await api.made(SECRETS, {"label": "x"})
    made.pop("plain_secret")
    response = await api.call("PATCH", f"{SECRETS}/{made['id']}", {})
    assert response.json() == made


async def test_is_current_is_a_bool(api: Api) -> None:
    """2.5: null is not false."""
    made = await api.made(SECRETS)
    for value in (None, 1, "true"):
        response = await api.call("PATCH", f"{SECRETS}/{made['id']}", {"is_current": value})
        assert problem(response) == (400, "invalid_request", "invalid_is_current")


async def test_the_public_key_is_the_signer_s(api: Api) -> None:
    """6.2: `v1a` signatures verify with it."""
    made = await api.made(SECRETS)
    shown = (await api.get(f"{SECRETS}/{made['id']}/public-key")).json()
    assert shown["id"] == made["id"]
    assert shown["public_key"].startswith("whpk_")
    raw = base64.b64decode(shown["public_key"].removeprefix("whpk_"))
    signature = ed25519_key(made["plain_secret"]).sign(b"message")
    Ed25519PublicKey.from_public_bytes(raw).verify(signature, b"message")


async def test_a_delivery_is_pinned_to_the_current_secret(api: Api) -> None:
    """6.3: its id is in B's field."""
    secret = await api.made(SECRETS)
    delivery = await api.delivery_of((await api.ended_batch())["id"])
    assert delivery["signing_secret_id"] == secret["id"]
