"""Deliveries, callback history and redelivery over HTTP (document B; contract 4.8, 4.9 and 5)."""

import json
from typing import Any

import pytest
import trio

from tests.api.harness import Api, problem

DELIVERIES = "/v1/deliveries"

FIELDS = [
    "id",
    "batch_id",
    "callback_url",
    "payload_bytes",
    "payload",
    "signing_secret_id",
    "is_automatic",
    "status_code",
    "failure_reason_code",
    "failure_detail",
    "attempt_count",
    "max_attempts",
    "next_attempt_at",
    "created_at",
    "updated_at",
    "completed_at",
    "attempts",
]
ATTEMPT_FIELDS = [
    "id",
    "delivery_id",
    "attempt_number",
    "status_code",
    "response_body",
    "response_time_ms",
    "error_message",
    "created_at",
]


async def failed_batch(api: Api) -> Any:
    """A batch whose automatic delivery has failed."""
    batch = await api.ended_batch()
    delivery = await api.delivery_of(batch["id"])
    await api.node.settle(delivery["id"])
    return batch


async def test_a_redelivery_has_exactly_document_b_s_shape(api: Api) -> None:
    """4.9, 5: B's fields in B's order; a new id, not automatic, no attempts, the same bytes."""
    batch = await failed_batch(api)
    automatic = await api.delivery_of(batch["id"])
    made = await api.made(f"/v1/batches/{batch['id']}/callback-redeliveries")
    assert list(made) == FIELDS
    assert made["id"] != automatic["id"]
    assert made["payload_bytes"] == automatic["payload_bytes"]
    assert made["payload"] == json.loads(made["payload_bytes"])
    assert made == {
        **made,
        "batch_id": batch["id"],
        "callback_url": "https://example.com/hook",
        "signing_secret_id": None,
        "is_automatic": False,
        "status_code": "pending",
        "failure_reason_code": None,
        "failure_detail": None,
        "attempt_count": 0,
        "max_attempts": 4,
        "next_attempt_at": "2026-05-28T20:26:40Z",
        "created_at": "2026-05-28T20:26:40Z",
        "updated_at": "2026-05-28T20:26:40Z",
        "completed_at": None,
        "attempts": [],
    }


async def test_the_redelivery_ignores_what_b_does_not_know(api: Api) -> None:
    """2.10: the other seed endpoint."""
    batch = await failed_batch(api)
    response = await api.post(f"/v1/batches/{batch['id']}/callback-redeliveries", {"x": 1})
    assert response.status_code == 201


async def test_the_policy_is_resolved_anew(api: Api) -> None:
    """4.9."""
    batch = await failed_batch(api)
    await api.made("/v1/policies/retry", {"delays": ["1m"], "max_retries": 9}, 200)
    made = await api.made(f"/v1/batches/{batch['id']}/callback-redeliveries")
    assert made["max_attempts"] == 10


async def test_redelivery_guards(api: Api) -> None:
    """4.8: 422 `validation_error`; `code` and `details.error_type` say which."""
    running = await api.made("/v1/batches", {"callback_url": "https://example.com/"})
    silent = await api.made("/v1/batches", {"status": "failed"})
    in_flight = await api.ended_batch()
    for batch, code in [
        (running, "invalid_state"),
        (silent, "missing_callback_url"),
        (in_flight, "conflict"),
    ]:
        response = await api.post(f"/v1/batches/{batch['id']}/callback-redeliveries")
        assert problem(response) == (422, "validation_error", code)
        assert response.json()["details"]["error_type"] == code
    delivery = await api.delivery_of(in_flight["id"])
    assert delivery["id"] in response.json()["message"]
    assert delivery["next_attempt_at"] in response.json()["message"]


async def test_of_20_concurrent_redeliveries_one_is_made(api: Api) -> None:
    """4.8: one 201, nineteen 422 `conflict`."""
    batch = await failed_batch(api)
    answers = []

    async def post() -> None:
        answers.append(await api.post(f"/v1/batches/{batch['id']}/callback-redeliveries"))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(post)
    assert sorted(answer.status_code for answer in answers) == [201] + [422] * 19
    assert {answer.json().get("code") for answer in answers} == {"conflict", None}
    assert len((await api.get(f"/v1/batches/{batch['id']}/callback")).json()) == 2


