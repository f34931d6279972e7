"""Retry policies over HTTP, as document A has them (contract section 3)."""

from typing import Any

import pytest
import trio

from tests.api.harness import Api, problem

PATH = "/v1/policies/retry"


async def test_post_answers_200_with_exactly_document_a(api: Api) -> None:
    """3: POST answers 200 with A's fields, in A's order."""
    response = await api.post(PATH, {"plan_id": "gold", "delays": ["15m", "1h"], "max_retries": 5})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.text == (
        '{"org_id":"acme","plan_id":"gold","delays":["15m","1h"],"max_retries":5,'
        '"created_at":"2026-05-28T20:26:40Z","updated_at":"2026-05-28T20:26:40Z"}'
    )


@pytest.mark.parametrize("plan", [{}, {"plan_id": None}, {"plan_id": ""}])
async def test_no_plan_is_the_org_default(api: Api, plan: dict[str, Any]) -> None:
    """3.1: absent, null and "" are the org-wide default, shown as ""."""
    made = await api.made(PATH, {"delays": ["1m"], **plan}, 200)
    assert made["plan_id"] == ""
    assert (await api.get(PATH)).json() == made
    assert (await api.get(PATH + "?plan_id=")).json() == made


@pytest.mark.parametrize("plan_id", ["x" * 129, "a\nb", "a\x00", "\x7f", "\u0085", 7, ["x"]])
async def test_plan_ids_that_are_none(api: Api, plan_id: object) -> None:
    """3.1, 2.10: at most 128 characters, no control characters."""
    response = await api.post(PATH, {"plan_id": plan_id, "delays": ["1m"]})
    assert problem(response) == (400, "invalid_request", "invalid_plan_id")
    assert (await api.get(f"{PATH}/list")).json() == []


@pytest.mark.parametrize(
    "plan_id", ["x" * 128, "ünïcode", "a b/c?&=%", "\u2167", "\u00e9", "e\u0301"]
)
async def test_plan_ids_are_compared_byte_for_byte(api: Api, plan_id: str) -> None:
    """3.1: whatever the spelling, the same bytes find it, and no others do."""
    await api.made(PATH, {"plan_id": plan_id, "delays": ["1m"]}, 200)
    found = await api.client.get(
        PATH,
        params={"plan_id": plan_id},
        headers={"Authorization": f"Bearer {api.key}", "X-Org-Id": "acme"},
    )
    assert found.json()["plan_id"] == plan_id
    assert (await api.get(PATH + "?plan_id=other")).status_code == 404


async def test_delays_are_echoed_exactly(api: Api) -> None:
    """3.2: `90m` stays `90m`, in either spelling of micro too."""
    delays = ["90m", "1.5h", "1d12h", "0.5d", "1000000ns", "5000µs", "5000μs", "1h0m0s"]
    made = await api.made(PATH, {"delays": delays}, 200)
    assert made["delays"] == delays
    assert made["max_retries"] == 8


@pytest.mark.parametrize(
    ("delays", "index", "value"),
    [
        (["15m", "1w"], "1", "1w"),
        ([""], "0", ""),
        (["1m", "1m", " 1m"], "2", " 1m"),
        (["1M"], "0", "1M"),
        (["-1s"], "0", "-1s"),
        (["+1s"], "0", "+1s"),
        (["0s"], "0", "0s"),
        (["999us"], "0", "999us"),
        (["31d"], "0", "31d"),
        (["١s"], "0", "١s"),
        (["15"], "0", "15"),
        ([15], "0", "15"),
        (["1m", None], "1", "null"),
        ([True], "0", "true"),
        ([["1m"]], "0", '["1m"]'),
        ([{"a": 1}], "0", '{"a":1}'),
        ([1.50], "0", "1.5"),
    ],
)
async def test_invalid_delays_are_named_and_store_nothing(
    api: Api, delays: list[object], index: str, value: str
) -> None:
    """3.2: 400 `invalid_delay` with index and value, nothing stored."""
    response = await api.post(PATH, {"delays": delays})
    assert problem(response) == (400, "invalid_request", "invalid_delay")
    assert response.json()["details"] == {"index": index, "value": value}
    assert (await api.get(f"{PATH}/list")).json() == []


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "delays_required"),
        ({"delays": None}, "delays_required"),
        ({"delays": "15m"}, "invalid_delays"),
        ({"delays": {"0": "15m"}}, "invalid_delays"),
        ({"delays": ["1m"] * 51}, "too_many_delays"),
        ({"delays": [], "max_retries": 1}, "invalid_max_retries"),
    ],
)
async def test_delays_that_are_no_list_of_at_most_50(api: Api, body: object, code: str) -> None:
    """3.2, 3.3: an array of at most 50; an empty one only without retries."""
    assert problem(await api.post(PATH, body)) == (400, "invalid_request", code)


async def test_50_delays_are_taken(api: Api) -> None:
    """3.2: at most 50."""
    assert (await api.made(PATH, {"delays": ["1m"] * 50}, 200))["max_retries"] == 50


@pytest.mark.parametrize(
    "max_retries", ["-1", "101", "1000000000000000000000", "1.0", "1e1", '"3"', "true", "[]", "{}"]
)
async def test_max_retries_that_are_no_integer_from_0_to_100(api: Api, max_retries: str) -> None:
    """3.3: not a bool, float or string."""
    content = b'{"delays":["1m"],"max_retries":%b}' % max_retries.encode()
    response = await api.post(PATH, content=content)
    assert problem(response) == (400, "invalid_request", "invalid_max_retries")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"delays": ["1m", "2m"]}, 2),
        ({"delays": ["1m", "2m"], "max_retries": 0}, 0),
        ({"delays": ["1m", "2m"], "max_retries": 1}, 1),
        ({"delays": ["1m"], "max_retries": 100}, 100),
        ({"delays": []}, 0),
        ({"delays": [], "max_retries": 0}, 0),
        ({"delays": ["1m"], "max_retries": None}, 1),
    ],
)
async def test_max_retries(api: Api, body: object, expected: int) -> None:
    """3.3: absent it is the number of delays; smaller and larger are kept as given."""
    assert (await api.made(PATH, body, 200))["max_retries"] == expected


