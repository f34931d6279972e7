"""Promises about policies, secrets, keys, stored answers, recoveries and notes."""

from operator import methodcaller

import pytest
from msgspec.structs import replace

from primeflowd.errors import UniqueViolation
from primeflowd.hookspecs import Tx
from primeflowd.model import new_id
from primeflowd.testing.conformance.base import Conformance, put, store
from primeflowd.testing.factories import (
    NOW,
    ORG,
    make_answer,
    make_destination_policy,
    make_key,
    make_policy,
    make_recovery,
    make_secret,
)


class AccessPromises(Conformance):
    async def test_policies(self) -> None:
        """3.1, 3.2: plan ids are compared byte for byte, delays kept as spelled."""
        async with self.open() as storage:
            whole = make_policy(delays=())
            upper, lower = make_policy(plan_id="A", delays=("1.50h",)), make_policy(plan_id="a")
            accented = make_policy(plan_id="ä")
            foreign = make_policy(org_id="another")
            await store(storage, lower, accented, whole, upper, foreign)

            def look(tx: Tx) -> None:
                assert tx.policy(ORG, "") == whole
                assert tx.policy(ORG, "A") == upper
                assert tx.policy(ORG, "b") is None
                assert tx.policy("another", "") == foreign
                assert tx.policy("another", "A") is None
                assert tx.policies(ORG) == [whole, upper, lower, accented]
                assert tx.policies("nobody") == []

            await storage.read(look)

    async def test_policy_is_replaced_and_deleted(self) -> None:
        """3.4"""
        async with self.open() as storage:
            policy = make_policy()
            changed = replace(policy, delays=("9m",), max_retries=0, updated_at=NOW + 1)
            await store(storage, policy, changed, make_policy(plan_id="kept"))

            def delete(tx: Tx) -> None:
                assert tx.policy(ORG, "") == changed
                assert tx.delete_policy(ORG, "")
                assert tx.policy(ORG, "") is None
                assert not tx.delete_policy(ORG, "")
                assert tx.policy(ORG, "kept") is not None

            await storage.write(delete)

    async def test_destination_policies(self) -> None:
        """What operators set for destinations; one each, in the order of their names."""
        async with self.open() as storage:
            set_up = make_destination_policy()
            full = make_destination_policy(
                destination="https://Ä.example:443",
                settings='{"rate":2.5}',
                sealed_headers=b"\x00\xff",
                disabled_reason="moves, ä",
                disabled_at=NOW,
                failing_since=NOW - 1,
            )
            changed = replace(set_up, failing_since=NOW, updated_at=NOW + 1)

            def fill(tx: Tx) -> None:
                assert tx.destination_policies() == []
                for policy in (full, set_up, changed):
                    tx.put_destination_policy(policy)
                assert tx.destination_policy(set_up.destination) == changed
                assert tx.destination_policy("https://other.example:443") is None

            def delete(tx: Tx) -> None:
                assert tx.destination_policies() == [changed, full]
                assert tx.delete_destination_policy(changed.destination)
                assert not tx.delete_destination_policy(changed.destination)
                assert tx.destination_policy(changed.destination) is None

            await storage.write(fill)
            await storage.write(delete)
            found = await storage.read(methodcaller("destination_policies"))
            assert found == [full]

    async def test_secrets(self) -> None:
        """6.1"""
        async with self.open() as storage:
            old = make_secret(is_current=False, disabled_at=NOW, label="old ü", last_used_at=NOW)
            current = make_secret(created_at=NOW + 1, sealed=bytes(range(256)))
            foreign = make_secret(org_id="another", created_at=NOW + 2)
            await store(storage, current, old, foreign)

            def look(tx: Tx) -> None:
                assert tx.secret(ORG, old.id) == old
                assert tx.secret("another", old.id) is None
                assert tx.secret(ORG, new_id()) is None
                assert tx.current_secret(ORG) == current
                assert tx.current_secret("nobody") is None
                assert tx.secrets(ORG) == [current, old]
                assert tx.secrets(None) == [foreign, current, old]

            await storage.read(look)

    async def test_one_secret_is_current(self) -> None:
        """6.1: exactly one is current."""
        async with self.open() as storage:
            first, second = make_secret(), make_secret(is_current=False)
            await store(storage, first, second)
            with pytest.raises(UniqueViolation):
                await store(storage, make_secret())
            with pytest.raises(UniqueViolation):
                await store(storage, replace(second, is_current=True))

            def promote(tx: Tx) -> None:
                put(tx, replace(first, is_current=False), replace(second, is_current=True))
                assert tx.current_secret(ORG) == replace(second, is_current=True)

            await storage.write(promote)
            assert await storage.read(lambda tx: tx.secret(ORG, first.id)) == replace(
                first, is_current=False
            )

    async def test_keys(self) -> None:
        """2.1, 2.2"""
        async with self.open() as storage:
            key = make_key(scopes=("policies:read", "batches:*"), label="ci")
            operator = make_key(org_id="*", created_at=NOW + 1, scopes=())
            await store(storage, key, operator)
            revoked = replace(key, revoked_at=NOW + 5)
            assert await storage.read(lambda tx: tx.key_by_digest(key.digest)) == key
            assert await storage.read(lambda tx: tx.key_by_digest("00")) is None
            await store(storage, revoked)
            assert await storage.read(lambda tx: tx.key_by_digest(key.digest)) == revoked
            assert await storage.read(lambda tx: tx.keys(ORG)) == [revoked]
            assert await storage.read(lambda tx: tx.keys(None)) == [operator, revoked]
            with pytest.raises(UniqueViolation):
                await store(storage, make_key(digest=key.digest))

    async def test_answers(self) -> None:
        """2.6: the scope is org, method, path and key; the body comes back byte for byte."""
        async with self.open() as storage:
            answer = make_answer(body=bytes(range(256)))
            await store(storage, answer)

            def look(tx: Tx) -> None:
                assert tx.answer(ORG, "POST", "/v1/batches", "key-1") == answer
                assert tx.answer("another", "POST", "/v1/batches", "key-1") is None
                assert tx.answer(ORG, "PATCH", "/v1/batches", "key-1") is None
                assert tx.answer(ORG, "POST", "/v1/batches/", "key-1") is None
                assert tx.answer(ORG, "POST", "/v1/batches", "KEY-1") is None

            await storage.read(look)

    async def test_answer_is_replaced(self) -> None:
        """2.6: after 24 hours a key is free again."""
        async with self.open() as storage:
            old = make_answer()
            new = make_answer(body=b"new", created_at=NOW + 1, status=200, body_digest="ff" * 32)
            newest = replace(new, body=b"newest", sealed=True)
            other = make_answer(key="key-2")
            await store(storage, old, other)
            await storage.write(lambda tx: tx.put_answer(new, replaces=old))

            def replace_twice(tx: Tx) -> None:
                tx.put_answer(other, replaces=other)
                tx.put_answer(newest, replaces=new)

            await storage.write(replace_twice)

            def look(tx: Tx) -> None:
                assert tx.answer(ORG, old.method, old.path, old.key) == newest
                assert tx.answer(ORG, other.method, other.path, other.key) == other

            await storage.read(look)

    async def test_answer_is_not_overwritten(self) -> None:
        """2.6: of two requests under one key the later one finds the answer of the first."""
        async with self.open() as storage:
            first, second = make_answer(), make_answer(body=b"second", created_at=NOW + 1)
            await store(storage, first)
            with pytest.raises(UniqueViolation):
                await store(storage, second)
            gone = make_answer(created_at=NOW - 1)
            for answer in (second, make_answer(key="none such")):
                with pytest.raises(UniqueViolation):
                    await storage.write(methodcaller("put_answer", answer, replaces=gone))

            def twice(tx: Tx) -> None:
                tx.put_answer(make_answer(key="twice"))
                tx.put_answer(make_answer(key="twice"))

            with pytest.raises(UniqueViolation):
                await storage.write(twice)

            def look(tx: Tx) -> None:
                assert tx.answer(ORG, first.method, first.path, first.key) == first
                assert tx.answer(ORG, first.method, first.path, "none such") is None
                assert tx.answer(ORG, first.method, first.path, "twice") is None

            await storage.read(look)

    async def test_sealed_answers(self) -> None:
        async with self.open() as storage:
            plain, sealed = make_answer(), make_answer(key="key-2", sealed=True)
            await store(storage, plain, sealed)
            assert await storage.read(lambda tx: tx.sealed_answers()) == [sealed]

    async def test_expired_answers_are_deleted_oldest_first(self) -> None:
        async with self.open() as storage:
            answers = [make_answer(key=str(index), created_at=NOW + index) for index in range(5)]
            await store(storage, *reversed(answers))

            async def left() -> list[str]:
                def function(tx: Tx) -> list[str]:
                    return [a.key for a in answers if tx.answer(ORG, a.method, a.path, a.key)]

                return await storage.read(function)

            assert await storage.write(lambda tx: tx.delete_answers(NOW + 3, 2)) == 2
            assert await left() == ["2", "3", "4"]
            assert await storage.write(lambda tx: tx.delete_answers(NOW + 3, 2)) == 1
            assert await storage.write(lambda tx: tx.delete_answers(NOW + 3, 2)) == 0
            assert await left() == ["3", "4"]

    async def test_recoveries(self) -> None:
        """5.4"""
        async with self.open() as storage:
            first = make_recovery(destination="https://a:1", failure_reason="timeout", matched=9)
            second = make_recovery(created_at=NOW + 1)
            await store(storage, second, first)
            assert await storage.read(lambda tx: tx.recovery(ORG, first.id)) == first
            assert await storage.read(lambda tx: tx.recovery("another", first.id)) is None
            assert await storage.read(lambda tx: tx.running_recoveries()) == [first, second]
            done = replace(
                first,
                status="completed",
                redelivered=7,
                skipped=2,
                position=new_id(),
                completed_at=NOW + 9,
            )
            await store(storage, done)
            assert await storage.read(lambda tx: tx.recovery(ORG, first.id)) == done
            assert await storage.read(lambda tx: tx.running_recoveries()) == [second]

    async def test_notes(self) -> None:
        async with self.open() as storage:
            assert await storage.read(lambda tx: tx.note("a")) is None
            await storage.write(lambda tx: tx.put_note("a", "1"))
            await storage.write(lambda tx: tx.put_note("a", "2 ü"))
            assert await storage.read(lambda tx: tx.note("a")) == "2 ü"
            assert await storage.read(lambda tx: tx.note("A")) is None