async def test_history_is_newest_first_with_attempts_ascending(api: Api) -> None:
    """4, 2.9: a bare array; every attempt in exactly B's fields."""
    batch = await api.ended_batch()
    first = await api.delivery_of(batch["id"])
    for number in (1, 2, 3):
        await api.record(first["id"], number, status_code=500 + number, response_time=number)
    await api.node.settle(first["id"])
    api.clock.instant += 1_000_000
    second = await api.made(f"/v1/batches/{batch['id']}/callback-redeliveries")
    history = (await api.get(f"/v1/batches/{batch['id']}/callback")).json()
    assert [delivery["id"] for delivery in history] == [second["id"], first["id"]]
    attempts = history[1]["attempts"]
    assert [attempt["attempt_number"] for attempt in attempts] == [1, 2, 3]
    assert list(attempts[0]) == ATTEMPT_FIELDS
    assert attempts[0] == {
        "id": attempts[0]["id"],
        "delivery_id": first["id"],
        "attempt_number": 1,
        "status_code": 501,
        "response_body": "ok",
        "response_time_ms": 1,
        "error_message": None,
        "created_at": "2026-05-06T10:00:00Z",
    }


async def test_an_attempt_without_an_answer(api: Api) -> None:
    """5: `status_code` is null then."""
    batch = await api.ended_batch()
    delivery = await api.delivery_of(batch["id"])
    await api.record(
        delivery["id"], 1, status_code=None, response_body=None, error_message="timed out"
    )
    shown = (await api.get(f"{DELIVERIES}/{delivery['id']}")).json()
    [attempt] = shown["attempts"]
    assert (attempt["status_code"], attempt["response_body"]) == (None, None)
    assert attempt["error_message"] == "timed out"
    assert shown["attempt_count"] == 1


async def test_history_of_a_batch_without_a_callback(api: Api) -> None:
    """4: an empty array."""
    batch = await api.made("/v1/batches", {"status": "failed"})
    assert (await api.get(f"/v1/batches/{batch['id']}/callback")).json() == []


async def test_delivering_is_what_a_sender_is_on(api: Api) -> None:
    """5.1: shown wherever a delivery is shown, and filtered by."""
    sent, waiting, done = [await api.ended_batch() for _ in range(3)]
    sent_id = (await api.delivery_of(sent["id"]))["id"]
    waiting_id = (await api.delivery_of(waiting["id"]))["id"]
    done_id = (await api.delivery_of(done["id"]))["id"]
    await api.node.settle(done_id, None)
    assert (await api.get(f"{DELIVERIES}?status_code=delivering")).json()["items"] == []
    # A sender still busy with what is on record as ended does not bring it back to life.
    api.delivering |= {sent_id, done_id}
    assert (await api.get(f"{DELIVERIES}/{sent_id}")).json()["status_code"] == "delivering"
    assert (await api.get(f"{DELIVERIES}/{done_id}")).json()["status_code"] == "succeeded"
    assert (await api.delivery_of(sent["id"]))["status_code"] == "delivering"
    for status, expected in [
        ("delivering", [sent_id]),
        ("pending", [waiting_id]),
        ("succeeded", [done_id]),
        ("failed", []),
    ]:
        page = (await api.get(f"{DELIVERIES}?status_code={status}")).json()
        assert [each["id"] for each in page["items"]] == expected
        assert {each["status_code"] for each in page["items"]} <= {status}


async def test_list_filters(api: Api) -> None:
    """5.4: `batch_id`, `failure_reason_code`, `destination`, `created_after/before`."""
    first = await failed_batch(api)
    api.clock.instant += 60_000_000
    second = await api.ended_batch(callback_url="http://Other.example/x")
    ids = [(await api.delivery_of(batch["id"]))["id"] for batch in (first, second)]
    for query, expected in [
        ("", [ids[1], ids[0]]),
        (f"?batch_id={first['id']}", [ids[0]]),
        (f"?batch_id={first['id'].upper()}", [ids[0]]),
        ("?batch_id=x", []),
        ("?failure_reason_code=timeout", [ids[0]]),
        ("?failure_reason_code=gone", []),
        ("?destination=http://other.example:80", [ids[1]]),
        ("?destination=http://other.example", [ids[1]]),
        ("?destination=https://other.example", []),
        ("?created_after=2026-05-28T20:27:00Z", [ids[1]]),
        ("?created_before=2026-05-28T20:27:00Z", [ids[0]]),
        ("?status_code=failed&created_after=2026-05-28T20:27:00Z", []),
    ]:
        page = (await api.get(DELIVERIES + query)).json()
        assert [each["id"] for each in page["items"]] == expected, query
        assert all(list(each) == FIELDS for each in page["items"])


@pytest.mark.parametrize(
    "query", ["status_code=done", "failure_reason_code=bad", "destination=example.com"]
)
async def test_filters_that_make_no_sense(api: Api, query: str) -> None:
    """2.5: 400."""
    name = query.partition("=")[0]
    response = await api.get(f"{DELIVERIES}?{query}")
    assert problem(response) == (400, "invalid_request", f"invalid_{name}")


