"""Keys, scopes and orgs (contract 2.1 to 2.4)."""

from collections.abc import Callable, Collection
from typing import TypeVar

import outcome
import pytest
import trio.testing
from werkzeug.datastructures import Headers

from primeflowd.access_keys import new_key
from primeflowd.api.auth import Authenticator
from primeflowd.api.errors import Rejected
from primeflowd.hookspecs import Storage, StorageStatistics, Tx
from tests.api.harness import Api, problem
from tests.node import ACME, GLOBEX

T = TypeVar("T")

BATCHES = "/v1/batches"


class CountingStorage:
    """A storage that counts the reads asked of another."""

    def __init__(self, inner: Storage) -> None:
        self._inner = inner
        self.reads = 0

    async def read(self, function: Callable[[Tx], T]) -> T:
        self.reads += 1
        return await self._inner.read(function)

    async def write(
        self, function: Callable[[Tx], T], on_commit: Callable[[T], None] | None = None
    ) -> T:
        return await self._inner.write(function, on_commit)

    def submit(
        self,
        function: Callable[[Tx], T],
        on_commit: Callable[[T], None],
        on_end: Callable[[outcome.Maybe[T]], None],
    ) -> None:
        self._inner.submit(function, on_commit, on_end)

    async def wait_for_others(self) -> None:
        await self._inner.wait_for_others()

    def statistics(self) -> StorageStatistics:
        return self._inner.statistics()


@pytest.mark.parametrize(
    "headers",
    [
        lambda key: {"Authorization": f"Bearer {key}"},
        lambda key: {"Authorization": f"bearer {key}"},
        lambda key: {"X-Reevit-Key": key},
        lambda key: {"X-Reevit-Key": key, "Authorization": f"Bearer {key}"},
    ],
)
async def test_either_header_on_every_endpoint(
    api: Api, headers: Callable[[str], dict[str, str]]
) -> None:
    """2.1: Bearer or X-Reevit-Key, or both if they agree."""
    for path in (BATCHES, "/v1/policies/retry/list"):
        response = await api.call(
            "GET", path, key="", headers=headers(api.key) | {"X-Org-Id": ACME}
        )
        assert response.status_code == 200


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        (lambda key: {}, "missing_api_key"),
        (lambda key: {"Authorization": ""}, "invalid_api_key"),
        (lambda key: {"Authorization": "Bearer"}, "invalid_api_key"),
        (lambda key: {"Authorization": f"Basic {key}"}, "invalid_api_key"),
        (lambda key: {"Authorization": f"Bearer {key}x"}, "invalid_api_key"),
        (lambda key: {"Authorization": f"Bearer {key.upper()}"}, "invalid_api_key"),
        (lambda key: {"Authorization": "Bearer pfk_" + "a" * 40}, "invalid_api_key"),
        (lambda key: {"X-Reevit-Key": ""}, "invalid_api_key"),
        (
            lambda key: {"X-Reevit-Key": key, "Authorization": "Bearer pfk_" + "a" * 40},
            "conflicting_api_keys",
        ),
        (lambda key: {"X-Reevit-Key": key, "Authorization": "Basic eA=="}, "conflicting_api_keys"),
    ],
)
async def test_requests_without_one_valid_key(
    api: Api, headers: Callable[[str], dict[str, str]], code: str
) -> None:
    """2.1: 401, also where two keys differ; 2.5: an envelope, with a challenge."""
    response = await api.call("GET", BATCHES, key="", headers=headers(api.key))
    assert problem(response) == (401, "unauthorized", code)
    assert response.headers["www-authenticate"].startswith("Bearer")


async def test_a_new_key_works_at_once_although_it_was_tried_before(api: Api) -> None:
    """2.1: a miss is never remembered."""
    key, plain = new_key(ACME, ["admin"], None, api.clock.now())
    assert (await api.get(BATCHES, key=plain)).status_code == 401
    await api.node.storage.write(lambda tx: tx.put_key(key))
    assert (await api.get(BATCHES, key=plain)).status_code == 200


