"""`/v1/deliveries/shape`: what is counted where, and for whom."""

from operator import methodcaller
from typing import Any

from primeflowd.instants import HOUR, SECOND
from primeflowd.model import OPERATOR_ORG
from primeflowd.testing.factories import make_delivery
from tests.api.harness import Api, problem
from tests.node import ACME, GLOBEX

PATH = "/v1/deliveries/shape"
BUSY = "https://busy.example:443"


async def waiting(api: Api, *overdue: int, org_id: str = ACME, destination: str = BUSY) -> None:
    now = api.clock.now()
    for by in overdue:
        delivery = make_delivery(org_id=org_id, destination=destination, due_at=now - by)
        await api.node.storage.write(methodcaller("insert_delivery", delivery))


def nonzero(found: Any, crowd: Any) -> dict[str, int]:
    pairs = zip(found["buckets"], crowd["counts"], strict=True)
    return {bucket: count for bucket, count in pairs if count}


async def test_ages_count_from_when_it_was_due(api: Api) -> None:
    """Due at this moment is due; a bucket has what has been due for at most its age."""
    await waiting(api, -HOUR, -1, 0, 10 * SECOND, 10 * SECOND + 1, HOUR, 500 * HOUR)
    found = (await api.get(PATH)).json()
    assert found["org_id"] == ACME
    assert nonzero(found, found["total"]) == {
        "later": 2,
        "10s": 2,
        "1m": 1,
        "1h": 1,
        "1d+": 1,
    }
    assert found["total"]["waiting"] == 7
    [busy] = found["largest"]
    assert busy == found["total"] | {"destination": BUSY}
    assert found["destinations"] == 1


async def test_the_largest_are_named(api: Api) -> None:
    await waiting(api, 1, destination="https://quiet.example:443")
    await waiting(api, 1, 1)
    found = (await api.get(PATH + "?limit=1")).json()
    assert [each["destination"] for each in found["largest"]] == [BUSY]
    assert (found["destinations"], found["total"]["waiting"]) == (2, 3)
    assert problem(await api.get(PATH + "?limit=0"))[2] == "invalid_limit"


async def test_whose_deliveries_are_counted(api: Api) -> None:
    """2.2, 2.3: an org's own; all for an operator key, unless it names an org."""
    await waiting(api, 1)
    await waiting(api, 1, 1, org_id=GLOBEX)
    _, operator = await api.make_key(OPERATOR_ORG)
    _, theirs = await api.make_key(GLOBEX)
    _, reader = await api.make_key(scopes=["deliveries:*"])
    counted = {}
    for name, key, org in (
        ("all", operator, None),
        ("named", operator, ACME),
        ("theirs", theirs, None),
    ):
        headers = {} if org is None else {"X-Org-Id": org}
        found = (await api.get(PATH, key=key, headers=headers)).json()
        counted[name] = (found["org_id"], found["total"]["waiting"])
    assert counted == {"all": (None, 3), "named": (ACME, 1), "theirs": (GLOBEX, 2)}
    assert problem(await api.get(PATH, key=theirs, headers={"X-Org-Id": ACME}))[0] == 403
    assert problem(await api.get(PATH, key=reader))[2] == "forbidden"
