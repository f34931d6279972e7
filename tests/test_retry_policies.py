"""Retry policies: stored whole, and the right one found (contract 3.4, 3.5)."""

from pathlib import Path

import msgspec
import pytest
import trio

from primeflowd.config import Config, DefaultPolicy, DeliverySettings
from primeflowd.instants import MINUTE
from primeflowd.model import RetryPolicy
from primeflowd.redelivery import redeliver
from primeflowd.retry_policies import EffectivePolicy, effective_policy, put_policy
from tests.node import ACME, GLOBEX, START, HandClock, Node, open_node

DEFAULT = DefaultPolicy()


async def resolved(node: Node, plan_id: str, org_id: str = ACME) -> EffectivePolicy:
    return await node.read(lambda tx: effective_policy(tx, org_id, plan_id, DEFAULT))


async def test_an_upsert_replaces_and_keeps_created_at() -> None:
    """3.4"""
    clock = HandClock()
    async with open_node(clock=clock) as node:
        first = await node.perform(put_policy, ACME, "gold", ("1m", "2m"), 2)
        clock.instant += MINUTE
        second = await node.perform(put_policy, ACME, "gold", ("5m",), 4)
        assert first == RetryPolicy(
            org_id=ACME,
            plan_id="gold",
            delays=("1m", "2m"),
            max_retries=2,
            created_at=START,
            updated_at=START,
        )
        assert second == msgspec.structs.replace(
            first, delays=("5m",), max_retries=4, updated_at=START + MINUTE
        )
        assert await node.read(lambda tx: tx.policies(ACME)) == [second]


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_concurrent_upserts_leave_one_of_them(kind: str, tmp_path: Path) -> None:
    """3.4: 20 concurrent upserts of one plan leave one row that equals one of them."""
    url = "memory://" if kind == "memory" else f"sqlite:///{tmp_path / 'p.db'}"
    async with open_node(url) as node:
        answers: list[RetryPolicy] = []

        async def upsert(n: int) -> None:
            # Delays and retries belong together: a mixture of two upserts would show.
            policy = await node.perform(put_policy, ACME, "gold", (f"{n}m",), n)
            answers.append(policy)

        async with trio.open_nursery() as nursery:
            for n in range(1, 21):
                nursery.start_soon(upsert, n)

        stored = await node.read(lambda tx: tx.policies(ACME))
        assert len(answers) == 20
        assert len(stored) == 1
        assert stored[0] in answers
        assert stored[0].delays == (f"{stored[0].max_retries}m",)


@pytest.mark.parametrize(
    ("of_plan", "of_org", "source"),
    [
        (True, True, "plan"),
        (True, False, "plan"),
        (False, True, "org"),
        (False, False, "default"),
    ],
)
async def test_plan_before_org_before_default(of_plan: bool, of_org: bool, source: str) -> None:
    """3.5"""
    async with open_node() as node:
        if of_plan:
            await node.perform(put_policy, ACME, "gold", ("1m",), 3)
        if of_org:
            await node.perform(put_policy, ACME, "", ("2m",), 5)
        expected = {
            "plan": EffectivePolicy("plan", "gold", ("1m",), 3),
            "org": EffectivePolicy("org", "", ("2m",), 5),
            "default": EffectivePolicy("default", "", ("15m", "1h", "24h"), 3),
        }
        assert await resolved(node, "gold") == expected[source]


async def test_policies_of_others_do_not_apply() -> None:
    """3.5, 3.1: another org's policy, another plan's, and one that differs in case."""
    async with open_node() as node:
        for org_id, plan_id in [(GLOBEX, "gold"), (GLOBEX, ""), (ACME, "silver"), (ACME, "Gold")]:
            await node.perform(put_policy, org_id, plan_id, ("1m",), 1)
        assert (await resolved(node, "gold")).source == "default"


async def test_a_batch_without_a_plan_has_the_org_s_policy() -> None:
    """3.5, 3.1: the plan "" is the org-wide default, not a plan."""
    async with open_node() as node:
        await node.perform(put_policy, ACME, "", ("2m",), 1)
        assert (await resolved(node, "")).source == "org"


async def test_the_default_is_the_daemon_s() -> None:
    """3.5: from the config, where `max_retries` may differ from the number of delays."""
    policy = DefaultPolicy(delays=("3m",), max_retries=7)
    config = Config(delivery=DeliverySettings(default_policy=policy))
    async with open_node(config=config) as node:
        batch = await node.ended()
        [delivery] = await node.deliveries(batch.id)
        assert (delivery.delays, delivery.max_retries) == (("3m",), 7)
        assert delivery.max_attempts == 8
        assert (delivery.policy_source, delivery.policy_plan_id) == ("default", "")


async def test_later_edits_touch_only_later_deliveries() -> None:
    """3.5: copied at creation; a redelivery resolves anew (4.9)."""
    async with open_node() as node:
        await node.perform(put_policy, ACME, "gold", ("1m",), 2)
        batch = await node.ended(plan_id="gold")
        [first] = await node.deliveries(batch.id)
        assert (first.delays, first.max_retries, first.policy_source) == (("1m",), 2, "plan")

        await node.perform(put_policy, ACME, "gold", ("9m", "10m"), 5)
        assert await node.delivery(first.id) == first

        await node.settle(first.id)
        second = await node.perform(redeliver, ACME, batch.id)
        assert (second.delays, second.max_retries) == (("9m", "10m"), 5)

        await node.settle(second.id)
        assert await node.storage.write(lambda tx: tx.delete_policy(ACME, "gold"))
        third = await node.perform(redeliver, ACME, batch.id)
        assert (third.policy_source, third.delays) == ("default", DEFAULT.delays)
        assert (await node.delivery(second.id)).delays == ("9m", "10m")
