"""Promises about deliveries, their attempts and their payloads."""

from operator import methodcaller

import pytest
from msgspec.structs import replace

from primeflowd.errors import UniqueViolation
from primeflowd.hookspecs import DeliveryFilter, Page, Tx
from primeflowd.model import Delivery, new_id
from primeflowd.testing.conformance.base import NODE, Conformance, delivery_of, store
from primeflowd.testing.factories import (
    NOW,
    ORG,
    make_attempt,
    make_batch,
    make_delivery,
)


def _failed(**changes: object) -> Delivery:
    values: dict[str, object] = {"status": "failed", "due_at": None, "completed_at": NOW}
    return make_delivery(**values | {"failure_reason": "timeout"} | changes)


class DeliveryPromises(Conformance):
    async def test_delivery_comes_back_as_it_was(self) -> None:
        async with self.open() as storage:
            deliveries = [
                make_delivery(),
                make_delivery(
                    is_automatic=False,
                    status="failed",
                    failure_reason="tls_error",
                    failure_detail="certificate has expired\n'\"",
                    attempt_count=4,
                    interruptions=1,
                    delays=("1.5h", "500ms"),
                    max_retries=0,
                    policy_source="plan",
                    policy_plan_id="plan ü",
                    signing_secret_id=new_id(),
                    due_at=None,
                    claimed_by=NODE,
                    updated_at=NOW + 1,
                    completed_at=NOW + 2,
                ),
                make_delivery(delays=(), max_retries=0),
            ]
            await store(storage, *deliveries)
            for delivery in deliveries:
                assert await delivery_of(storage, delivery.id) == delivery

    async def test_delivery_of_another_org_is_missing(self) -> None:
        """2.4"""
        async with self.open() as storage:
            delivery = make_delivery()
            await store(storage, delivery)
            assert await storage.read(lambda tx: tx.delivery(ORG, delivery.id)) == delivery
            assert await storage.read(lambda tx: tx.delivery("another", delivery.id)) is None
            assert await storage.read(lambda tx: tx.delivery(None, new_id())) is None

    async def test_in_flight(self) -> None:
        """4.8: a waiting retry counts, a delivery that ended does not."""
        async with self.open() as storage:
            batch_id = new_id()
            ended, pending = _failed(batch_id=batch_id), make_delivery(batch_id=batch_id)
            await store(storage, ended)
            assert await storage.read(lambda tx: tx.in_flight(ORG, batch_id)) is None
            await store(storage, pending, make_delivery())
            assert await storage.read(lambda tx: tx.in_flight(ORG, batch_id)) == pending
            assert await storage.read(lambda tx: tx.in_flight("another", batch_id)) is None
            with pytest.raises(UniqueViolation):
                await store(storage, make_delivery(batch_id=batch_id))
            await store(storage, _failed(batch_id=batch_id))

            ends = replace(pending, status="succeeded", due_at=None, completed_at=NOW)
            await storage.write(lambda tx: tx.update_delivery(ends))
            again = make_delivery(batch_id=batch_id)
            await store(storage, again)
            assert await storage.read(lambda tx: tx.in_flight(ORG, batch_id)) == again

    async def test_update_delivery(self) -> None:
        async with self.open() as storage:
            delivery, bystander = make_delivery(claimed_by=NODE), make_delivery()
            changed = replace(
                delivery,
                status="failed",
                failure_reason="cancelled",
                failure_detail="by order",
                attempt_count=2,
                interruptions=1,
                due_at=None,
                updated_at=NOW + 1,
                completed_at=NOW + 1,
            )

            def insert_and_update(tx: Tx) -> Delivery | None:
                tx.insert_delivery(delivery)
                tx.update_delivery(replace(delivery, due_at=NOW + 5))
                return tx.delivery(ORG, delivery.id)

            await store(storage, bystander)
            assert await storage.write(insert_and_update) == replace(delivery, due_at=NOW + 5)
            await storage.write(lambda tx: tx.update_delivery(changed))
            assert await delivery_of(storage, delivery.id) == changed
            assert await delivery_of(storage, bystander.id) == bystander

    async def test_what_cannot_change_of_a_delivery_does_not(self) -> None:
        """3.5: the policy of a delivery is the one that was copied when it was made."""
        async with self.open() as storage:
            delivery = make_delivery()
            await store(storage, delivery)
            other = replace(delivery, org_id="another", delays=("9m",), max_retries=9, created_at=1)
            await storage.write(lambda tx: tx.update_delivery(other))
            assert await delivery_of(storage, delivery.id) == delivery

    async def test_delivery_list_is_newest_first_and_stable(self) -> None:
        """2.9"""
        async with self.open() as storage:
            deliveries = [make_delivery(created_at=NOW + index // 2) for index in range(9)]
            await store(storage, *deliveries, make_delivery(org_id="another"))
            expected = sorted(deliveries, key=lambda d: (d.created_at, d.id), reverse=True)
            seen: list[Delivery] = []
            before = None
            while True:
                page = Page(limit=2, before=before)
                found = await storage.read(methodcaller("deliveries", ORG, DeliveryFilter(), page))
                if not found:
                    break
                seen += found
                before = (found[-1].created_at, found[-1].id)
                await store(storage, make_delivery(created_at=NOW + 100))
            assert seen == expected

    async def test_delivery_filters(self) -> None:
        """5.4"""
        async with self.open() as storage:
            batch_id = new_id()
            first = _failed(created_at=NOW, batch_id=batch_id)
            second = _failed(created_at=NOW + 1, failure_reason="gone")
            third = make_delivery(created_at=NOW + 2, batch_id=batch_id)
            fourth = make_delivery(created_at=NOW + 3, destination="http://[::1]:80")
            foreign = make_delivery(org_id="another", created_at=NOW + 4)
            await store(storage, first, second, third, fourth, foreign)

            async def ids(where: DeliveryFilter) -> list[str]:
                found = await storage.read(lambda tx: tx.deliveries(ORG, where, Page(limit=10)))
                counted = await storage.read(lambda tx: tx.count_deliveries(ORG, where))
                assert counted == len(found)
                return [delivery.id for delivery in found]

            everything = [fourth.id, third.id, second.id, first.id]
            assert await ids(DeliveryFilter()) == everything
            assert await ids(DeliveryFilter(status="failed")) == [second.id, first.id]
            assert await ids(DeliveryFilter(batch_id=batch_id)) == [third.id, first.id]
            assert await ids(DeliveryFilter(batch_id=foreign.batch_id)) == []
            assert await ids(DeliveryFilter(failure_reason="gone")) == [second.id]
            assert await ids(DeliveryFilter(destination="http://[::1]:80")) == [fourth.id]
            assert await ids(DeliveryFilter(created_after=NOW + 1)) == [fourth.id, third.id]
            assert await ids(DeliveryFilter(created_before=NOW + 1)) == [first.id]
            chosen = DeliveryFilter(ids=(first.id, fourth.id, foreign.id), status="failed")
            assert await ids(chosen) == [first.id]
            assert await ids(DeliveryFilter(ids=())) == []

    async def test_failed_after(self) -> None:
        """5.4, recover: each failed delivery of the window once, in an order that can resume."""
        async with self.open() as storage:
            failed = [_failed(created_at=NOW + index) for index in range(6)]
            gone = _failed(created_at=NOW + 2, failure_reason="gone")
            await store(
                storage, *reversed(failed), gone, make_delivery(), _failed(org_id="another")
            )
            window = DeliveryFilter(
                created_after=NOW, created_before=NOW + 5, failure_reason="timeout"
            )
            expected = sorted(delivery.id for delivery in failed[1:5])
            seen: list[str] = []
            while True:
                position = seen[-1] if seen else None
                found = await storage.read(methodcaller("failed_after", ORG, window, position, 3))
                if not found:
                    break
                seen += [delivery.id for delivery in found]
            assert seen == expected

    async def test_attempts_by_delivery(self) -> None:
        """5.5: ascending, with every field as it was; text never holds a NUL."""
        async with self.open() as storage:
            first = make_delivery(claimed_by=NODE)
            second, third = make_delivery(claimed_by=NODE), make_delivery()
            await store(storage, first, second, third)
            attempts = [
                make_attempt(
                    delivery_id=first.id,
                    attempt_number=1,
                    status_code=None,
                    response_body=None,
                    response_time=2**33,
                    error_message="reset by peer",
                    failure_reason="connection_error",
                    signing_secret_id=new_id(),
                    created_at=NOW + 1,
                ),
                make_attempt(delivery_id=first.id, attempt_number=2, response_body="ü\ufffd\t\n"),
            ]
            other = make_attempt(delivery_id=second.id)
            for attempt, after in (
                (attempts[0], first),
                (other, second),
                (attempts[1], replace(first, claimed_by=None)),
            ):
                await storage.write(methodcaller("record_attempt", NODE, attempt, after))
            found = await storage.read(lambda tx: tx.attempts([first.id, second.id, third.id]))
            assert found == {first.id: attempts, second.id: [other]}
            assert await storage.read(lambda tx: tx.attempts([])) == {}

    async def test_payloads(self) -> None:
        """4.5"""
        async with self.open() as storage:
            frozen, running = make_batch(payload=b'{"a":1.0}\xff\x00'), make_batch(payload=None)
            await store(storage, frozen, running)
            first, again, early = (
                make_delivery(batch_id=batch.id) for batch in (frozen, frozen, running)
            )
            foreign = make_delivery(batch_id=frozen.id, org_id="another")
            asked = [first, again, early, foreign, make_delivery()]
            found = await storage.read(lambda tx: tx.payloads(asked))
            assert found == {first.id: frozen.payload, again.id: frozen.payload}
            assert await storage.read(lambda tx: tx.payloads([])) == {}

    async def test_payloads_within_a_size(self) -> None:
        """The first ones that fit, in the order asked for; nothing beyond."""
        async with self.open() as storage:
            payloads = [b"x" * 1_000, b"y" * 2_000, b"z" * 10]
            frozen = [make_batch(status="failed", payload=payload) for payload in payloads]
            for batch in frozen:
                await store(storage, batch)
            asked = [make_delivery(batch_id=batch.id) for batch in frozen]
            ids = [delivery.id for delivery in asked]
            for within, count in ((0, 0), (999, 0), (1_000, 1), (3_009, 2), (3_010, 3)):
                found = await storage.read(methodcaller("payloads", asked, within))
                assert found == dict(zip(ids[:count], payloads, strict=False))
            backwards = await storage.read(lambda tx: tx.payloads(asked[::-1], 2_500))
            assert backwards == {ids[2]: payloads[2], ids[1]: payloads[1]}