async def test_keys_are_looked_up_once_a_second(
    api: Api, autojump_clock: trio.testing.MockClock
) -> None:
    """2.1: a key found is trusted for a second, then asked for again."""
    storage = CountingStorage(api.node.storage)
    authenticator = Authenticator(storage)
    headers = Headers({"X-Reevit-Key": api.key})
    for _ in range(3):
        assert (await authenticator.authenticate(headers)).org_id == ACME
        await trio.sleep(0.3)
    assert storage.reads == 1
    await trio.sleep(0.2)
    await authenticator.authenticate(headers)
    assert storage.reads == 2


async def test_all_that_come_together_ask_once(api: Api) -> None:
    """2.1: a busy client's second is over for all its requests at the same moment."""
    storage = CountingStorage(api.node.storage)
    authenticator = Authenticator(storage)
    headers = Headers({"X-Reevit-Key": api.key})
    found: list[str] = []

    async def ask() -> None:
        found.append((await authenticator.authenticate(headers)).org_id)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask)
    assert (found, storage.reads) == ([ACME] * 5, 1)


async def test_whoever_waits_for_another_to_ask_asks_himself_in_the_end(api: Api) -> None:
    """2.1: the other may be cancelled, and what he did not find may be there by now."""

    class Hanging(CountingStorage):
        async def read(self, function: Callable[[Tx], T]) -> T:
            result = await super().read(function)
            if self.reads == 1:
                await trio.sleep_forever()
            return result

    storage = Hanging(api.node.storage)
    authenticator = Authenticator(storage)
    headers = Headers({"X-Reevit-Key": api.key})
    async with trio.open_nursery() as waiting, trio.open_nursery() as hanging:
        hanging.start_soon(authenticator.authenticate, headers)
        await trio.testing.wait_all_tasks_blocked()
        waiting.start_soon(authenticator.authenticate, headers)
        await trio.testing.wait_all_tasks_blocked()
        assert storage.reads == 1
        hanging.cancel_scope.cancel()
    assert storage.reads == 2


async def test_a_key_is_trusted_for_as_long_as_it_is_remembered(
    api: Api, autojump_clock: trio.testing.MockClock
) -> None:
    """2.1: however well the rest of a request is known."""
    authenticator = Authenticator(api.node.storage)
    headers = Headers({"X-Reevit-Key": api.key})
    key = await authenticator.authenticate(headers)
    assert authenticator.trusts(key)
    authenticator.forget(key.id)
    assert not authenticator.trusts(key)
    key = await authenticator.authenticate(headers)
    await trio.sleep(1)
    assert not authenticator.trusts(key)
    assert await authenticator.authenticate(headers) is key
    assert authenticator.trusts(key)


async def test_whose_key_is_known_without_asking(
    api: Api, autojump_clock: trio.testing.MockClock
) -> None:
    """2.1: storage is not asked, and it is known for no longer than it is trusted."""
    storage = CountingStorage(api.node.storage)
    authenticator = Authenticator(storage)
    headers = Headers({"X-Reevit-Key": api.key})
    spelt_otherwise = Headers({"Authorization": f"bearer {api.key}"})
    assert authenticator.known(headers) is None
    key = await authenticator.authenticate(headers)
    assert authenticator.known(headers) is authenticator.known(spelt_otherwise) is key
    assert authenticator.known(Headers({"X-Reevit-Key": api.key + "x"})) is None
    await trio.sleep(0.99)
    assert authenticator.known(headers) is key
    await trio.sleep(0.01)
    assert authenticator.known(headers) is None
    await authenticator.authenticate(headers)
    authenticator.forget(key.id)
    assert authenticator.known(headers) is None
    assert storage.reads == 2


@pytest.mark.parametrize(
    ("offered", "code"),
    [
        ([], "missing_api_key"),
        ([("Authorization", "Basic eA==")], "conflicting_api_keys"),
    ],
)
async def test_no_key_and_two_keys_are_nobodys(
    api: Api, offered: list[tuple[str, str]], code: str
) -> None:
    """2.1: also where one of the two is known."""
    authenticator = Authenticator(api.node.storage)
    known = Headers({"X-Reevit-Key": api.key})
    await authenticator.authenticate(known)
    headers = Headers([*known, *offered] if offered else [])
    with pytest.raises(Rejected) as refused:
        authenticator.known(headers)
    assert (refused.value.status, refused.value.code) == (401, code)


