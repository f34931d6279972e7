"""The journal of a storage in memory, and its small tables: who may do what, and one-off values."""

from collections.abc import Iterable
from typing import Any, TypeVar

from primeflowd.errors import UniqueViolation
from primeflowd.instants import Micros
from primeflowd.model import (
    ApiKey,
    Batch,
    Delivery,
    DestinationPolicy,
    Recovery,
    RetryPolicy,
    SigningSecret,
    StoredAnswer,
)

L = TypeVar("L", Batch, Delivery, SigningSecret, ApiKey)
W = TypeVar("W", Batch, Delivery, SigningSecret, Recovery)


class Journal:
    """Changes of dicts that can be taken back. Values are replaced, never changed in place.

    `memo`: see hookspecs.Tx.
    """

    def __init__(self) -> None:
        self._journal: list[tuple[dict[Any, Any], Any, Any]] = []
        self.memo: dict[Any, Any] = {}

    def begin(self) -> None:
        self._journal.clear()
        self.memo.clear()

    def undo(self) -> None:
        """Take back everything since begin()."""
        for table, key, before in reversed(self._journal):
            if before is None:
                table.pop(key, None)
            else:
                table[key] = before
        self._journal.clear()

    def _put(self, table: dict[Any, Any], key: Any, value: Any) -> None:
        """Set a value, or remove it with None. Nothing else changes a table."""
        self._journal.append((table, key, table.get(key)))
        if value is None:
            table.pop(key, None)
        else:
            table[key] = value

    def _claim_key(self, index: dict[str, str], key: str, owner: str) -> None:
        """Enter `owner` into a unique index."""
        if index.get(key, owner) != owner:
            raise UniqueViolation(f"{key} belongs to {index[key]}")
        self._put(index, key, owner)


class MemoryAccess(Journal):
    """Policies, signing secrets, API keys, stored answers, recoveries and notes."""

    def __init__(self) -> None:
        super().__init__()
        self._policies: dict[tuple[str, str], RetryPolicy] = {}
        self._destination_policies: dict[str, DestinationPolicy] = {}
        self._secrets: dict[str, SigningSecret] = {}
        self._current: dict[str, str] = {}
        self._keys: dict[str, ApiKey] = {}
        self._digests: dict[str, str] = {}
        self._answers: dict[tuple[str, str, str, str], StoredAnswer] = {}
        self._recoveries: dict[str, Recovery] = {}
        self._notes: dict[str, str] = {}

    # Retry policies, signing secrets and API keys

    def policy(self, org_id: str, plan_id: str) -> RetryPolicy | None:
        return self._policies.get((org_id, plan_id))

    def policies(self, org_id: str) -> list[RetryPolicy]:
        return [self._policies[key] for key in sorted(self._policies) if key[0] == org_id]

    def put_policy(self, policy: RetryPolicy) -> None:
        self.memo.clear()
        self._put(self._policies, (policy.org_id, policy.plan_id), policy)

    def delete_policy(self, org_id: str, plan_id: str) -> bool:
        self.memo.clear()
        exists = (org_id, plan_id) in self._policies
        self._put(self._policies, (org_id, plan_id), None)
        return exists

    def destination_policy(self, destination: str) -> DestinationPolicy | None:
        return self._destination_policies.get(destination)

    def destination_policies(self) -> list[DestinationPolicy]:
        return [self._destination_policies[name] for name in sorted(self._destination_policies)]

    def put_destination_policy(self, policy: DestinationPolicy) -> None:
        self._put(self._destination_policies, policy.destination, policy)

    def delete_destination_policy(self, destination: str) -> bool:
        exists = destination in self._destination_policies
        self._put(self._destination_policies, destination, None)
        return exists

    def secret(self, org_id: str, secret_id: str) -> SigningSecret | None:
        return of_org(self._secrets, org_id, secret_id)

    def current_secret(self, org_id: str) -> SigningSecret | None:
        secret_id = self._current.get(org_id)
        return self._secrets[secret_id] if secret_id is not None else None

    def secrets(self, org_id: str | None) -> list[SigningSecret]:
        return newest_first(s for s in self._secrets.values() if org_id in (None, s.org_id))

    def put_secret(self, secret: SigningSecret) -> None:
        self.memo.clear()
        if secret.is_current:
            self._claim_key(self._current, secret.org_id, secret.id)
        elif self._current.get(secret.org_id) == secret.id:
            self._put(self._current, secret.org_id, None)
        self._put(self._secrets, secret.id, secret)

    def key_by_digest(self, digest: str) -> ApiKey | None:
        key_id = self._digests.get(digest)
        return self._keys[key_id] if key_id is not None else None

    def keys(self, org_id: str | None) -> list[ApiKey]:
        return newest_first(key for key in self._keys.values() if org_id in (None, key.org_id))

    def put_key(self, key: ApiKey) -> None:
        self._claim_key(self._digests, key.digest, key.id)
        self._put(self._keys, key.id, key)

    # Idempotency, recoveries, notes

    def answer(self, org_id: str, method: str, path: str, key: str) -> StoredAnswer | None:
        return self._answers.get((org_id, method, path, key))

    def put_answer(self, answer: StoredAnswer, replaces: StoredAnswer | None = None) -> None:
        scope = (answer.org_id, answer.method, answer.path, answer.key)
        if self._answers.get(scope) != replaces:
            raise UniqueViolation(f"another answer was put under {scope}")
        self._put(self._answers, scope, answer)

    def sealed_answers(self) -> list[StoredAnswer]:
        return [answer for answer in self._answers.values() if answer.sealed]

    def delete_answers(self, created_before: Micros, limit: int) -> int:
        expired = sorted(
            (answer.created_at, scope)
            for scope, answer in self._answers.items()
            if answer.created_at < created_before
        )[:limit]
        for _, scope in expired:
            self._put(self._answers, scope, None)
        return len(expired)

    def recovery(self, org_id: str, recovery_id: str) -> Recovery | None:
        return of_org(self._recoveries, org_id, recovery_id)

    def running_recoveries(self) -> list[Recovery]:
        running = [r for r in self._recoveries.values() if r.status == "running"]
        return sorted(running, key=lambda recovery: (recovery.created_at, recovery.id))

    def put_recovery(self, recovery: Recovery) -> None:
        self._put(self._recoveries, recovery.id, recovery)

    def note(self, name: str) -> str | None:
        return self._notes.get(name)

    def put_note(self, name: str, value: str) -> None:
        self._put(self._notes, name, value)


def of_org(table: dict[str, W], org_id: str, key: str) -> W | None:
    value = table.get(key)
    return value if value is not None and value.org_id == org_id else None


def newest_first(values: Iterable[L]) -> list[L]:
    return sorted(values, key=lambda value: (value.created_at, value.id), reverse=True)
