"""The API over a node that sends nothing, and a client to ask it."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import httpx
import msgspec

from primeflowd.access_keys import new_key
from primeflowd.api.app import App, create_app
from primeflowd.api.services import NodeStatistics, Performer, Services
from primeflowd.config import Config
from primeflowd.destination_policies import Turn
from primeflowd.errors import OperatorError
from primeflowd.explanation import DestinationNow
from primeflowd.hookspecs import Storage
from primeflowd.keyring import Keyring
from primeflowd.model import ApiKey, Attempt, Delivery
from primeflowd.reload import Reloaded
from primeflowd.tallies import RequestTally
from primeflowd.testing.factories import make_attempt
from tests.api import documented
from tests.node import ACME, NODE, HandClock, Node, open_node

JSON = {"Content-Type": "application/json"}
STATISTICS = NodeStatistics(
    node_id=NODE,
    is_eldest=True,
    held=3,
    waiting=2,
    due=1,
    sending=0,
    storage_healthy=True,
    storage_backlog=0,
    commits=4,
    operations=5,
    attempts_not_announced=0,
)


class Api:
    """An application, what it was told to say, and what it told others.

    Attributes:
        key: the API key that calls carry unless they say otherwise; admin of ACME.
        delivering: ids of deliveries that senders are on.
        destinations: what the node does for them.
        requests: the answers that it counted.
        reloads: how often it was told to reload.
        reloaded: what comes of it.
        changed: orgs of which it was told that their secrets changed.
        turns: destinations of which it was told that their policies changed, and how.
    """

    def __init__(self, node: Node, clock: HandClock) -> None:
        self.node = node
        self.clock = clock
        self.keyring = Keyring(b"k" * 32)
        self.key = ""
        self.delivering: set[str] = set()
        self.unready: str | None = None
        self.changed: list[str] = []
        self.turns: list[tuple[str, Turn | None]] = []
        self.recoveries = 0
        self.reloads = 0
        self.reloaded: Reloaded | OperatorError = Reloaded((), {})
        self.requests = RequestTally()
        self.destinations: dict[str, DestinationNow] = {}
        self.app: App
        self.client: httpx.AsyncClient

    def services(self, storage: Storage | None = None, intake: Performer | None = None) -> Services:
        """What the daemon would hand to the application."""
        return Services(
            storage=storage or self.node.storage,
            intake=intake or self.node.intake,
            config=self.node.config,
            clock=self.clock,
            keyring=self.keyring,
            delivering=self.delivering.__contains__,
            delivering_now=lambda: self.delivering,
            not_ready=lambda: self.unready,
            secrets_changed=self.changed.append,
            recovery_started=self._count_recovery,
            statistics=lambda: STATISTICS,
            scrape=lambda accept: (b"# " + accept.encode(), "text/plain; charset=utf-8"),
            requests=self.requests,
            node_id=lambda: NODE,
            destination=lambda name: self.destinations.get(name, DestinationNow()),
            destination_changed=lambda name, turn: self.turns.append((name, turn)),
            reload=self._reload,
        )

    def serve(self, services: Services) -> None:
        """Put a new application in the place of the present one, as a restart does."""
        self.app = create_app(services)
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(cast("Any", self.app)), base_url="http://api.test"
        )

    async def make_key(
        self, org_id: str = ACME, scopes: Sequence[str] = ("admin",)
    ) -> tuple[ApiKey, str]:
        """A key as the command line makes one."""
        key, plain = new_key(org_id, scopes, None, self.clock.now())
        await self.node.storage.write(lambda tx: tx.put_key(key))
        return key, plain

    async def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        key: str | None = None,
        headers: dict[str, str] | None = None,
        content: bytes | None = None,
    ) -> httpx.Response:
        """Ask, as the admin of ACME unless another key is given; "" sends none.

        Raises:
            AssertionError: the answer is not what the OpenAPI document says of it.
        """
        sent = {"X-Org-Id": ACME} if key is None else {}
        if key != "":
            sent["Authorization"] = f"Bearer {key or self.key}"
        if content is not None:
            sent |= JSON
        response = await self.client.request(
            method,
            path,
            json=body,
            content=content,
            headers=sent | (headers or {}),
        )
        documented.check(method, response.request.url.path, response)
        return response

    async def get(self, path: str, **more: Any) -> httpx.Response:
        return await self.call("GET", path, **more)

    async def post(self, path: str, body: object = None, **more: Any) -> httpx.Response:
        return await self.call("POST", path, body, **more)

    async def made(self, path: str, body: object = None, status: int = 201) -> Any:
        """What a POST that must succeed answered."""
        response = await self.post(path, body)
        assert response.status_code == status, response.text
        return response.json()

    async def ended_batch(self, **fields: Any) -> Any:
        """A batch that was born ended, with a callback on its way."""
        return await self.made(
            "/v1/batches",
            {"status": "succeeded", "callback_url": "https://example.com/hook"} | fields,
        )

    async def delivery_of(self, batch_id: str) -> Any:
        """The newest delivery of a batch."""
        return (await self.get(f"/v1/batches/{batch_id}/callback")).json()[0]

    async def record(self, delivery_id: str, number: int, **fields: Any) -> Attempt:
        """Put an attempt on record as a sender does, the delivery going on waiting."""
        before = await self.node.delivery(delivery_id)
        attempt = make_attempt(
            org_id=before.org_id, delivery_id=delivery_id, attempt_number=number, **fields
        )
        await self.node.storage.write(
            lambda tx: tx.record_attempt(
                before.claimed_by or NODE, attempt, _with_attempts(before, number)
            )
        )
        return attempt

    async def _reload(self) -> Reloaded:
        self.reloads += 1
        if isinstance(self.reloaded, Exception):
            raise self.reloaded
        return self.reloaded

    def _count_recovery(self) -> None:
        self.recoveries += 1


def _with_attempts(delivery: Delivery, count: int) -> Delivery:
    return msgspec.structs.replace(delivery, attempt_count=count)


def problem(response: httpx.Response) -> tuple[int, str, str]:
    """Status, type and code of an answer that must be an envelope (contract 2.5)."""
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    body = response.json()
    assert set(body) - {"details"} == {"error", "code", "message"}, body
    assert isinstance(body["message"], str)
    assert body["message"]
    if "details" in body:
        assert all(isinstance(value, str) for value in body["details"].values())
    return response.status_code, body["error"], body["code"]


@asynccontextmanager
async def open_api(config: Config | None = None) -> AsyncIterator[Api]:
    """An API on memory storage."""
    clock = HandClock()
    async with open_node(clock=clock, config=config) as node:
        api = Api(node, clock)
        api.serve(api.services())
        _, api.key = await api.make_key()
        yield api