async def test_a_key_revoked_elsewhere_stops_within_a_second(
    api: Api, autojump_clock: trio.testing.MockClock
) -> None:
    """2.1."""
    key, plain = await api.make_key()
    assert (await api.get(BATCHES, key=plain)).status_code == 200
    revoke_through_other = Api(api.node, api.clock)
    revoke_through_other.key = api.key
    revoke_through_other.serve(revoke_through_other.services())
    response = await revoke_through_other.call("DELETE", f"/v1/keys/{key.id}")
    assert response.status_code == 204
    await trio.sleep(1.01)
    response = await api.get(BATCHES, key=plain)
    assert problem(response) == (401, "unauthorized", "invalid_api_key")


async def test_the_memory_for_keys_is_bounded(api: Api) -> None:
    """The oldest entry makes room; nothing is ever refused for want of it."""
    storage = CountingStorage(api.node.storage)
    authenticator = Authenticator(storage, remembered=2)
    plains = [(await api.make_key())[1] for _ in range(3)]
    for plain in [*plains, *plains[1:], plains[0]]:
        await authenticator.authenticate(Headers({"X-Reevit-Key": plain}))
    assert storage.reads == 4


@pytest.mark.parametrize(
    ("scopes", "allowed"),
    [
        (["admin"], {"GET batches", "POST batches", "GET policies", "POST policies", "stats"}),
        (["batches:*"], {"GET batches", "POST batches"}),
        (["batches:read"], {"GET batches"}),
        (["batches:write"], {"POST batches"}),
        (["policies:read"], {"GET policies"}),
        (["policies:read", "batches:write"], {"GET policies", "POST batches"}),
        (["keys:*"], set()),
    ],
)
async def test_scopes(api: Api, scopes: list[str], allowed: Collection[str]) -> None:
    """2.2: reading needs read, the rest write; `*` both; `admin` everything; else 403."""
    _, plain = await api.make_key(ACME, scopes)
    org = {"X-Org-Id": ACME}
    calls = {
        "GET batches": ("GET", BATCHES, None),
        "POST batches": ("POST", BATCHES, {}),
        "GET policies": ("GET", "/v1/policies/retry/list", None),
        "POST policies": ("POST", "/v1/policies/retry", {"delays": ["1m"]}),
        "stats": ("GET", "/v1/stats", None),
    }
    for name, (method, path, body) in calls.items():
        response = await api.call(method, path, body, key=plain, headers=org)
        if name in allowed:
            assert response.is_success, response.text
        else:
            assert problem(response) == (403, "forbidden", "forbidden")


async def test_scope_is_checked_before_the_body(api: Api) -> None:
    """2.2: whoever may not write learns nothing about the body."""
    _, plain = await api.make_key(ACME, ["batches:read"])
    assert problem(await api.post(BATCHES, content=b"{", key=plain))[0] == 403


@pytest.mark.parametrize("header", ["X-Org-Id", "X-Organization-Id"])
async def test_an_operator_key_acts_for_the_org_it_names(api: Api, header: str) -> None:
    """2.2, 2.3: in either header."""
    _, operator = await api.make_key("*")
    made = await api.post(BATCHES, {}, key=operator, headers={header: GLOBEX})
    assert made.json()["org_id"] == GLOBEX


async def test_an_operator_key_must_name_an_org(api: Api) -> None:
    """2.3: 400 `org_id_required`."""
    _, operator = await api.make_key("*")
    response = await api.get(BATCHES, key=operator)
    assert problem(response) == (400, "invalid_request", "org_id_required")
    assert "details" not in response.json()


async def test_the_key_s_own_org_is_the_default(api: Api) -> None:
    """2.3."""
    assert (await api.post(BATCHES, {}, key=api.key)).json()["org_id"] == ACME


async def test_naming_another_org_than_the_key_s(api: Api) -> None:
    """2.3: 403."""
    response = await api.get(BATCHES, key=api.key, headers={"X-Org-Id": GLOBEX})
    assert problem(response) == (403, "forbidden", "forbidden")


@pytest.mark.parametrize("org_id", ["", "x" * 129, "a\tb", "*", "\u00e9"])
async def test_org_ids_that_are_none(api: Api, org_id: str) -> None:
    """2.3: 1 to 128 printable characters, in UTF-8 where they are not ASCII."""
    _, operator = await api.make_key("*")
    response = await api.client.get(
        BATCHES,
        headers=[
            (b"X-Reevit-Key", operator.encode()),
            (b"X-Org-Id", org_id.encode("latin-1")),
        ],
    )
    assert problem(response) == (400, "invalid_request", "invalid_org_id")


