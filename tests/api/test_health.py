"""Health, readiness and statistics (contract section 8)."""

import msgspec

from tests.api.harness import STATISTICS, Api, problem


async def test_healthz_needs_no_key(api: Api) -> None:
    """8: alive, whatever else is the matter."""
    api.unready = "storage is unavailable"
    response = await api.get("/healthz", key="")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})
    assert response.headers["x-request-id"]


async def test_readyz(api: Api) -> None:
    """8: 503 and why while starting, draining, or without storage."""
    response = await api.get("/readyz", key="")
    assert (response.status_code, response.json()) == (200, {"status": "ready"})
    api.unready = "draining"
    response = await api.get("/readyz", key="")
    assert problem(response) == (503, "unavailable", "not_ready")
    assert "draining" in response.json()["message"]
    assert response.headers["retry-after"] == "1"


async def test_stats_are_for_admins(api: Api) -> None:
    """8: of the node, so no org need be named, not even by an operator key."""
    _, operator = await api.make_key("*")
    for key in (api.key, operator):
        response = await api.get("/v1/stats", key=key)
        assert (response.status_code, response.json()) == (200, msgspec.structs.asdict(STATISTICS))
    assert problem(await api.get("/v1/stats", key=""))[0] == 401
