"""`/v1/destinations`: policies of destinations, set, shown, and taken away."""

from typing import Any

import httpx
import msgspec
import pytest

from primeflowd.config import from_mapping
from primeflowd.destination_policies import Turn
from primeflowd.model import OPERATOR_ORG
from tests.api.harness import Api, problem

LIST = "/v1/destinations"
PATH = "/v1/destinations/policy"
ONE = f"{PATH}?destination=https://Example.com"
NAME = "https://example.com:443"


@pytest.fixture
async def operator(api: Api) -> Api:
    """The API with an operator key."""
    _, api.key = await api.make_key(OPERATOR_ORG)
    return api


async def change(api: Api, body: Any, path: str = ONE, **headers: str) -> httpx.Response:
    return await api.call("PATCH", path, body, headers=headers or None)


async def test_a_policy_is_set_changed_and_forgotten(operator: Api) -> None:
    """What is not named stays as it is, null is the default again."""
    assert problem(await operator.get(ONE))[0] == 404
    made = (await change(operator, {"rate": 2.5, "burst": 4, "timeout": "5s"})).json()
    assert made["destination"] == NAME
    assert (made["source"], made["rate"], made["burst"], made["timeout"]) == ("api", 2.5, 4, "5s")
    assert (made["concurrency"], made["disabled_reason"], made["headers"]) == (0, None, [])
    changed = (await change(operator, {"concurrency": 3, "rate": None})).json()
    assert (changed["rate"], changed["burst"], changed["concurrency"]) == (0, 4, 3)
    assert (await operator.get(ONE)).json() == changed
    assert (await operator.get(LIST)).json() == {"items": [changed], "next": None}
    assert (await operator.call("DELETE", ONE)).status_code == 204
    assert problem(await operator.get(ONE))[0] == 404
    assert problem(await operator.call("DELETE", ONE))[0] == 404


async def test_values_of_headers_are_never_shown_and_stored_encrypted(operator: Api) -> None:
    first = await change(operator, {"headers": {"X-Token": "s3cret-one", "X-Other": "s3cret-two"}})
    assert first.json()["headers"] == ["X-Token", "X-Other"]
    second = await change(operator, {"headers": {"x-token": None, "x-other": "s3cret-three"}})
    assert second.json()["headers"] == ["x-other"]
    assert (await change(operator, {"rate": 1})).json()["headers"] == ["x-other"]
    [policy] = await operator.node.storage.read(lambda tx: tx.destination_policies())
    stored = repr(msgspec.structs.asdict(policy))
    assert policy.sealed_headers is not None
    for text in (first.text, second.text, stored):
        assert "s3cret" not in text
    assert (await change(operator, {"headers": {"X-Other": None}})).json()["headers"] == []


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"rate": -1}, "invalid_rate"),
        ({"burst": 0}, "invalid_burst"),
        ({"timeout": "soon"}, "invalid_timeout"),
        ({"timeout": "31d"}, "invalid_timeout"),
        ({"disable_after": "1us"}, "invalid_disable_after"),
        ({"while_disabled": "drop"}, "invalid_while_disabled"),
        ({"headers": {"Host": "other"}}, "invalid_headers"),
        ({"headers": {"Primeflow-Attempt": "9"}}, "invalid_headers"),
        ({"headers": {"Webhook-Id": "9"}}, "invalid_headers"),
        ({"headers": {"a b": "c"}}, "invalid_headers"),
        ({"headers": {"a": "b\r\nc: d"}}, "invalid_headers"),
        ({"headers": {str(n): "" for n in range(33)}}, "invalid_headers"),
        ({"disabled_reason": ""}, "invalid_disabled_reason"),
        ({"disabled_reason": "a\nb"}, "invalid_disabled_reason"),
        ({"rte": 1}, "unknown_field"),
    ],
)
async def test_what_is_wrong_is_refused_whole(operator: Api, body: Any, code: str) -> None:
    """2.5, 2.10: 400, and nothing is stored."""
    response = await change(operator, {"concurrency": 1, **body})
    assert problem(response)[::2] == (400, code)
    assert "b\r\nc" not in response.text
    assert await operator.node.storage.read(lambda tx: tx.destination_policies()) == []


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("", "destination_required"),
        ("?destination=", "destination_required"),
        ("?destination=example.com", "invalid_destination"),
        ("?destination=https://example.com/hook", "invalid_destination"),
        ("?destination=https://example.com?x", "invalid_destination"),
    ],
)
async def test_the_query_names_one_destination(operator: Api, query: str, code: str) -> None:
    assert problem(await operator.get(PATH + query))[::2] == (400, code)