async def test_absent_max_retries_follows_the_delays_on_update_too(api: Api) -> None:
    """3.3: also on update."""
    await api.made(PATH, {"delays": ["1m"], "max_retries": 9}, 200)
    assert (await api.made(PATH, {"delays": ["1m", "2m"]}, 200))["max_retries"] == 2


async def test_unknown_fields_are_ignored_here(api: Api) -> None:
    """2.10: this is a seed endpoint."""
    assert (await api.post(PATH, {"delays": ["1m"], "color": "red"})).status_code == 200


async def test_an_upsert_replaces_and_keeps_created_at(api: Api) -> None:
    """3.4."""
    first = await api.made(PATH, {"plan_id": "gold", "delays": ["1m"], "max_retries": 7}, 200)
    api.clock.instant += 5_000_000
    second = await api.made(PATH, {"plan_id": "gold", "delays": ["2m"]}, 200)
    assert second["created_at"] == first["created_at"]
    assert second["updated_at"] == "2026-05-28T20:26:45Z"
    assert (await api.get(f"{PATH}/list")).json() == [second]


async def test_20_concurrent_upserts_leave_one_that_was_sent(api: Api) -> None:
    """3.4: one row that equals one of them."""
    answers: list[Any] = []

    async def put(k: int) -> None:
        answers.append(await api.made(PATH, {"plan_id": "p", "delays": [f"{k}m"]}, 200))

    async with trio.open_nursery() as nursery:
        for k in range(1, 21):
            nursery.start_soon(put, k)
    [left] = (await api.get(f"{PATH}/list")).json()
    assert left in answers
    assert len({answer["delays"][0] for answer in answers}) == 20


async def test_get_does_not_fall_back(api: Api) -> None:
    """3: exact match or 404."""
    await api.made(PATH, {"delays": ["1m"]}, 200)
    assert problem(await api.get(PATH + "?plan_id=gold")) == (404, "not_found", "not_found")


async def test_delete_answers_204_once(api: Api) -> None:
    """3: 204, or 404."""
    await api.made(PATH, {"plan_id": "gold", "delays": ["1m"]}, 200)
    assert problem(await api.call("DELETE", PATH))[0] == 404
    response = await api.call("DELETE", PATH + "?plan_id=gold")
    assert (response.status_code, response.content) == (204, b"")
    assert not {"content-type", "content-length"} & set(response.headers)
    assert problem(await api.call("DELETE", PATH + "?plan_id=gold"))[0] == 404


async def test_delete_with_an_idempotency_key_is_about_the_plan_in_the_query(api: Api) -> None:
    """2.6: here the query names the object, so it belongs to the scope of the key."""
    for plan in ("gold", "silver"):
        await api.made(PATH, {"plan_id": plan, "delays": ["1m"]}, 200)
    key = {"Idempotency-Key": "once"}
    for plan in ("gold", "silver"):
        response = await api.call("DELETE", f"{PATH}?plan_id={plan}", headers=key)
        assert response.status_code == 204
        assert "idempotency-replayed" not in response.headers
    again = await api.call("DELETE", f"{PATH}?plan_id=gold", headers=key)
    assert (again.status_code, again.headers["idempotency-replayed"]) == (204, "true")


async def test_the_list_is_a_bare_array_of_this_org(api: Api) -> None:
    """2.9, 2.4: bare, and only this org's."""
    _, other = await api.make_key("globex")
    theirs = {"X-Org-Id": "globex"}
    await api.post(PATH, {"plan_id": "x", "delays": ["1m"]}, key=other, headers=theirs)
    await api.made(PATH, {"plan_id": "gold", "delays": ["1m"]}, 200)
    await api.made(PATH, {"delays": ["1m"]}, 200)
    policies = (await api.get(f"{PATH}/list")).json()
    assert [policy["plan_id"] for policy in policies] == ["", "gold"]
    assert {policy["org_id"] for policy in policies} == {"acme"}


async def test_effective_looks_at_plan_then_org_then_default(api: Api) -> None:
    """3.5: with max_attempts = max_retries + 1."""
    path = f"{PATH}/effective?plan_id=gold"
    assert (await api.get(path)).json() == {
        "source": "default",
        "plan_id": "",
        "delays": ["15m", "1h", "24h"],
        "max_retries": 3,
        "max_attempts": 4,
    }
    await api.made(PATH, {"delays": ["1m"], "max_retries": 0}, 200)
    org = (await api.get(path)).json()
    assert (org["source"], org["plan_id"], org["max_attempts"]) == ("org", "", 1)
    await api.made(PATH, {"plan_id": "gold", "delays": ["2m"]}, 200)
    plan = (await api.get(path)).json()
    assert (plan["source"], plan["plan_id"], plan["delays"]) == ("plan", "gold", ["2m"])


@pytest.mark.parametrize("path", [PATH, f"{PATH}/list", f"{PATH}/effective"])
async def test_x_org_id_is_required_here(api: Api, path: str) -> None:
    """2.3: on these endpoints X-Org-Id itself, whatever the key; A says Required."""
    for headers in ({}, {"X-Organization-Id": "acme"}):
        response = await api.get(path, key=api.key, headers=headers)
        assert problem(response) == (400, "invalid_request", "org_id_required")
        # Which one there is to name; of an operator key none.
        assert response.json()["details"] == {"org_id": "acme"}
