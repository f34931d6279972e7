"""Policies, signing secrets, API keys, stored answers, recoveries and notes."""

from sqlalchemy import delete, select, text, tuple_

from primeflowd.errors import UniqueViolation
from primeflowd.instants import Micros
from primeflowd.model import (
    ApiKey,
    DestinationPolicy,
    Recovery,
    RetryPolicy,
    SigningSecret,
    StoredAnswer,
)
from primeflowd.sql import rows
from primeflowd.sql.session import Session
from primeflowd.sql.statements import upsert
from primeflowd.sql.tables import (
    answers,
    destination_policies,
    keys,
    notes,
    policies,
    recoveries,
    secrets,
)


class AccessStatements(Session):
    # Retry policies

    def policy(self, org_id: str, plan_id: str) -> RetryPolicy | None:
        key = (org_id, plan_id)
        if key not in self._policies:
            found = self._read_hot(self._hot.policy, key)
            self._policies[key] = rows.POLICIES.value(found[0]) if found else None
        return self._policies[key]

    def policies(self, org_id: str) -> list[RetryPolicy]:
        query = select(*rows.POLICIES.columns).where(policies.c.org_id == org_id)
        return [
            rows.POLICIES.value(row)
            for row in self._read_stored(query.order_by(policies.c.plan_id))
        ]

    def put_policy(self, policy: RetryPolicy) -> None:
        self._policies.pop((policy.org_id, policy.plan_id), None)
        self.memo.clear()
        self._write(upsert(self._hot.dialect, policies), rows.POLICIES.mapping(policy))

    def delete_policy(self, org_id: str, plan_id: str) -> bool:
        self._policies.pop((org_id, plan_id), None)
        self.memo.clear()
        return bool(
            self._write(
                delete(policies).where(policies.c.org_id == org_id, policies.c.plan_id == plan_id)
            )
        )

    # Policies of destinations

    def destination_policy(self, destination: str) -> DestinationPolicy | None:
        query = select(*rows.DESTINATION_POLICIES.columns).where(
            destination_policies.c.destination == destination
        )
        found = self._read_stored(self._locking(query))
        return rows.DESTINATION_POLICIES.value(found[0]) if found else None

    def destination_policies(self) -> list[DestinationPolicy]:
        query = select(*rows.DESTINATION_POLICIES.columns)
        query = query.order_by(destination_policies.c.destination)
        return [rows.DESTINATION_POLICIES.value(row) for row in self._read_stored(query)]

    def put_destination_policy(self, policy: DestinationPolicy) -> None:
        self._write(
            upsert(self._hot.dialect, destination_policies),
            rows.DESTINATION_POLICIES.mapping(policy),
        )

    def delete_destination_policy(self, destination: str) -> bool:
        return bool(
            self._write(
                delete(destination_policies).where(
                    destination_policies.c.destination == destination
                )
            )
        )

    # Signing secrets and API keys

    def secret(self, org_id: str, secret_id: str) -> SigningSecret | None:
        query = select(*rows.SECRETS.columns).where(
            secrets.c.id == secret_id, secrets.c.org_id == org_id
        )
        found = self._read_stored(self._locking(query))
        return rows.SECRETS.value(found[0]) if found else None

    def current_secret(self, org_id: str) -> SigningSecret | None:
        if org_id not in self._current_secrets:
            found = self._read_hot(self._hot.current_secret, (org_id,))
            self._current_secrets[org_id] = rows.SECRETS.value(found[0]) if found else None
        return self._current_secrets[org_id]

    def secrets(self, org_id: str | None) -> list[SigningSecret]:
        query = select(*rows.SECRETS.columns)
        if org_id is not None:
            query = query.where(secrets.c.org_id == org_id)
        query = query.order_by(secrets.c.created_at.desc(), secrets.c.id.desc())
        return [rows.SECRETS.value(row) for row in self._read_stored(self._locking(query))]

    def put_secret(self, secret: SigningSecret) -> None:
        self._current_secrets.pop(secret.org_id, None)
        self.memo.clear()
        self._write(upsert(self._hot.dialect, secrets), rows.SECRETS.mapping(secret))

    def key_by_digest(self, digest: str) -> ApiKey | None:
        found = self._read_stored(select(*rows.KEYS.columns).where(keys.c.digest == digest))
        return rows.KEYS.value(found[0]) if found else None

    def keys(self, org_id: str | None) -> list[ApiKey]:
        query = select(*rows.KEYS.columns)
        if org_id is not None:
            query = query.where(keys.c.org_id == org_id)
        query = query.order_by(keys.c.created_at.desc(), keys.c.id.desc())
        return [rows.KEYS.value(row) for row in self._read_stored(query)]

    def put_key(self, key: ApiKey) -> None:
        self._write(upsert(self._hot.dialect, keys), rows.KEYS.mapping(key))

    # Idempotency

    def answer(self, org_id: str, method: str, path: str, key: str) -> StoredAnswer | None:
        scope = (org_id, method, path, key)
        if scope in self._answers:
            return self._answers[scope]
        found = self._read_hot(self._hot.answer, scope)
        return rows.ANSWERS.value(found[0]) if found else None

    def put_answer(self, answer: StoredAnswer, replaces: StoredAnswer | None = None) -> None:
        scope = (answer.org_id, answer.method, answer.path, answer.key)
        if replaces is not None:
            same = answers.c.created_at == replaces.created_at
            if not self._write(delete(answers).where(_scope == scope, same)):
                self._fail(UniqueViolation(f"the answer to {scope} was replaced meanwhile"))
        self._keep(self._answers, scope, answer)

    def sealed_answers(self) -> list[StoredAnswer]:
        query = select(*rows.ANSWERS.columns).where(text("sealed"))
        return [rows.ANSWERS.value(row) for row in self._read(query)]

    def delete_answers(self, created_before: Micros, limit: int) -> int:
        expired = select(*_scope_columns).where(answers.c.created_at < created_before)
        expired = expired.order_by(answers.c.created_at).limit(limit)
        return self._write(delete(answers).where(_scope.in_(expired)))

    # Bulk redelivery

    def recovery(self, org_id: str, recovery_id: str) -> Recovery | None:
        query = select(*rows.RECOVERIES.columns).where(
            recoveries.c.id == recovery_id, recoveries.c.org_id == org_id
        )
        found = self._read_stored(self._locking(query))
        return rows.RECOVERIES.value(found[0]) if found else None

    def running_recoveries(self) -> list[Recovery]:
        query = select(*rows.RECOVERIES.columns).where(recoveries.c.status == "running")
        return [
            rows.RECOVERIES.value(row)
            for row in self._read_stored(query.order_by(recoveries.c.created_at, recoveries.c.id))
        ]

    def put_recovery(self, recovery: Recovery) -> None:
        self._write(upsert(self._hot.dialect, recoveries), rows.RECOVERIES.mapping(recovery))

    # One-off values

    def note(self, name: str) -> str | None:
        found = self._read_stored(select(notes.c.value).where(notes.c.name == name))
        return found[0][0] if found else None

    def put_note(self, name: str, value: str) -> None:
        self._write(upsert(self._hot.dialect, notes), {"name": name, "value": value})


_scope_columns = (answers.c.org_id, answers.c.method, answers.c.path, answers.c.key)
_scope = tuple_(*_scope_columns)
