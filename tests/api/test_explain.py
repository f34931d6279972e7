"""`/v1/deliveries/{id}/explain`: what it shows, and to whom."""

from primeflowd.explanation import DestinationNow
from primeflowd.instants import SECOND
from tests.api.harness import Api, problem
from tests.node import GLOBEX, NODE


async def test_a_waiting_delivery(api: Api) -> None:
    """3.5, 5.1: policy and its source, the schedule, the claim, what holds it back."""
    policy = {"plan_id": "nightly", "delays": ["1m", "1h"]}
    await api.made("/v1/policies/retry", policy, 200)
    batch = await api.ended_batch(plan_id="nightly")
    delivery = await api.delivery_of(batch["id"])
    await api.made("/v1/policies/retry", {"plan_id": "nightly", "delays": ["5m"]}, 200)
    host = "https://example.com:443"
    until = api.clock.now() + 9 * SECOND
    api.destinations[host] = DestinationNow(queued=2, window=0, suspended_until=until)

    response = await api.get(f"/v1/deliveries/{delivery['id']}/explain")
    assert response.status_code == 200
    found = response.json()
    assert found["delivery_id"] == delivery["id"]
    assert found["policy"] == {
        "source": "plan",
        "plan_id": "nightly",
        "delays": ["1m", "1h"],
        "max_retries": 2,
        "max_attempts": 3,
    }
    assert found["policy_now"]["delays"] == ["5m"]
    assert [(step["state"], step["delay"]) for step in found["schedule"]] == [
        ("waiting", None),
        ("planned", "1m"),
        ("planned", "1h"),
    ]
    assert found["schedule"][0]["at"] == delivery["next_attempt_at"]
    assert found["node_id"] == NODE
    assert found["claimed_by"]["node_id"] == NODE
    assert found["claimed_by"]["is_this_node"] is True
    assert [(hold["kind"], hold["until"] is not None) for hold in found["held_back_by"]] == [
        ("suspended", True)
    ]
    assert found["destination"]["name"] == host
    assert found["destination"]["queued"] == 2
    assert found["would_go"]


async def test_what_attempts_met(api: Api) -> None:
    """5.5: attempts in B's shape, with their reasons; 5.1: `delivering` while a sender is on it."""
    batch = await api.ended_batch()
    delivery = await api.delivery_of(batch["id"])
    attempt = await api.record(
        delivery["id"], 1, status_code=503, failure_reason="http_status", error_message="no"
    )
    api.delivering.add(delivery["id"])
    found = (await api.get(f"/v1/deliveries/{delivery['id']}/explain")).json()
    assert found["status_code"] == "delivering"
    first, second = found["schedule"][:2]
    assert (first["state"], first["failure_reason_code"]) == ("made", "http_status")
    assert first["attempt"]["id"] == attempt.id
    assert (second["state"], second["attempt"]) == ("under_way", None)


async def test_an_ended_delivery_names_the_one_in_flight(api: Api) -> None:
    """4.8: a redelivery is on its way; the batch's policy now is told all the same."""
    batch = await api.ended_batch()
    delivery = await api.delivery_of(batch["id"])
    await api.node.settle(delivery["id"])
    redelivery = await api.made(f"/v1/batches/{batch['id']}/callback-redeliveries")
    found = (await api.get(f"/v1/deliveries/{delivery['id']}/explain")).json()
    assert found["claimed_by"] is None
    assert redelivery["id"] in found["would_go"][0]
    assert found["policy_now"]["source"] == "default"


async def test_who_may_ask(api: Api) -> None:
    """2.2, 2.4, 2.5: the scope, another org's delivery, what is no id."""
    batch = await api.ended_batch()
    delivery = await api.delivery_of(batch["id"])
    path = f"/v1/deliveries/{delivery['id']}/explain"
    _, reader = await api.make_key(scopes=["deliveries:read"])
    assert (await api.get(path, key=reader)).status_code == 200
    _, writer = await api.make_key(scopes=["batches:*"])
    assert problem(await api.get(path, key=writer))[0] == 403
    _, stranger = await api.make_key(GLOBEX)
    assert problem(await api.get(path, key=stranger))[2] == "not_found"
    assert problem(await api.get("/v1/deliveries/nothing/explain"))[0] == 404
