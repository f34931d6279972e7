"""Batches over HTTP (contract section 4)."""

import json
from typing import Any

import pytest

from primeflowd.api.batches import MOST_AT_ONCE
from primeflowd.model import new_id
from tests.api.harness import Api, problem

BATCHES = "/v1/batches"
URL = "https://example.com/hook"


async def test_a_new_batch(api: Api) -> None:
    """4: 201 and the batch, all its fields."""
    made = await api.made(
        BATCHES,
        {"plan_id": "gold", "callback_url": URL, "metadata": {"a": 1}, "items_total": 2},
    )
    assert made == {
        "id": made["id"],
        "org_id": "acme",
        "plan_id": "gold",
        "callback_url": URL,
        "status": "queued",
        "metadata": {"a": 1},
        "output": None,
        "items_total": 2,
        "items_succeeded": 0,
        "items_failed": 0,
        "items_cancelled": 0,
        "cancellation_reason": None,
        "created_at": "2026-05-28T20:26:40Z",
        "started_at": None,
        "completed_at": None,
        "updated_at": "2026-05-28T20:26:40Z",
    }
    assert (await api.get(f"{BATCHES}/{made['id']}")).json() == made


async def test_ids_are_uuid_v7(api: Api) -> None:
    """2.8."""
    made = await api.made(BATCHES, {})
    assert made["id"][14] == "7"
    assert made["id"] == made["id"].lower()


async def test_a_batch_may_bring_its_id_once(api: Api) -> None:
    """4: a UUID; taken: 422 `batch_exists`, in whichever case it is written."""
    batch_id = new_id()
    made = await api.made(BATCHES, {"id": batch_id.upper()})
    assert made["id"] == batch_id
    response = await api.post(BATCHES, {"id": batch_id})
    assert problem(response) == (422, "validation_error", "batch_exists")
    assert response.json()["details"]["error_type"] == "batch_exists"


@pytest.mark.parametrize(
    "batch_id",
    ["", "x", "{01920000-0000-7000-8000-00000000abcd}", "0192000000007000800000000000abcd"],
)
async def test_ids_that_are_no_uuid(api: Api, batch_id: str) -> None:
    """4."""
    response = await api.post(BATCHES, {"id": batch_id})
    assert problem(response) == (400, "invalid_request", "invalid_id")


@pytest.mark.parametrize("status", ["succeeded", "failed", "partial_succeeded", "cancelled"])
async def test_born_ended(api: Api, status: str) -> None:
    """4: with a terminal status it has its delivery in the same transaction."""
    made = await api.made(
        BATCHES,
        {
            "status": status,
            "callback_url": URL,
            "output": [1.0],
            "started_at": "2026-05-28T20:00:00+02:00",
            "completed_at": "2026-05-28T20:30:00.5Z",
        },
    )
    assert made["status"] == status
    assert made["started_at"] == "2026-05-28T18:00:00Z"
    assert made["completed_at"] == "2026-05-28T20:30:00.500000Z"
    [delivery] = (await api.get(f"{BATCHES}/{made['id']}/callback")).json()
    assert delivery["is_automatic"] is True
    assert delivery["payload"]["event"] == f"batch.{status}"
    [(scheduled, _)] = api.node.schedule.admitted
    assert scheduled.id == delivery["id"]


async def test_what_the_client_sent_comes_back_verbatim(api: Api) -> None:
    """4.4: key order and the spelling of numbers, here and in the payload."""
    value = '{"z":1.0,"a":[1e400,9007199254740993,-0,1E5],"é":"\\u20ac","n":null}'
    content = f'{{"metadata": {value}, "output":{value},"status":"failed","callback_url":"{URL}"}}'
    made = await api.post(BATCHES, content=content.encode())
    canonical = value.replace("\\u20ac", "€")
    assert f'"metadata":{canonical},' in made.text
    assert f'"output":{canonical},' in made.text
    delivery = await api.get(f"{BATCHES}/{made.json()['id']}/callback")
    assert f'"output":{canonical},' in delivery.json()[0]["payload_bytes"]


@pytest.mark.parametrize(
    ("field", "sent", "shown"),
    [
        ("metadata", "null", None),
        ("output", "null", None),
        ("metadata", '""', ""),
        ("output", "0", 0),
    ],
)
async def test_null_and_scalars(api: Api, field: str, sent: str, shown: object) -> None:
    """4.2: null is null; any JSON value may be given."""
    response = await api.post(BATCHES, content=f'{{"{field}":{sent}}}'.encode())
    assert response.json()[field] == shown


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com/hook",
        "ftp://example.com/",
        "https://",
        "https:///hook",
        "https://user:pass@example.com/",
        "https://example.com/#x",
        "https://example.com/" + "x" * 2048,
        "https://exa mple.com/",
        "https://example.com:99999/",
    ],
)
async def test_callback_urls_that_are_none(api: Api, url: str) -> None:
    """4.7: 400 `invalid_callback_url`."""
    response = await api.post(BATCHES, {"callback_url": url})
    assert problem(response) == (400, "invalid_request", "invalid_callback_url")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"items": [], "items_total": 0}, "invalid_items_total"),
        ({"completed_at": "2026-01-01T00:00:00Z"}, "invalid_completed_at"),
        ({"items": [{"client_ref": "a"}, {"client_ref": "a"}]}, "invalid_client_ref"),
        ({"items": [{"client_ref": "x" * 256}]}, "invalid_client_ref"),
    ],
)
async def test_fields_that_do_not_go_together(api: Api, body: object, code: str) -> None:
    """4: items or items_total; completed_at only for what has ended."""
    assert problem(await api.post(BATCHES, body)) == (400, "invalid_request", code)


