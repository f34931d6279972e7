"""Changes made once (contract 2.6)."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
import outcome
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from primeflowd.builtin.memory import MemoryStorage
from primeflowd.config import Config, StorageSettings
from primeflowd.errors import StorageUnavailable
from primeflowd.instants import DAY
from primeflowd.unit import Unit
from tests.api.harness import Api, problem
from tests.api.steps import Steps
from tests.api.test_front_door import IN_PLACE, answer_from, connected, open_door, post
from tests.api.wire import Reply, replies
from tests.node import ACME, GLOBEX, HandClock, open_node

T = TypeVar("T")

BATCHES = "/v1/batches"
ONCE = {"Idempotency-Key": "once"}


async def test_a_repeat_gets_the_same_bytes_and_changes_nothing(api: Api) -> None:
    """2.6: the same status and body bytes, with `Idempotency-Replayed: true`."""
    first = await api.post(BATCHES, {"plan_id": "gold"}, headers=ONCE)
    again = await api.post(BATCHES, {"plan_id": "gold"}, headers=ONCE)
    assert first.status_code == again.status_code == 201
    assert first.content == again.content
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["content-type"] == "application/json"
    assert len((await api.get(BATCHES)).json()["items"]) == 1


async def test_a_repeat_is_answered_as_it_was_then(api: Api) -> None:
    """2.6: also when the object has changed since."""
    first = await api.post(BATCHES, {}, headers=ONCE)
    await api.made(f"{BATCHES}/{first.json()['id']}/completion", {"status": "failed"})
    again = await api.post(BATCHES, {}, headers=ONCE)
    assert again.content == first.content
    assert again.json()["status"] == "queued"


async def test_another_body_is_refused(api: Api) -> None:
    """2.6: 409 `idempotency_key_reused`; bodies are compared as bytes."""
    await api.post(BATCHES, {"plan_id": "gold"}, headers=ONCE)
    for content in (b'{"plan_id":"silver"}', b'{"plan_id": "gold"}'):
        response = await api.post(BATCHES, content=content, headers=ONCE)
        assert problem(response) == (409, "idempotency_error", "idempotency_key_reused")
    assert len((await api.get(BATCHES)).json()["items"]) == 1


async def test_the_scope_is_org_method_path_and_key(api: Api) -> None:
    """2.6: what differs in any of them is another request."""
    _, other = await api.make_key(GLOBEX)
    batch = await api.made(BATCHES, {})
    answers = [
        await api.post(BATCHES, {}, headers=ONCE),
        await api.post(BATCHES, {}, headers={"Idempotency-Key": "Once"}),
        await api.post(BATCHES, {}, headers=ONCE, key=other),
        await api.post(f"{BATCHES}/{batch['id']}/cancellation", {}, headers=ONCE),
    ]
    assert [answer.status_code for answer in answers] == [201] * 4
    assert not any("idempotency-replayed" in answer.headers for answer in answers)


async def test_another_key_of_the_org_gets_the_answer_too(api: Api) -> None:
    """2.6: the API key is no part of the scope."""
    _, colleague = await api.make_key(ACME)
    first = await api.post(BATCHES, {}, headers=ONCE)
    assert (await api.post(BATCHES, {}, headers=ONCE, key=colleague)).content == first.content


async def test_without_a_key_every_request_counts(api: Api) -> None:
    """2.6."""
    assert (await api.post(BATCHES, {})).json() != (await api.post(BATCHES, {})).json()


async def test_only_successes_are_stored(api: Api) -> None:
    """2.6: a refusal may be mended and sent again under the same key."""
    path = f"{BATCHES}/01920000-0000-7000-8000-00000000abcd/cancellation"
    assert (await api.post(path, headers=ONCE)).status_code == 404
    assert (await api.post(BATCHES, {"x": 1}, headers=ONCE)).status_code == 400
    await api.made(BATCHES, {"id": "01920000-0000-7000-8000-00000000abcd"})
    assert (await api.post(path, headers=ONCE)).status_code == 201
    assert (await api.post(BATCHES, {}, headers=ONCE)).status_code == 201


async def test_a_refusal_of_state_leaves_no_trace(api: Api) -> None:
    """2.6, 4.8: 422 is not stored either, and the operation is rolled back with it."""
    batch = await api.ended_batch()
    path = f"{BATCHES}/{batch['id']}/callback-redeliveries"
    assert problem(await api.post(path, headers=ONCE))[0] == 422
    delivery = await api.delivery_of(batch["id"])
    await api.made(f"/v1/deliveries/{delivery['id']}/cancellation")
    first = await api.post(path, headers=ONCE)
    assert first.status_code == 201
    assert (await api.post(path, headers=ONCE)).content == first.content


async def test_answers_are_kept_for_24_hours(api: Api) -> None:
    """2.6: then the key is free, and the old answer is replaced."""
    first = await api.post(BATCHES, {}, headers=ONCE)
    api.clock.instant += DAY - 1
    assert (await api.post(BATCHES, {}, headers=ONCE)).content == first.content
    api.clock.instant += 1
    fresh = await api.post(BATCHES, {"plan_id": "x"}, headers=ONCE)
    assert fresh.status_code == 201
    assert fresh.json()["id"] != first.json()["id"]
    again = await api.post(BATCHES, {"plan_id": "x"}, headers=ONCE)
    assert again.content == fresh.content


@pytest.mark.parametrize("key", ["", "x" * 256, "a\tb", "\u00e9"])
async def test_keys_that_are_none(api: Api, key: str) -> None:
    """2.6: 1 to 255 printable ASCII characters."""
    response = await api.client.post(
        BATCHES,
        json={},
        headers=[
            (b"X-Reevit-Key", api.key.encode()),
            (b"Idempotency-Key", key.encode("latin-1")),
        ],
    )
    assert problem(response) == (400, "invalid_request", "invalid_idempotency_key")


@pytest.mark.parametrize("key", ["x", "x" * 255, "a b/c:'\"{}~!"])
async def test_keys_may_be_any_printable_ascii(api: Api, key: str) -> None:
    """2.6."""
    headers = {"Idempotency-Key": key}
    first = await api.post(BATCHES, {}, headers=headers)
    assert (await api.post(BATCHES, {}, headers=headers)).content == first.content


async def test_two_keys_are_none(api: Api) -> None:
    """2.6: which of two would be the key?"""
    raw = [(b"X-Reevit-Key", api.key.encode())] + [(b"Idempotency-Key", k) for k in (b"a", b"b")]
    response = await api.client.post(BATCHES, json={}, headers=raw)
    assert problem(response)[2] == "invalid_idempotency_key"


class SlowIntake:
    """An intake that waits for a word before it performs."""

    def __init__(self, api: Api) -> None:
        self._inner = api.node.intake
        self.entered = trio.Event()
        self.go = trio.Event()

    async def perform(self, operation: Callable[[Unit], T]) -> T:
        self.entered.set()
        await self.go.wait()
        return await self._inner.perform(operation)

    def submit(
        self, operation: Callable[[Unit], T], on_end: Callable[[outcome.Maybe[T]], None]
    ) -> None:
        # For whoever waits in a task.
        self._inner.submit(operation, on_end)


async def test_a_repeat_while_the_first_still_runs(api: Api) -> None:
    """2.6: 409 `idempotency_in_progress`; and afterwards the answer."""
    intake = SlowIntake(api)
    api.serve(api.services(intake=intake))
    answers: list[Any] = []

    async def first() -> None:
        answers.append(await api.post(BATCHES, {}, headers=ONCE))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(first)
        await intake.entered.wait()
        response = await api.post(BATCHES, {}, headers=ONCE)
        assert problem(response) == (409, "idempotency_error", "idempotency_in_progress")
        intake.go.set()
    assert (await api.post(BATCHES, {}, headers=ONCE)).content == answers[0].content


async def test_a_client_that_hangs_up_frees_the_key(api: Api) -> None:
    """2.6: what was cancelled is no longer running."""
    intake = SlowIntake(api)
    api.serve(api.services(intake=intake))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: api.post(BATCHES, {}, headers=ONCE))
        await intake.entered.wait()
        nursery.cancel_scope.cancel()
    intake.go.set()
    assert (await api.post(BATCHES, {}, headers=ONCE)).status_code == 201


async def test_of_20_concurrent_repeats_one_takes_effect(api: Api) -> None:
    """2.6: the others get its answer or learn that it is still running."""
    answers: list[Any] = []

    async def post() -> None:
        answers.append(await api.post(BATCHES, {}, headers=ONCE))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(post)
    assert {answer.status_code for answer in answers} <= {201, 409}
    assert len({answer.content for answer in answers if answer.status_code == 201}) == 1
    assert len((await api.get(BATCHES)).json()["items"]) == 1


@pytest.mark.parametrize(
    ("path", "field", "start"),
    [("/v1/callback-secrets", "plain_secret", "whsec_"), ("/v1/keys", "key", "pfk_")],
)
async def test_an_answer_that_held_a_secret_is_stored_encrypted(
    api: Api, path: str, field: str, start: str
) -> None:
    """2.6: and replayed in the clear, byte for byte."""
    first = await api.post(path, headers=ONCE)
    assert first.json()[field].startswith(start)
    stored = await api.node.read(lambda tx: tx.answer(ACME, "POST", path, "once"))
    assert stored is not None
    assert stored.sealed
    assert start.encode() not in stored.body
    again = await api.post(path, headers=ONCE)
    assert again.content == first.content
    assert again.headers["idempotency-replayed"] == "true"
    assert len((await api.get(path)).json()["items"]) == (1 if field == "plain_secret" else 2)


async def test_a_sealed_answer_does_not_open_in_another_s_place(api: Api) -> None:
    """2.6: it is bound to its scope; a row moved in the database is a 500, not a leak."""
    first = await api.post("/v1/keys", headers=ONCE)
    stored = await api.node.read(lambda tx: tx.answer(ACME, "POST", "/v1/keys", "once"))
    assert stored is not None
    moved = msgspec.structs.replace(stored, key="other")
    await api.node.storage.write(lambda tx: tx.put_answer(moved))
    response = await api.post("/v1/keys", headers={"Idempotency-Key": "other"})
    assert problem(response)[0] == 500
    assert first.json()["key"] not in response.text


async def test_every_kind_of_change_can_be_repeated(api: Api) -> None:
    """2.6: POST, PATCH and DELETE, whatever the resource."""
    batch = await api.ended_batch()
    delivery = await api.delivery_of(batch["id"])
    with_items = await api.made(BATCHES, {"items_total": 2})
    secret = await api.made("/v1/callback-secrets")
    key_id = (await api.made("/v1/keys"))["id"]
    report = {"items": [{"sequence_index": 0, "status_code": "succeeded"}]}
    for method, path, body in [
        ("POST", "/v1/policies/retry", {"delays": ["1m"]}),
        ("DELETE", "/v1/policies/retry", None),
        ("POST", f"{BATCHES}/bulk", {"batches": [{}, {"x": 1}]}),
        ("PATCH", f"{BATCHES}/{with_items['id']}/items", report),
        ("POST", f"{BATCHES}/{with_items['id']}/completion", {"status": "failed"}),
        ("POST", f"{BATCHES}/{with_items['id']}/cancellation", None),
        ("POST", f"/v1/deliveries/{delivery['id']}/attempt-now", None),
        ("POST", f"/v1/deliveries/{delivery['id']}/cancellation", None),
        ("POST", f"{BATCHES}/{batch['id']}/callback-redeliveries", None),
        ("POST", "/v1/deliveries/recover", {"since": "2026-01-01T00:00:00Z"}),
        ("PATCH", f"/v1/callback-secrets/{secret['id']}", {"label": "x"}),
        ("DELETE", f"/v1/callback-secrets/{secret['id']}", None),
        ("DELETE", f"/v1/keys/{key_id}", None),
    ]:
        first = await api.call(method, path, body, headers=ONCE)
        again = await api.call(method, path, body, headers=ONCE)
        assert first.is_success, (path, first.text)
        assert again.headers.get("idempotency-replayed") == "true", path
        assert (again.status_code, again.content) == (first.status_code, first.content)


async def test_answers_survive_a_restart(tmp_path: Path) -> None:
    """2.6: they are in the storage, not in the process."""
    url = f"sqlite:///{tmp_path / 'p.db'}"
    bodies = []
    for _ in range(2):
        clock = HandClock()
        async with open_node(url, clock) as node:
            api = Api(node, clock)
            api.serve(api.services())
            _, api.key = await api.make_key()
            bodies.append((await api.post(BATCHES, {}, headers=ONCE)).content)
            assert len((await api.get(BATCHES)).json()["items"]) == 1
    assert bodies[0] == bodies[1]
    assert json.loads(bodies[0])["org_id"] == ACME


# Requests that the front door begins and answers without a task


class Client:
    """A connection whose key is known, so that none of what it asks wakes a task."""

    def __init__(self, api: Api, stream: trio.SocketStream, steps: Steps) -> None:
        self._api = api
        self._stream = stream
        self._steps = steps
        self.storage = cast("MemoryStorage", api.node.storage)

    async def send(self, body: bytes, key: bytes = b"once", path: bytes = IN_PLACE) -> None:
        fields = (b"Content-Length: %d" % len(body), b"Idempotency-Key: " + key)
        self._steps.since()
        await self._stream.send_all(post(self._api, *fields, body=body, target=path))

    async def answer(self) -> tuple[Reply, str | None]:
        """And its code, if it is a refusal."""
        [reply] = replies(await answer_from(self._stream))
        assert self._steps.since() == 0
        return reply, json.loads(reply.body).get("code")

    async def ask(self, *request: bytes) -> tuple[Reply, str | None]:
        await self.send(*request)
        return await self.answer()


@pytest.fixture
async def clients(api: Api, clock: MockClock, steps: Steps) -> AsyncIterator[tuple[Client, Client]]:
    """Two, of one org."""
    async with open_door(api) as (address, _), AsyncExitStack() as stack:
        streams = [await stack.enter_async_context(connected(address)) for _ in range(2)]
        for stream in streams:
            await stream.send_all(post(api))
            await answer_from(stream)
        await wait_all_tasks_blocked(0.001)
        yield Client(api, streams[0], steps), Client(api, streams[1], steps)


async def test_a_repeat_without_a_task(api: Api, clients: tuple[Client, Client]) -> None:
    """2.6: the same bytes, whoever repeats it; its head is known by then, and no other answer."""
    first, _ = await clients[0].ask(b"{}")
    for client in (*clients, clients[0]):
        again, _ = await client.ask(b"{}")
        assert (again.status, again.body) == (first.status, first.body) == (201, first.body)
        assert again.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    other, _ = await clients[0].ask(b"{}", b"other")
    bulk, _ = await clients[0].ask(b'{"batches":[{}]}', b"once", b"/v1/batches/bulk")
    assert (other.status, bulk.status) == (201, 200)
    assert other.body != first.body
    assert "idempotency-replayed" not in bulk.headers
    by_task = await api.post(BATCHES, content=b"{}", headers=ONCE)
    assert by_task.content == first.body


async def test_another_body_without_a_task(clients: tuple[Client, Client]) -> None:
    """2.6: of the same length, so that the very same head was answered before."""
    first, _ = await clients[0].ask(b"{} ")
    refused, code = await clients[0].ask(b" {}")
    assert (refused.status, code) == (409, "idempotency_key_reused")
    assert (await clients[0].ask(b"{} "))[0].body == first.body


async def test_a_repeat_of_what_runs_without_a_task(
    api: Api, clients: tuple[Client, Client]
) -> None:
    """2.6: refused at once, by whichever way it comes, until the commit; then answered with it."""
    storage = clients[0].storage
    storage.hold()
    await clients[0].send(b"{}")
    await wait_all_tasks_blocked(0.001)
    refused, code = await clients[1].ask(b"{}")
    assert (refused.status, code) == (409, "idempotency_in_progress")
    by_task = await api.post(BATCHES, content=b"{}", headers=ONCE)
    assert problem(by_task)[2] == "idempotency_in_progress"
    # Its being refused does not free the key of the one that runs.
    assert (await clients[1].ask(b"{}"))[1] == "idempotency_in_progress"
    storage.resume()
    first, _ = await clients[0].answer()
    again, _ = await clients[1].ask(b"{}")
    assert (first.status, again.body) == (201, first.body)


async def test_what_a_task_runs_is_not_run_without_one(
    api: Api, clients: tuple[Client, Client]
) -> None:
    """2.6: the other way round."""
    storage = clients[0].storage
    storage.hold()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: api.post(BATCHES, content=b"{}", headers=ONCE))
        await wait_all_tasks_blocked(0.001)
        assert (await clients[0].ask(b"{}"))[1] == "idempotency_in_progress"
        storage.resume()
    assert (await clients[0].ask(b"{}"))[0].headers["idempotency-replayed"] == "true"


@pytest.mark.parametrize("accepted", [False, True])
async def test_a_failure_without_a_task_frees_the_key(
    api: Api, clients: tuple[Client, Client], accepted: bool
) -> None:
    """2.6: one that is told when the commit fails, and one that is raised before it is tried."""
    storage = clients[0].storage
    if accepted:
        storage.fail_with = StorageUnavailable("disk")
    else:
        storage.hold()
        api.node.intake.reconfigure(
            msgspec.structs.replace(Config(), storage=StorageSettings(max_backlog=0))
        )
    refused, code = await clients[0].ask(b"{}")
    expected = "storage_unavailable" if accepted else "overloaded"
    assert (refused.status, code) == (503, expected)
    storage.fail_with = None
    storage.resume()
    api.node.intake.reconfigure(Config())
    mended, _ = await clients[1].ask(b"{}")
    assert mended.status == 201
    assert "idempotency-replayed" not in mended.headers
