"""`POST /v1/reload`: for whom, and what it answers."""

from primeflowd.errors import ConfigError
from primeflowd.model import OPERATOR_ORG
from primeflowd.reload import Reloaded
from tests.api.harness import Api, problem

PATH = "/v1/reload"
DONE = Reloaded(("log.level",), {"api.bind": "the port is bound at the start"})


async def test_answer(api: Api) -> None:
    """8: the names of what changed, and what takes a restart."""
    _, key = await api.make_key(OPERATOR_ORG)
    api.reloaded = DONE
    response = await api.post(PATH, key=key)
    assert response.status_code == 200
    assert response.json() == {
        "changed": ["log.level"],
        "needs_restart": {"api.bind": "the port is bound at the start"},
    }


async def test_refused(api: Api) -> None:
    """8: why, as the log says it."""
    _, key = await api.make_key(OPERATOR_ORG)
    api.reloaded = ConfigError("a.toml: delivery.timeout: expected a duration")
    response = await api.post(PATH, key=key)
    assert problem(response) == (422, "validation_error", "reload_failed")
    assert response.json()["message"] == (
        "a.toml: delivery.timeout: expected a duration; nothing has changed"
    )


async def test_operator_keys_only(api: Api) -> None:
    """2.2: the configuration is no org's."""
    assert problem(await api.post(PATH)) == (403, "forbidden", "forbidden")
    _, key = await api.make_key(OPERATOR_ORG, ["batches:write"])
    assert problem(await api.post(PATH, key=key)) == (403, "forbidden", "forbidden")
    assert api.reloads == 0


async def test_idempotency(api: Api) -> None:
    """2.6: a repeat has the first answer and no effect; a refusal is not kept."""
    _, key = await api.make_key(OPERATOR_ORG)
    headers = {"Idempotency-Key": "once"}
    api.reloaded = ConfigError("bad")
    assert (await api.post(PATH, key=key, headers=headers)).status_code == 422
    api.reloaded = DONE
    first = await api.post(PATH, key=key, headers=headers)
    api.reloaded = Reloaded((), {})
    second = await api.post(PATH, key=key, headers=headers)
    assert (first.status_code, second.content) == (200, first.content)
    assert "idempotency-replayed" not in first.headers
    assert second.headers["idempotency-replayed"] == "true"
    assert api.reloads == 2
    other = await api.post(PATH, {"a": 1}, key=key, headers=headers)
    assert problem(other) == (409, "idempotency_error", "idempotency_key_reused")
    assert api.reloads == 2