async def test_bulk_answers_for_each_in_order(api: Api) -> None:
    """4: each stands alone; the answer is 200 and keeps the order."""
    taken = new_id()
    await api.made(BATCHES, {"id": taken})
    fresh = new_id()
    batches: list[Any] = [
        {"status": "succeeded", "callback_url": URL},
        {"colour": "red"},
        {"id": taken},
        {"id": fresh},
        {"id": fresh},
        [],
        {"callback_url": "x"},
        {"metadata": {"a": 1}},
    ]
    response = await api.post(f"{BATCHES}/bulk", {"batches": batches})
    assert response.status_code == 200
    results = response.json()["results"]
    assert [result["index"] for result in results] == list(range(8))
    assert [result.get("status") or result["error"]["code"] for result in results] == [
        "succeeded",
        "unknown_field",
        "batch_exists",
        "queued",
        "batch_exists",
        "invalid_body",
        "invalid_callback_url",
        "queued",
    ]
    assert set(results[0]) == {"index", "id", "status"}
    assert set(results[1]) == {"index", "error"}
    assert results[1]["error"] == {
        "error": "invalid_request",
        "code": "unknown_field",
        "message": "unknown field: colour",
        "details": {"field": "colour"},
    }
    assert results[2]["error"]["error"] == "validation_error"
    assert len((await api.get(BATCHES)).json()["items"]) == 4
    assert len(api.node.schedule.admitted) == 1


@pytest.mark.parametrize("count", [0, 1001])
async def test_bulk_takes_1_to_1000(api: Api, count: int) -> None:
    """4."""
    response = await api.post(f"{BATCHES}/bulk", {"batches": [{}] * count})
    assert problem(response) == (400, "invalid_request", "invalid_batches")


@pytest.mark.parametrize("padding", [0, MOST_AT_ONCE])
@pytest.mark.parametrize("escaped", [False, True])
@pytest.mark.parametrize(
    ("wrong", "codes"),
    [
        ([], []),
        ([{"callback_url": "x"}], ["invalid_callback_url"]),
        ([{"status": "done"}, {"callback_url": "x"}], ["invalid_status", "invalid_callback_url"]),
    ],
)
async def test_bulk_means_the_same_however_it_is_decoded(
    api: Api, wrong: list[Any], codes: list[str], *, escaped: bool, padding: int
) -> None:
    """4, 4.4: in one go, with or without escapes in it; or one by one if there is anything wrong
    with one, or all are very long."""
    batches: list[Any] = [
        {"status": "succeeded", "callback_url": URL, "metadata": {"a": 1.0}, "output": None},
        {"metadata": {"b": [" ", "\u00e9"]}},
        {"metadata": None, "output": " , "},
        *wrong,
    ]
    text = json.dumps({"batches": batches}, ensure_ascii=escaped, indent=2)
    response = await api.post(f"{BATCHES}/bulk", content=text.encode() + b" " * padding)
    assert response.status_code == 200
    results = response.json()["results"]
    assert [each["error"]["code"] for each in results[3:]] == codes
    ended, queued, third = [await api.node.batch(each["id"]) for each in results[:3]]
    assert (ended.metadata, ended.output) == (b'{"a":1.0}', b"null")
    assert (queued.metadata, queued.output) == ('{"b":[" ","\u00e9"]}'.encode(), None)
    assert (third.metadata, third.output) == (None, b'" , "')


async def test_bulk_of_1000(api: Api) -> None:
    """4: all that were accepted are there."""
    answer = await api.made(f"{BATCHES}/bulk", {"batches": [{}] * 1000}, 200)
    ids = {result["id"] for result in answer["results"]}
    assert len(ids) == 1000
    seen: list[str] = []
    path = f"{BATCHES}?limit=500"
    while True:
        page = (await api.get(path)).json()
        seen += [batch["id"] for batch in page["items"]]
        if page["next"] is None:
            break
        path = f"{BATCHES}?limit=500&cursor={page['next']}"
    assert len(seen) == 1000
    assert set(seen) == ids


