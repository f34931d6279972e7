"""An org's retry policies: storing one, and finding the one that applies (contract section 3)."""

import msgspec

from primeflowd.config import DefaultPolicy
from primeflowd.hookspecs import Tx
from primeflowd.model import PolicySource, RetryPolicy
from primeflowd.unit import Unit


class EffectivePolicy(msgspec.Struct, frozen=True):
    """The retry policy that applies and where it was found (contract 3.5)."""

    source: PolicySource
    plan_id: str
    delays: tuple[str, ...]
    max_retries: int


def put_policy(
    unit: Unit, org_id: str, plan_id: str, delays: tuple[str, ...], max_retries: int
) -> RetryPolicy:
    """Create or replace a retry policy; `created_at` stays (contract 3.4)."""
    existing = unit.tx.policy(org_id, plan_id)
    policy = RetryPolicy(
        org_id=org_id,
        plan_id=plan_id,
        delays=delays,
        max_retries=max_retries,
        created_at=existing.created_at if existing else unit.now,
        updated_at=unit.now,
    )
    unit.tx.put_policy(policy)
    return policy


def effective_policy(tx: Tx, org_id: str, plan_id: str, default: DefaultPolicy) -> EffectivePolicy:
    """The plan's policy, else the org's, else the daemon's default (contract 3.5)."""
    if plan_id and (policy := tx.policy(org_id, plan_id)):
        return EffectivePolicy("plan", plan_id, policy.delays, policy.max_retries)
    if policy := tx.policy(org_id, ""):
        return EffectivePolicy("org", "", policy.delays, policy.max_retries)
    return EffectivePolicy("default", "", default.delays, default.retries)
