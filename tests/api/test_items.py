"""A batch's items over HTTP (contract 4, 4.1)."""

import pytest

from tests.api.harness import Api, problem

BATCHES = "/v1/batches"


async def test_items_in_their_order(api: Api) -> None:
    """4: as registered, paged by index."""
    items = [{"client_ref": f"ref-{k}", "input": {"n": k}} for k in range(5)]
    batch = await api.made(BATCHES, {"items": items})
    assert batch["items_total"] == 5
    path = f"{BATCHES}/{batch['id']}/items"
    first = (await api.get(f"{path}?limit=3")).json()
    rest = (await api.get(f"{path}?limit=3&cursor={first['next']}")).json()
    assert rest["next"] is None
    shown = first["items"] + rest["items"]
    assert [item["sequence_index"] for item in shown] == [0, 1, 2, 3, 4]
    assert shown[1] == {
        "sequence_index": 1,
        "client_ref": "ref-1",
        "status_code": "queued",
        "input": {"n": 1},
        "output": None,
        "error": None,
        "updated_at": "2026-05-28T20:26:40Z",
    }


async def test_the_last_report_ends_the_batch(api: Api) -> None:
    """4.1: by index or client reference; the answer is the batch."""
    batch = await api.made(
        BATCHES,
        {"items": [{"client_ref": "a"}, {}], "callback_url": "https://example.com/"},
    )
    path = f"{BATCHES}/{batch['id']}/items"
    report = {"client_ref": "a", "status_code": "succeeded", "output": {"v": 1.0}}
    response = await api.call("PATCH", path, {"items": [report]})
    assert response.status_code == 200
    assert (response.json()["status"], response.json()["items_succeeded"]) == ("running", 1)
    failed = {"sequence_index": 1, "status_code": "failed", "error": {"why": None}}
    ended = (await api.call("PATCH", path, {"items": [failed]})).json()
    assert (ended["status"], ended["items_failed"]) == ("partial_succeeded", 1)
    assert (await api.delivery_of(batch["id"]))["payload"]["output"]["total"] == 2
    shown = (await api.get(path)).json()["items"]
    assert [item["output"] for item in shown] == [{"v": 1.0}, None]
    assert shown[1]["error"] == {"why": None}


async def test_late_reports_change_nothing(api: Api) -> None:
    """4.1: 422."""
    batch = await api.made(BATCHES, {"items_total": 1, "status": "cancelled"})
    path = f"{BATCHES}/{batch['id']}/items"
    report = {"sequence_index": 0, "status_code": "succeeded"}
    response = await api.call("PATCH", path, {"items": [report]})
    assert problem(response) == (422, "validation_error", "invalid_state")
    assert (await api.get(f"{BATCHES}/{batch['id']}")).json() == batch


@pytest.mark.parametrize(
    ("items", "code"),
    [
        ([], "invalid_items"),
        ([{"sequence_index": 0, "status_code": "failed"}] * 1001, "invalid_items"),
        ([{"status_code": "failed"}], "sequence_index_required"),
        ([{"sequence_index": -1, "status_code": "failed"}], "invalid_sequence_index"),
        ([{"sequence_index": 0}], "status_code_required"),
        ([{"sequence_index": 0, "status_code": "partial_succeeded"}], "invalid_status_code"),
    ],
)
async def test_reports_that_are_none(api: Api, items: object, code: str) -> None:
    """4: 1 to 1000, each naming its item and a state."""
    batch = await api.made(BATCHES, {"items_total": 1})
    response = await api.call("PATCH", f"{BATCHES}/{batch['id']}/items", {"items": items})
    assert problem(response) == (400, "invalid_request", code)


async def test_an_item_that_is_not_there(api: Api) -> None:
    """4: 422, and the other reports of the request are not taken either."""
    batch = await api.made(BATCHES, {"items_total": 2})
    path = f"{BATCHES}/{batch['id']}/items"
    reports = [{"sequence_index": k, "status_code": "failed"} for k in (0, 2)]
    response = await api.call("PATCH", path, {"items": reports})
    assert problem(response)[0] == 422
    assert (await api.get(f"{BATCHES}/{batch['id']}")).json()["items_failed"] == 0