async def test_completion(api: Api) -> None:
    """4: 201 on the transition; 200 unchanged with the same status; 422 with another."""
    batch = await api.made(BATCHES, {"callback_url": URL})
    path = f"{BATCHES}/{batch['id']}/completion"
    first = await api.post(path, {"status": "succeeded", "output": {"n": 1}})
    assert first.status_code == 201
    assert first.json()["output"] == {"n": 1}
    again = await api.post(path, {"status": "succeeded", "output": {"n": 2}})
    assert (again.status_code, again.json()) == (200, first.json())
    other = await api.post(path, {"status": "failed"})
    assert problem(other) == (422, "validation_error", "invalid_state")
    assert len((await api.get(f"{BATCHES}/{batch['id']}/callback")).json()) == 1


@pytest.mark.parametrize("status", ["queued", "running", "", None, "SUCCEEDED"])
async def test_completion_needs_a_terminal_status(api: Api, status: object) -> None:
    """4."""
    batch = await api.made(BATCHES, {})
    response = await api.post(f"{BATCHES}/{batch['id']}/completion", {"status": status})
    assert problem(response) == (400, "invalid_request", "invalid_status")
    response = await api.post(f"{BATCHES}/{batch['id']}/completion", {})
    assert problem(response) == (400, "invalid_request", "status_required")


async def test_completed_at_is_the_client_s(api: Api) -> None:
    """4.2, 4.3: RFC 3339 in, Python's isoformat in the payload."""
    batch = await api.made(BATCHES, {"callback_url": URL})
    body = {"status": "succeeded", "completed_at": "2026-05-28T22:26:41.500+02:00"}
    ended = await api.made(f"{BATCHES}/{batch['id']}/completion", body)
    assert ended["completed_at"] == "2026-05-28T20:26:41.500000Z"
    payload = (await api.delivery_of(batch["id"]))["payload"]
    assert payload["completed_at"] == "2026-05-28T20:26:41.500000+00:00"
    assert payload["duration_ms"] == 1500


async def test_cancellation(api: Api) -> None:
    """4: 201; 200 and unchanged if already terminal."""
    batch = await api.made(BATCHES, {"callback_url": URL})
    path = f"{BATCHES}/{batch['id']}/cancellation"
    first = await api.post(path, {"reason": "no longer wanted"})
    assert first.status_code == 201
    assert first.json()["status"] == "cancelled"
    assert first.json()["cancellation_reason"] == "no longer wanted"
    again = await api.post(path, {"reason": "twice"})
    assert (again.status_code, again.json()) == (200, first.json())


async def test_list_filters(api: Api) -> None:
    """4: `status_code`, `plan_id`, `created_after`, `created_before`."""
    old = await api.made(BATCHES, {"plan_id": "gold", "status": "failed"})
    api.clock.instant += 60_000_000
    new = await api.made(BATCHES, {"plan_id": "gold"})
    api.clock.instant += 60_000_000
    other = await api.made(BATCHES, {})
    for query, expected in [
        ("", [other, new, old]),
        ("?status_code=failed", [old]),
        ("?status_code=running", []),
        ("?plan_id=gold", [new, old]),
        ("?plan_id=", [other]),
        ("?plan_id=gold&status_code=queued", [new]),
        ("?created_after=2026-05-28T20:27:00Z", [other, new]),
        ("?created_before=2026-05-28T22:28:00%2B02:00", [new, old]),
        (f"?created_after={old['created_at']}&created_before={other['created_at']}", [new]),
    ]:
        page = (await api.get(BATCHES + query)).json()
        assert page == {"items": expected, "next": None}, query


@pytest.mark.parametrize("query", ["status_code=done", "status_code=", "plan_id=%00"])
async def test_filters_that_make_no_sense(api: Api, query: str) -> None:
    """2.5: 400 rather than an answer to something else."""
    assert problem(await api.get(f"{BATCHES}?{query}"))[0] == 400


async def test_pages_are_stable_while_rows_are_added(api: Api) -> None:
    """2.9: newest first; each row once, although some were made in the same microsecond."""
    ids = []
    for k in range(7):
        api.clock.instant += k % 2
        ids.append((await api.made(BATCHES, {}))["id"])
    seen: list[str] = []
    path = f"{BATCHES}?limit=3"
    while True:
        page = (await api.get(path)).json()
        assert len(page["items"]) <= 3
        seen += [batch["id"] for batch in page["items"]]
        if page["next"] is None:
            break
        await api.made(BATCHES, {})
        path = f"{BATCHES}?limit=3&cursor={page['next']}"
    assert seen == ids[::-1]


async def test_a_page_of_huge_batches_is_shorter(api: Api) -> None:
    """2.9: `limit` is the most; no answer grows beyond some megabytes for want of a limit."""
    big = json.dumps({"metadata": "x" * 1_000_000}).encode()
    for _ in range(12):
        assert (await api.post(BATCHES, content=big)).status_code == 201
    first = (await api.get(BATCHES)).json()
    assert 1 < len(first["items"]) < 12
    rest = (await api.get(f"{BATCHES}?cursor={first['next']}")).json()
    assert len(first["items"]) + len(rest["items"]) == 12
    assert rest["next"] is None
