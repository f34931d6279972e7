"""When to try again: the retry policy applied to one attempt. Pure.

Source of the rules: contract 3.5, 3.6, 5.1, 5.2 and 5.6. An interrupted attempt (cut short by a
drain) takes a number but uses up no retry.
"""

from functools import lru_cache

import msgspec

from primeflowd.durations import parse_delay
from primeflowd.instants import Micros
from primeflowd.model import Delivery, RetryPolicy, Verdict


@lru_cache(maxsize=4096)
def _micros(delays: tuple[str, ...]) -> tuple[Micros, ...]:
    return tuple(parse_delay(delay) for delay in delays)


def delay_before(retry: int, delays: tuple[str, ...]) -> Micros:
    """How long retry number `retry` (from 1) waits after the end of the attempt before it.

    The last delay repeats where there are more retries than delays (contract 3.3).
    """
    lengths = _micros(delays)
    return lengths[min(retry, len(lengths)) - 1]


def schedule(policy: RetryPolicy) -> tuple[Micros, ...]:
    """The waits of all retries of `policy`, first to last."""
    return tuple(delay_before(k, policy.delays) for k in range(1, policy.max_retries + 1))


def after_attempt(
    delivery: Delivery,
    verdict: Verdict,
    now: Micros,
    *,
    jitter: float = 0.0,
    wait_cap: Micros,
) -> Delivery:
    """The delivery as it stands after one more attempt that ended at `now`. If it has ended with
    that, it is nobody's; else it stays claimed as it was.

    Args:
        jitter: fraction of the delay to add on top, 0.0 or more; the caller draws it.
        wait_cap: most that a receiver may ask for with `verdict.wait`; it never shortens a delay.
    """
    if verdict.decision == "success":
        return after_success(delivery, now)
    count = delivery.attempt_count + 1
    retries_used = count - delivery.interruptions - 1
    if verdict.decision == "fail" or retries_used >= delivery.max_retries:
        return msgspec.structs.replace(
            delivery,
            status="failed",
            # A plugin's verdict may lack the reason that every failed delivery has (contract 5.1).
            failure_reason=verdict.reason or "internal_error",
            failure_detail=verdict.detail,
            attempt_count=count,
            due_at=None,
            claimed_by=None,
            updated_at=now,
            completed_at=now,
        )
    delay = delay_before(retries_used + 1, delivery.delays)
    wait = max(delay, min(verdict.wait or 0, wait_cap))
    return msgspec.structs.replace(
        delivery,
        status="pending",
        failure_reason=verdict.reason,
        failure_detail=verdict.detail,
        attempt_count=count,
        due_at=now + wait + int(delay * jitter),
        updated_at=now,
    )


def after_success(delivery: Delivery, now: Micros) -> Delivery:
    """As after_attempt, where the verdict is a success."""
    return msgspec.structs.replace(
        delivery,
        status="succeeded",
        failure_reason=None,
        failure_detail=None,
        attempt_count=delivery.attempt_count + 1,
        due_at=None,
        claimed_by=None,
        updated_at=now,
        completed_at=now,
    )


def after_interruption(delivery: Delivery, now: Micros) -> Delivery:
    """The delivery after a drain cut its attempt short: on record, and due again at once."""
    return msgspec.structs.replace(
        delivery,
        status="pending",
        attempt_count=delivery.attempt_count + 1,
        interruptions=delivery.interruptions + 1,
        due_at=now,
        updated_at=now,
    )
