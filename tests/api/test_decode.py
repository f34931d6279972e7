"""Bodies: content type, JSON, size and shape (contract 2.10)."""

from collections.abc import AsyncIterator

import httpx
import msgspec
import pytest

from primeflowd.config import Api as ApiSettings
from primeflowd.config import Config
from tests.api.harness import Api, open_api, problem

BATCHES = "/v1/batches"
REFUSED_JSON = (400, "invalid_request", "invalid_json")


@pytest.mark.parametrize(
    "content_type",
    [
        "application/json",
        "Application/JSON",
        "application/json; charset=utf-8",
        'application/json;charset="UTF-8"',
        " application/json ; charset=UTF8 ",
    ],
)
async def test_json_is_taken(api: Api, content_type: str) -> None:
    """2.10: charset utf-8 is fine."""
    response = await api.post(BATCHES, content=b"{}", headers={"Content-Type": content_type})
    assert response.status_code == 201


@pytest.mark.parametrize(
    "content_type",
    [
        "text/plain",
        "application/jsonx",
        "application/json; charset=latin-1",
        "",
        "*/*",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
    ],
)
async def test_what_is_not_called_json_is_not_taken(api: Api, content_type: str) -> None:
    """2.5: 415."""
    response = await api.post(BATCHES, content=b"{}", headers={"Content-Type": content_type})
    assert problem(response) == (415, "unsupported_media_type", "unsupported_media_type")


async def test_a_missing_content_type(api: Api) -> None:
    """2.10: 415, where a body is needed."""
    response = await api.client.post(BATCHES, content=b"{}", headers={"X-Reevit-Key": api.key})
    assert problem(response)[0] == 415
    assert problem(await api.post(BATCHES))[0] == 415


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"{}x",
        b"{'a':1}",
        b'{"metadata":NaN}',
        b'{"metadata":[Infinity]}',
        b'{"metadata":-Infinity}',
        b'{"metadata":01}',
        b'{"metadata":1.}',
        b'{"metadata":"\xff"}',
        b'{"metadata":"\xed\xa0\x80"}',
        b'{"plan_id":"\xff"}',
        b'{"plan_id":"\\ud800"}',
        b'{"metadata":"\\ud800"}',
        b'{"metadata":"\\ud800x"}',
        b'{"metadata":{"\\udc00":1}}',
        b'{"metadata":"a\x01b"}',
        b"\xef\xbb\xbf{}",
        b"\xff\xfe{\x00}\x00",
        b'{"metadata":' + b"[" * 100 + b"]" * 100 + b"}",
        b'{"metadata":' + b'{"a":' * 100 + b"1" + b"}" * 100 + b"}",
        b'{"metadata":' + b"[" * 500_000,
    ],
    ids=lambda content: content[:24].decode("latin-1"),
)
async def test_what_is_no_json(api: Api, content: bytes) -> None:
    """2.10: NaN, Infinity, invalid UTF-8, lone surrogates, nesting beyond 100."""
    assert problem(await api.post(BATCHES, content=content)) == REFUSED_JSON
    assert (await api.get(BATCHES)).json()["items"] == []


async def test_nesting_of_100_is_taken(api: Api) -> None:
    """2.10: beyond 100 only."""
    content = b'{"metadata":' + b"[" * 99 + b"]" * 99 + b"}"
    assert (await api.post(BATCHES, content=content)).status_code == 201


@pytest.mark.parametrize("content", [b"[]", b'"x"', b"1", b"null", b"true"])
async def test_bodies_are_objects(api: Api, content: bytes) -> None:
    """2.10."""
    response = await api.post(BATCHES, content=content)
    assert problem(response) == (400, "invalid_request", "invalid_body")


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    [
        ("POST", BATCHES, {"colour": 1}, "colour"),
        ("POST", BATCHES, {"items": [{"inputs": 1}]}, "items[0].inputs"),
        ("POST", BATCHES + "/bulk", {"batches": [{}], "x": 1}, "x"),
        ("POST", BATCHES + "/{}/completion", {"status": "failed", "why": 1}, "why"),
        ("POST", BATCHES + "/{}/cancellation", {"cause": "x"}, "cause"),
        (
            "PATCH",
            BATCHES + "/{}/items",
            {"items": [{"status_code": "failed"}], "atomic": True},
            "atomic",
        ),
        ("POST", "/v1/deliveries/{}/cancellation", {"reason": "x"}, "reason"),
        ("POST", "/v1/deliveries/{}/attempt-now", {"force": True}, "force"),
        ("POST", "/v1/deliveries/recover", {"since": "2026-01-01T00:00:00Z", "to": 1}, "to"),
        ("POST", "/v1/callback-secrets", {"name": "x"}, "name"),
        ("PATCH", "/v1/callback-secrets/{}", {"disabled": True}, "disabled"),
        ("POST", "/v1/keys", {"org": "x"}, "org"),
    ],
)
async def test_unknown_fields_are_refused(
    api: Api, method: str, path: str, body: object, field: str
) -> None:
    """2.10: 400 `unknown_field`, and which."""
    path = path.format("01920000-0000-7000-8000-000000000000")
    response = await api.call(method, path, body)
    assert problem(response) == (400, "invalid_request", "unknown_field")
    assert response.json()["details"]["field"] == field


