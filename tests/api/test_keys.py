"""API keys over HTTP (contract 2.1, 2.2)."""

import re

import pytest

from tests.api.harness import Api, problem
from tests.node import ACME, GLOBEX

KEYS = "/v1/keys"


async def test_a_key_is_shown_once_and_works_at_once(api: Api) -> None:
    """2.1."""
    made = await api.made(KEYS, {"scopes": ["batches:read"], "label": "reader"})
    plain = made.pop("key")
    assert re.fullmatch(r"pfk_[a-z0-9]{40}", plain)
    assert list(made) == [
        "id",
        "org_id",
        "key_prefix",
        "scopes",
        "label",
        "revoked_at",
        "created_at",
    ]
    assert (made["org_id"], made["scopes"], made["label"]) == (ACME, ["batches:read"], "reader")
    listed = await api.get(KEYS)
    assert made in listed.json()["items"]
    assert plain not in listed.text
    assert (await api.get("/v1/batches", key=plain)).status_code == 200
    assert (await api.post("/v1/batches", {}, key=plain)).status_code == 403


async def test_without_scopes_it_gets_those_of_its_maker(api: Api) -> None:
    """2.2."""
    _, maker = await api.make_key(ACME, ["keys:*", "batches:read"])
    response = await api.post(KEYS, key=maker)
    assert response.json()["scopes"] == ["keys:*", "batches:read"]


@pytest.mark.parametrize("scope", ["admin", "batches:write", "batches:*", "policies:read"])
async def test_a_key_cannot_grant_what_it_lacks(api: Api, scope: str) -> None:
    """2.2: 403."""
    _, maker = await api.make_key(ACME, ["keys:*", "batches:read"])
    response = await api.post(KEYS, {"scopes": ["batches:read", scope]}, key=maker)
    assert problem(response) == (403, "forbidden", "forbidden")
    assert len((await api.get(KEYS)).json()["items"]) == 2


@pytest.mark.parametrize("scopes", [[], ["everything"], ["batches"], ["*"], [""]])
async def test_scopes_that_are_none(api: Api, scopes: list[str]) -> None:
    """2.2: 400."""
    response = await api.post(KEYS, {"scopes": scopes})
    assert problem(response) == (400, "invalid_request", "invalid_scope")


async def test_an_operator_key_makes_keys_for_orgs_not_for_operators(api: Api) -> None:
    """2.2: operator keys come from the command line only."""
    _, operator = await api.make_key("*")
    made = await api.post(KEYS, key=operator, headers={"X-Org-Id": GLOBEX})
    assert made.json()["org_id"] == GLOBEX
    refused = await api.post(KEYS, key=operator, headers={"X-Org-Id": "*"})
    assert problem(refused)[0] == 400


async def test_revocation_takes_effect_at_once_on_this_node(api: Api) -> None:
    """2.1: 204, and again; the key stays listed as revoked."""
    made = await api.made(KEYS)
    assert (await api.get("/v1/batches", key=made["key"])).status_code == 200
    for _ in range(2):
        assert (await api.call("DELETE", f"{KEYS}/{made['id']}")).status_code == 204
        assert (await api.get("/v1/batches", key=made["key"])).status_code == 401
        api.clock.instant += 1_000_000
    shown = {each["id"]: each for each in (await api.get(KEYS)).json()["items"]}
    assert shown[made["id"]]["revoked_at"] == "2026-05-28T20:26:40Z"


async def test_pages(api: Api) -> None:
    """2.9: newest first."""
    ids = [(await api.made(KEYS))["id"] for _ in range(4)]
    first = (await api.get(f"{KEYS}?limit=2")).json()
    rest = (await api.get(f"{KEYS}?limit=5&cursor={first['next']}")).json()
    assert [key["id"] for key in first["items"]] == [ids[3], ids[2]]
    assert [key["id"] for key in rest["items"]][:2] == [ids[1], ids[0]]
    assert rest["next"] is None
