"""When the attempts of a delivery were made, and when those to come are due. Pure.

Instants to come are the earliest that the policy allows, taking it that every attempt fails at
once: a receiver's `Retry-After`, jitter, a window or a suspension make them later, never earlier.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

import msgspec

from primeflowd.instants import MILLISECOND, Micros
from primeflowd.model import Attempt, Delivery
from primeflowd.retry import delay_before

StepState: TypeAlias = Literal["made", "interrupted", "under_way", "waiting", "planned"]


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt, past or to come.

    Attributes:
        at: when it was made, or when it is due at the earliest.
        delay: the policy's wait before it, as it is spelled; None where none applies.
        hastened: it was made before that wait was over: somebody asked for it.
        attempt: what is on record of it.
    """

    attempt_number: int
    state: StepState
    at: Micros
    delay: str | None = None
    hastened: bool = False
    attempt: Attempt | None = None


def steps(
    delivery: Delivery, attempts: Sequence[Attempt], delivering: bool, now: Micros
) -> Iterator[Step]:
    """All attempts of a delivery: `attempts` on record, ascending, then those to come.

    `delivering`: the first of these is under way.
    """
    delay: str | None = None
    due: Micros | None = None
    used = 0
    for attempt in attempts:
        interrupted = attempt.failure_reason == "interrupted"
        yield Step(
            attempt_number=attempt.attempt_number,
            state="interrupted" if interrupted else "made",
            at=attempt.created_at,
            delay=delay,
            hastened=due is not None and attempt.created_at < due,
            attempt=attempt,
        )
        delay = due = None
        if not interrupted:
            ended = attempt.created_at + attempt.response_time * MILLISECOND
            delay, due = next(
                waits(delivery.delays, delivery.max_retries, ended, used), (None,) * 2
            )
            used += 1
    if delivery.due_at is None:
        return
    number = delivery.attempt_count + 1
    state: StepState = "under_way" if delivering else "waiting"
    yield Step(attempt_number=number, state=state, at=delivery.due_at, delay=delay)
    used = delivery.attempt_count - delivery.interruptions
    first = max(now, delivery.due_at)
    for text, at in waits(delivery.delays, delivery.max_retries, first, used):
        number += 1
        yield Step(attempt_number=number, state="planned", at=at, delay=text)


def waits(
    delays: tuple[str, ...], max_retries: int, first: Micros, used: int = 0
) -> Iterator[tuple[str, Micros]]:
    """The retries from number `used + 1` on: the delay before each as it is spelled, and when it
    is due at the earliest if the attempt before the first of them ends at `first`."""
    at = first
    for retry in range(used + 1, max_retries + 1):
        at += delay_before(retry, delays)
        yield delays[min(retry, len(delays)) - 1], at