@pytest.mark.parametrize(
    ("body", "code", "field"),
    [
        ({"plan_id": 1}, "invalid_plan_id", "plan_id"),
        ({"status": "done"}, "invalid_status", "status"),
        ({"items": {}}, "invalid_items", "items"),
        ({"items": [1]}, "invalid_items", "items[0]"),
        ({"items": [{"client_ref": 1}]}, "invalid_client_ref", "items[0].client_ref"),
        ({"items_total": -1}, "invalid_items_total", "items_total"),
        ({"items_total": 2**31}, "invalid_items_total", "items_total"),
        ({"items_total": 1.5}, "invalid_items_total", "items_total"),
        ({"items_total": True}, "invalid_items_total", "items_total"),
        ({"started_at": "2026-01-01T00:00:00"}, "invalid_started_at", "started_at"),
        ({"started_at": "yesterday"}, "invalid_started_at", "started_at"),
        ({"started_at": 1780000000}, "invalid_started_at", "started_at"),
        ({"started_at": "1969-12-31T23:59:59Z"}, "invalid_started_at", "started_at"),
        ({"started_at": "9999-12-31T23:59:59-01:00"}, "invalid_started_at", "started_at"),
        ({"started_at": "0001-01-01T00:00:00+23:00"}, "invalid_started_at", "started_at"),
    ],
)
async def test_wrong_fields_are_named(api: Api, body: object, code: str, field: str) -> None:
    """2.5: a machine can tell which field, a person why."""
    response = await api.post(BATCHES, body)
    assert problem(response) == (400, "invalid_request", code)
    assert response.json()["details"]["field"] == field


async def test_missing_fields_are_named(api: Api) -> None:
    """2.5."""
    response = await api.post(f"{BATCHES}/bulk", {})
    assert problem(response) == (400, "invalid_request", "batches_required")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", BATCHES, {"plan_id": "a\x1bb"}),
        ("POST", BATCHES, {"items": [{"client_ref": "a\x00"}]}),
        (
            "PATCH",
            BATCHES + "/{}/items",
            {"items": [{"client_ref": "\x7f", "status_code": "failed"}]},
        ),
        ("POST", BATCHES + "/{}/cancellation", {"reason": "a\x9f"}),
        ("POST", "/v1/callback-secrets", {"label": "a\nb"}),
        ("PATCH", "/v1/callback-secrets/{}", {"label": "a\rb"}),
        ("POST", "/v1/keys", {"label": "a\x08"}),
    ],
)
async def test_control_characters_in_identifiers(
    api: Api, method: str, path: str, body: object
) -> None:
    """2.10: 400."""
    path = path.format("01920000-0000-7000-8000-000000000000")
    assert problem(await api.call(method, path, body))[0] == 400


@pytest.fixture
async def small() -> AsyncIterator[Api]:
    """An API with small limits."""
    settings = ApiSettings(max_body=2000, max_bulk_body=5000)
    async with open_api(msgspec.structs.replace(Config(), api=settings)) as api:
        yield api


def padded(length: int, text: str = '{"batches":[{}]}') -> bytes:
    return text.encode().ljust(length)


@pytest.mark.parametrize(
    ("path", "length", "status"),
    [
        (BATCHES, 2000, 400),
        (BATCHES, 2001, 413),
        (BATCHES, 50_000, 413),
        (f"{BATCHES}/bulk", 5000, 200),
        (f"{BATCHES}/bulk", 5001, 413),
        (f"{BATCHES}/bulk", 50_000, 413),
    ],
)
async def test_size_limits(small: Api, path: str, length: int, status: int) -> None:
    """2.10: configurable, more for bulk; 413 beyond, whether the length was declared or not."""
    response = await small.post(path, content=padded(length))
    assert response.status_code == status
    if status == 413:
        assert problem(response) == (413, "payload_too_large", "body_too_large")

    async def chunks() -> AsyncIterator[bytes]:
        whole = padded(length)
        for start in range(0, length, 700):
            yield whole[start : start + 700]

    headers = {"X-Reevit-Key": small.key, "Content-Type": "application/json"}
    assert (await small.client.post(path, content=chunks(), headers=headers)).status_code == status


@pytest.mark.parametrize(
    "path",
    [
        "/v1/batches/{batch}/cancellation",
        "/v1/batches/{batch}/callback-redeliveries",
        "/v1/deliveries/{delivery}/cancellation",
        "/v1/deliveries/{delivery}/attempt-now",
        "/v1/callback-secrets",
        "/v1/keys",
    ],
)
async def test_bodies_that_may_be_left_out(api: Api, path: str) -> None:
    """2.10: with or without a content type, and `{}` alike; but no other JSON."""
    batch = await api.ended_batch()
    delivery = await api.delivery_of(batch["id"])
    path = path.format(batch=batch["id"], delivery=delivery["id"])
    attempts: list[httpx.Response] = [
        await api.post(path),
        await api.post(path, content=b""),
        await api.post(path, {}),
        await api.post(path, content=b"", headers={"Content-Type": "text/plain"}),
    ]
    assert all(response.status_code not in (400, 415) for response in attempts)
    assert problem(await api.post(path, content=b"[]"))[0] == 400
    assert problem(await api.post(path, content=b"x", headers={"Content-Type": "a/b"}))[0] == 415


@pytest.mark.parametrize("name", ["created_after", "created_before"])
@pytest.mark.parametrize(
    "written",
    ["", "2026-01-01", "2026-01-01T00:00:00", "1780000000", "now", "2026-01-01T00:00:00 "],
)
async def test_times_in_queries(api: Api, name: str, written: str) -> None:
    """2.9: RFC 3339 with a zone, else 400."""
    for path in (BATCHES, "/v1/deliveries"):
        response = await api.get(f"{path}?{name}={written}")
        assert problem(response) == (400, "invalid_request", f"invalid_{name}")


async def test_queries_are_utf_8(api: Api) -> None:
    """2.10 holds for queries too: a plan id that is no text names nothing."""
    response = await api.get(f"{BATCHES}?plan_id=%ff")
    assert problem(response) == (400, "invalid_request", "invalid_query")