@pytest.mark.parametrize("matches_nothing", ["batch_id=x", "status_code=delivering"])
async def test_a_filter_that_matches_nothing_excuses_no_other(
    api: Api, matches_nothing: str
) -> None:
    """2.5: what is wrong with a request does not depend on what there is."""
    response = await api.get(f"{DELIVERIES}?{matches_nothing}&failure_reason_code=bad")
    assert problem(response) == (400, "invalid_request", "invalid_failure_reason_code")


async def test_pages(api: Api) -> None:
    """2.9: every delivery once, also with a filter that thins the pages out."""
    ids = [(await api.delivery_of((await api.ended_batch())["id"]))["id"] for _ in range(9)]
    api.delivering |= set(ids[::2])
    seen: list[str] = []
    path = f"{DELIVERIES}?limit=2&status_code=pending"
    while True:
        page = (await api.get(path)).json()
        seen += [each["id"] for each in page["items"]]
        if page["next"] is None:
            break
        path = f"{DELIVERIES}?limit=2&status_code=pending&cursor={page['next']}"
    assert seen == ids[1::2][::-1]


async def test_pages_of_huge_payloads_are_shorter(api: Api) -> None:
    """2.9: and go on where they stopped."""
    big = {"status": "failed", "callback_url": "https://example.com/", "metadata": "x" * 900_000}
    for _ in range(8):
        await api.made("/v1/batches", big)
    first = (await api.get(DELIVERIES)).json()
    assert 1 <= len(first["items"]) < 8
    rest = (await api.get(f"{DELIVERIES}?cursor={first['next']}")).json()
    assert len(first["items"]) + len(rest["items"]) == 8


async def test_cancellation(api: Api) -> None:
    """5.4: 201, `failed`/`cancelled`, nothing more due; again: 422."""
    delivery = await api.delivery_of((await api.ended_batch())["id"])
    path = f"{DELIVERIES}/{delivery['id']}/cancellation"
    ended = await api.made(path)
    assert list(ended) == FIELDS
    assert (ended["status_code"], ended["failure_reason_code"]) == ("failed", "cancelled")
    assert ended["next_attempt_at"] is None
    assert ended["completed_at"] is not None
    assert api.node.schedule.dropped == [delivery["id"]]
    response = await api.post(path)
    assert problem(response) == (422, "validation_error", "invalid_state")


async def test_attempt_now(api: Api) -> None:
    """5.4: 202; a waiting retry is due at once; what has ended is refused."""
    delivery = await api.delivery_of((await api.ended_batch())["id"])
    path = f"{DELIVERIES}/{delivery['id']}/attempt-now"
    shown = await api.made(path, status=202)
    assert list(shown) == FIELDS
    assert shown["status_code"] == "pending"
    assert [each.id for each in api.node.schedule.hastened] == [delivery["id"]]
    api.delivering.add(delivery["id"])
    assert (await api.made(path, status=202))["status_code"] == "delivering"
    await api.node.settle(delivery["id"], None)
    assert problem(await api.post(path)) == (422, "validation_error", "invalid_state")


async def test_recovery(api: Api) -> None:
    """5.4: 202 `{id, matched}`, progress readable."""
    for _ in range(3):
        await failed_batch(api)
    await api.ended_batch()
    body = {
        "since": "2026-05-28T00:00:00Z",
        "until": "2026-05-28T22:26:40+02:00",
        "destination": "https://example.com",
        "failure_reason_code": "timeout",
    }
    started = await api.made(f"{DELIVERIES}/recover", body, 202)
    assert started == {"id": started["id"], "matched": 3}
    assert api.recoveries == 1
    shown = (await api.get(f"{DELIVERIES}/recoveries/{started['id']}")).json()
    assert shown == {
        "id": started["id"],
        "org_id": "acme",
        "status": "running",
        "since": "2026-05-28T00:00:00Z",
        "until": "2026-05-28T20:26:40Z",
        "destination": "https://example.com:443",
        "failure_reason_code": "timeout",
        "matched": 3,
        "redelivered": 0,
        "skipped": 0,
        "created_at": "2026-05-28T20:26:40Z",
        "completed_at": None,
    }


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "since_required"),
        ({"since": "yesterday"}, "invalid_since"),
        ({"since": "2026-01-02T00:00:00Z", "until": "2026-01-01T00:00:00Z"}, "invalid_until"),
        ({"since": "2026-01-02T00:00:00Z", "destination": "x"}, "invalid_destination"),
        (
            {"since": "2026-01-02T00:00:00Z", "failure_reason_code": "x"},
            "invalid_failure_reason_code",
        ),
    ],
)
async def test_recoveries_of_nothing(api: Api, body: object, code: str) -> None:
    """2.5: 400."""
    response = await api.post(f"{DELIVERIES}/recover", body)
    assert problem(response) == (400, "invalid_request", code)
