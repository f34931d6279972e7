"""`GET /metrics` and what is counted of requests, behind both servers (contract section 8)."""

import httpx
import pytest

from primeflowd.api.routes import ROUTES
from tests.api.harness import Api, problem
from tests.api.wire import SERVERS, Serve, serving
from tests.node import ACME


@pytest.fixture(params=SERVERS)
def serve(request: pytest.FixtureRequest) -> Serve:
    """Each of the servers."""
    return SERVERS[request.param]


async def test_no_key_is_needed(api: Api, serve: Serve) -> None:
    """8: and the answer is what the daemon gave, in its content type."""
    async with serving(serve, api) as ((host, port), _), httpx.AsyncClient() as client:
        url = f"http://{host}:{port}/metrics"
        response = await client.get(url, headers={"Accept": "application/openmetrics-text"})
        assert (response.status_code, response.text) == (200, "# application/openmetrics-text")
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
        assert response.headers["x-request-id"]
        head = await client.head(url)
        assert (head.status_code, head.content) == (200, b"")
        assert (await client.post(url)).status_code == 405


async def test_requests_are_counted_by_route_and_status(api: Api, serve: Serve) -> None:
    """By template, whatever became of them, and whichever way they were answered."""
    async with serving(serve, api) as ((host, port), _), httpx.AsyncClient() as client:
        url = f"http://{host}:{port}"
        key = {"Authorization": f"Bearer {api.key}", "X-Org-Id": ACME}
        created = await client.post(f"{url}/v1/batches", json={}, headers=key)
        await client.get(f"{url}/v1/batches/{created.json()['id']}", headers=key)
        await client.get(f"{url}/v1/batches/nobody", headers=key)
        await client.post(f"{url}/v1/batches", json={"status": "lost"}, headers=key)
        await client.post(f"{url}/v1/batches", json={})
        await client.get(f"{url}/no/such/{'x' * 100}")
        await client.delete(f"{url}/v1/batches")
        await client.request("BREW", f"{url}/v1/batches")  # no method, so no request
        await client.get(f"{url}/healthz")
    assert api.requests.counts == {
        ("POST", "/v1/batches", 201): 1,
        ("GET", "/v1/batches/<batch_id>", 200): 1,
        ("GET", "/v1/batches/<batch_id>", 404): 1,
        ("POST", "/v1/batches", 400): 1,
        ("POST", "/v1/batches", 401): 1,
        ("GET", "none", 404): 1,
        ("DELETE", "none", 405): 1,
        ("GET", "/healthz", 200): 1,
    }
    templates = {route.path for route in ROUTES} | {"/healthz", "none"}
    assert {route for _, route, _ in api.requests.counts} <= templates


async def test_an_unknown_format_is_no_error(api: Api) -> None:
    response = await api.get("/metrics", key="", headers={"Accept": "image/png;version=x"})
    assert response.status_code == 200
    assert problem(await api.get("/metrics/", key=""))[0] == 404