async def test_an_org_key_may_not(api: Api) -> None:
    """2.2: orgs share destinations, so that no org's key decides about one."""
    for response in (
        await api.get(LIST),
        await api.get(ONE),
        await change(api, {"rate": 1}),
        await api.call("DELETE", ONE),
    ):
        assert problem(response)[::2] == (403, "forbidden")


async def test_the_node_is_told_what_has_become_of_it(operator: Api) -> None:
    """Once for each time that it is disabled or enabled, and of every change."""
    await change(operator, {"disabled_reason": "moves"})
    shown = (await operator.get(ONE)).json()
    assert shown["disabled_reason"] == "moves"
    assert shown["disabled_at"] == shown["updated_at"]
    assert shown["source"] == "none"
    await change(operator, {"disabled_reason": "still moves"})
    await change(operator, {"rate": 1})
    assert (await change(operator, {"disabled_reason": None})).json()["disabled_at"] is None
    await change(operator, {"disabled_reason": "again"})
    await operator.call("DELETE", ONE)
    expected = [Turn("moves"), None, None, Turn(None), Turn("again"), Turn(None)]
    assert operator.turns == [(NAME, turn) for turn in expected]


async def test_a_repeat_changes_nothing(operator: Api) -> None:
    """2.6: the destination, which the query names, belongs to the scope of the key."""
    first = await change(operator, {"disabled_reason": "x"}, **{"Idempotency-Key": "k"})
    again = await change(operator, {"disabled_reason": "x"}, **{"Idempotency-Key": "k"})
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.content == first.content
    other = f"{PATH}?destination=http://example.com"
    assert (await change(operator, {}, other, **{"Idempotency-Key": "k"})).status_code == 200
    assert operator.turns == [(NAME, Turn("x")), (NAME, None), ("http://example.com:80", None)]


async def test_what_the_file_says_is_changed_there(operator: Api) -> None:
    """But a destination of the file may be disabled, and enabled."""
    configured = from_mapping(
        {
            "destinations": {
                "https://example.com": {"rate": 7, "headers": {"X-A": "b"}},
                "https://off.example": {"disabled": "for good"},
            }
        }
    )
    config = msgspec.structs.replace(operator.node.config, destinations=configured.destinations)
    operator.node.config = config
    operator.serve(operator.services())
    listed = (await operator.get(LIST)).json()["items"]
    assert {each["destination"] for each in listed} == {NAME, "https://off.example:443"}
    shown = (await operator.get(ONE)).json()
    assert (shown["source"], shown["rate"], shown["headers"]) == ("file", 7, ["X-A"])
    assert shown["created_at"] is None
    for body in ({"rate": 1}, {"headers": {"X-B": "c"}}):
        assert problem(await change(operator, body))[::2] == (422, "configured")
    assert problem(await operator.call("DELETE", ONE))[::2] == (422, "configured")
    off = f"{PATH}?destination=https://off.example"
    response = await change(operator, {"disabled_reason": None}, off)
    assert problem(response)[::2] == (422, "configured")
    disabled = (await change(operator, {"disabled_reason": "now"})).json()
    assert (disabled["disabled_reason"], disabled["rate"]) == ("now", 7)
    assert (await operator.call("DELETE", ONE)).status_code == 204
    assert (await operator.get(ONE)).json()["disabled_reason"] is None


async def test_pages(operator: Api) -> None:
    """2.9"""
    names = [f"https://h{number}.example:443" for number in range(5)]
    for name in names:
        operator.clock.instant += 1
        await change(operator, {"rate": 1}, f"{PATH}?destination={name}")
    found, cursor = [], None
    while True:
        more = f"&cursor={cursor}" if cursor else ""
        page = (await operator.get(f"{LIST}?limit=2{more}")).json()
        found += [each["destination"] for each in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert found == names[::-1]
