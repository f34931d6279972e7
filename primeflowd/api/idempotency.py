"""Changes, made once: every POST, PATCH, PUT and DELETE goes through `perform` (contract 2.6).

With an Idempotency-Key the answer is rendered inside the transaction and stored by it, so that the
effect and the record of it are one commit: after a crash either both are there or neither. A
repeat finds the stored answer in its own transaction, whichever process it reaches.

Only successes get this far: refusals are raised, and what raises is rolled back. Answers are kept
for 24 hours; one that is older counts as none and is replaced. Blocks on intake; fails with
whatever it and the operation raise, and with IdempotencyConflict and InvalidRequest.
"""

import hashlib
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Final, TypeVar

import msgspec
import outcome

from primeflowd.api.answer import Answer
from primeflowd.api.call import AnswerScope, Call, Change
from primeflowd.errors import IdempotencyConflict, InvalidRequest
from primeflowd.instants import DAY, Micros
from primeflowd.keyring import Keyring, bound_to_answer
from primeflowd.model import StoredAnswer
from primeflowd.unit import Unit

T = TypeVar("T")

HEADER: Final = "Idempotency-Key"
KEPT_FOR: Final[Micros] = DAY

_REPLAYED: Final = (("Idempotency-Replayed", "true"),)
_LONGEST_KEY: Final = 255


async def perform(
    call: Call,
    operation: Callable[[Unit], T],
    render: Callable[[T], Answer],
    *,
    holds_secret: bool = False,
    by_query: bool = False,
) -> Answer:
    """Make a change and answer it; answer a repeat of it with the same bytes, changing nothing.

    Args:
        operation: a transaction function; it may run more than once.
        render: pure, since it may run in the storage's thread. Gives a 2xx.
        holds_secret: store the answer encrypted.
        by_query: the query names the object, so it belongs to the scope of the key.

    Raises:
        InvalidRequest: `invalid_idempotency_key`.
        IdempotencyConflict: `idempotency_key_reused`, `idempotency_in_progress`.
    """
    key = _key(call)
    if key is None:
        return render(await call.services.intake.perform(operation))
    path = f"{call.path}?{call.query_string}" if by_query else call.path
    scope = (call.org_id, call.method, path, key)
    digest = hashlib.sha256(await call.body()).hexdigest()
    with _alone(call, scope):
        transaction = partial(
            _once, operation, render, scope, digest, call.services.keyring if holds_secret else None
        )
        answer, is_sealed = await call.services.intake.perform(transaction)
    if is_sealed:
        body = call.services.keyring.open(answer.body, bound_to_answer(*scope))
        return msgspec.structs.replace(answer, body=body)
    return answer


def submit(
    call: Call, change: Change, on_end: Callable[[outcome.Maybe[Any]], None]
) -> Callable[[Any], Answer]:
    """As `perform`, for whoever has no task that waits and a call whose body has arrived: `on_end`
    is called later, with what that would raise, or with what the returned function makes the answer
    of.

    Raises:
        InvalidRequest, IdempotencyConflict: as there. Nobody will be told.
        Overloaded, StorageUnavailable: likewise; see Intake.submit.
    """
    key = _key(call)
    if key is None:
        call.services.intake.submit(change.operation, on_end)
        return change.render
    scope = (call.org_id, call.method, call.path, key)
    digest = hashlib.sha256(call.body_now()).hexdigest()
    transaction = partial(_once, change.operation, change.render, scope, digest, None)
    with ExitStack() as unless_submitted:
        unless_submitted.enter_context(_alone(call, scope))

        def ended(result: outcome.Maybe[tuple[Answer, bool]]) -> None:
            # Not before, whether anybody waits for it or not.
            running.close()
            on_end(result)

        call.services.intake.submit(transaction, ended)
        running = unless_submitted.pop_all()
    return _without_seal


def _without_seal(done: tuple[Answer, bool]) -> Answer:
    """What `_once` gives where no answer holds a secret."""
    return done[0]


async def act(
    call: Call, action: Callable[[], Awaitable[T]], render: Callable[[T], Answer]
) -> Answer:
    """As `perform`, for what changes this process and nothing in storage: the record of it follows
    the effect, and after a crash in between a repeat has the effect again.

    Raises:
        InvalidRequest, IdempotencyConflict: as `perform`.
    """
    key = _key(call)
    if key is None:
        return render(await action())
    scope = (call.org_id, call.method, call.path, key)
    digest = hashlib.sha256(await call.body()).hexdigest()
    with _alone(call, scope):
        before = await call.services.intake.perform(partial(_replayed, scope, digest))
        if before is not None:
            return before
        done = await action()
        transaction = partial(_once, lambda _: done, render, scope, digest, None)
        answer, _ = await call.services.intake.perform(transaction)
        return answer


@contextmanager
def _alone(call: Call, scope: AnswerScope) -> Iterator[None]:
    """Refuse what is still running in this process.

    Raises:
        IdempotencyConflict: `idempotency_in_progress`.
    """
    if scope in call.running:
        raise IdempotencyConflict(
            "idempotency_in_progress", "a request with this idempotency key is still running"
        )
    call.running.add(scope)
    try:
        yield
    finally:
        call.running.discard(scope)


def _replayed(scope: AnswerScope, digest: str, unit: Unit) -> Answer | None:
    stored = unit.tx.answer(*scope)
    return None if stored is None else _again(stored, digest, unit)


def _again(stored: StoredAnswer, digest: str, unit: Unit) -> Answer | None:
    """The answer for a repeat, None if it is too old.

    Raises:
        IdempotencyConflict: `idempotency_key_reused`.
    """
    if unit.now - stored.created_at >= KEPT_FOR:
        return None
    if stored.body_digest != digest:
        raise IdempotencyConflict(
            "idempotency_key_reused",
            "this idempotency key was used for a request with another body",
        )
    return Answer(stored.status, stored.body, _REPLAYED)


def _once(
    operation: Callable[[Unit], T],
    render: Callable[[T], Answer],
    scope: AnswerScope,
    digest: str,
    keyring: Keyring | None,
    unit: Unit,
) -> tuple[Answer, bool]:
    """The transaction: the stored answer and whether it is sealed, or a new one, now stored."""
    stored = unit.tx.answer(*scope)
    if stored is not None and (again := _again(stored, digest, unit)) is not None:
        return again, stored.sealed
    answer = render(operation(unit))
    body = keyring.seal(answer.body, bound_to_answer(*scope)) if keyring else answer.body
    org_id, method, path, key = scope
    unit.tx.put_answer(
        StoredAnswer(
            org_id=org_id,
            method=method,
            path=path,
            key=key,
            body_digest=digest,
            status=answer.status,
            body=body,
            sealed=keyring is not None,
            created_at=unit.now,
        ),
        replaces=stored,
    )
    return answer, False


def _key(call: Call) -> str | None:
    keys = call.headers.getlist(HEADER)
    if not keys:
        return None
    key = keys[0]
    if (
        len(keys) > 1
        or not 1 <= len(key) <= _LONGEST_KEY
        or not (key.isascii() and key.isprintable())
    ):
        raise InvalidRequest(
            "invalid_idempotency_key",
            f"an idempotency key has 1 to {_LONGEST_KEY} printable ASCII characters",
        )
    return key