async def test_org_ids_may_be_any_printable_text(api: Api) -> None:
    """2.3."""
    _, operator = await api.make_key("*")
    response = await api.client.post(
        BATCHES,
        json={},
        headers=[(b"X-Reevit-Key", operator.encode()), (b"X-Org-Id", "Čeda & Co".encode())],
    )
    assert response.json()["org_id"] == "Čeda & Co"


async def test_two_org_headers_must_agree(api: Api) -> None:
    """2.3: both and different is a 400."""
    _, operator = await api.make_key("*")
    both = {"X-Org-Id": ACME, "X-Organization-Id": GLOBEX}
    response = await api.get(BATCHES, key=operator, headers=both)
    assert problem(response) == (400, "invalid_request", "conflicting_org_ids")
    both["X-Organization-Id"] = ACME
    assert (await api.get(BATCHES, key=operator, headers=both)).status_code == 200


async def test_another_org_s_object_is_as_good_as_missing(api: Api) -> None:
    """2.4: the same answer but for the request id."""
    batch = await api.ended_batch()
    delivery = await api.delivery_of(batch["id"])
    secret = await api.made("/v1/callback-secrets")
    recovery = await api.made("/v1/deliveries/recover", {"since": "2026-01-01T00:00:00Z"}, 202)
    key_id = (await api.get("/v1/keys")).json()["items"][0]["id"]
    _, stranger = await api.make_key(GLOBEX)
    missing = "01920000-0000-7000-8000-000000000000"
    for method, path, object_id, body in [
        ("GET", "/v1/batches/{}", batch["id"], None),
        ("GET", "/v1/batches/{}/items", batch["id"], None),
        ("GET", "/v1/batches/{}/callback", batch["id"], None),
        (
            "PATCH",
            "/v1/batches/{}/items",
            batch["id"],
            {"items": [{"sequence_index": 0, "status_code": "succeeded"}]},
        ),
        ("POST", "/v1/batches/{}/completion", batch["id"], {"status": "succeeded"}),
        ("POST", "/v1/batches/{}/cancellation", batch["id"], None),
        ("POST", "/v1/batches/{}/callback-redeliveries", batch["id"], None),
        ("GET", "/v1/deliveries/{}", delivery["id"], None),
        ("POST", "/v1/deliveries/{}/cancellation", delivery["id"], None),
        ("POST", "/v1/deliveries/{}/attempt-now", delivery["id"], None),
        ("GET", "/v1/deliveries/recoveries/{}", recovery["id"], None),
        ("GET", "/v1/callback-secrets/{}", secret["id"], None),
        ("GET", "/v1/callback-secrets/{}/public-key", secret["id"], None),
        ("PATCH", "/v1/callback-secrets/{}", secret["id"], {"label": "x"}),
        ("DELETE", "/v1/callback-secrets/{}", secret["id"], None),
        ("DELETE", "/v1/keys/{}", key_id, None),
    ]:
        theirs = await api.call(method, path.format(object_id), body, key=stranger)
        nobodys = await api.call(method, path.format(missing), body, key=stranger)
        no_uuid = await api.call(method, path.format("abc"), body, key=stranger)
        assert problem(theirs) == (404, "not_found", "not_found"), (method, path)
        assert theirs.content == nobodys.content == no_uuid.content


@pytest.mark.parametrize(
    "spelling",
    [
        lambda text: "{" + text + "}",
        lambda text: text.replace("-", ""),
        lambda text: "urn:uuid:" + text,
        lambda text: text + "%0A",
        lambda text: text[:-1],
    ],
)
async def test_ids_that_are_no_uuid_name_nothing(api: Api, spelling: Callable[[str], str]) -> None:
    """2.5: 404."""
    batch = await api.ended_batch()
    assert problem(await api.get(f"{BATCHES}/{spelling(batch['id'])}"))[0] == 404


async def test_upper_case_uuids_are_the_same(api: Api) -> None:
    """2.8."""
    batch = await api.ended_batch()
    assert (await api.get(f"{BATCHES}/{batch['id'].upper()}")).json() == batch
