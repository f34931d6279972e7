"""Batches from registration to their end, and the delivery made with it (contract 4.1 to 4.6)."""

import hmac
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
import trio

from primeflowd.callback_url import parse
from primeflowd.errors import NotFound, StateRefused
from primeflowd.instants import MILLISECOND, SECOND, from_datetime
from primeflowd.items import ItemReport, report_items
from primeflowd.lifecycle import (
    NewBatch,
    NewItem,
    cancel_batch,
    complete,
    create_batch,
    create_batches,
)
from primeflowd.model import Batch, BatchStatus, TerminalStatus, new_id
from primeflowd.redelivery import redeliver
from primeflowd.retry_policies import put_policy
from primeflowd.testing.factories import make_secret
from primeflowd.unit import Unit
from tests.node import ACME, GLOBEX, NODE, START, URL, HandClock, Node, open_node

ENDS: tuple[TerminalStatus, ...] = ("succeeded", "failed", "partial_succeeded", "cancelled")


@pytest.fixture(params=["memory", "sqlite"])
def storage_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path / 'p.db'}"


async def registered(
    node: Node, url: str | None = URL, output: bytes | None = None, total: int | None = None
) -> Batch:
    new = NewBatch(callback_url=url, output=output, items_total=total)
    return await node.perform(create_batch, ACME, new)


async def output_sent(node: Node, batch_id: str) -> str:
    """The `output` in the payload, as text."""
    payload = await node.payload(batch_id)
    assert payload is not None
    return payload.decode().partition('"output":')[2].partition(',"duration_ms"')[0]


# Registration


async def test_a_batch_is_registered_as_given() -> None:
    """Section 4: nothing is delivered before it ends."""
    async with open_node() as node:
        new = NewBatch(
            plan_id="gold",
            callback_url=URL,
            metadata=b'{"a":1.0}',
            items=(NewItem(client_ref="one", input=b"[1]"), NewItem()),
        )
        batch = await node.perform(create_batch, ACME, new)
        assert batch == Batch(
            id=batch.id,
            org_id=ACME,
            plan_id="gold",
            callback_url=URL,
            metadata=b'{"a":1.0}',
            status="queued",
            output=None,
            items_total=2,
            items_succeeded=0,
            items_failed=0,
            items_cancelled=0,
            cancellation_reason=None,
            payload=None,
            created_at=START,
            started_at=None,
            completed_at=None,
            updated_at=START,
        )
        assert await node.batch(batch.id) == batch
        items = await node.read(lambda tx: tx.items(ACME, batch.id, None, None))
        assert [(i.sequence_index, i.client_ref, i.status, i.input) for i in items] == [
            (0, "one", "queued", b"[1]"),
            (1, None, "queued", None),
        ]
        assert await node.deliveries() == []
        assert node.schedule.admitted == []


async def test_a_running_batch_has_started() -> None:
    """4.1: at the instant that the client names, else now."""
    async with open_node() as node:
        now = await node.perform(create_batch, ACME, NewBatch(status="running"))
        then = await node.perform(create_batch, ACME, NewBatch(status="running", started_at=5))
        assert (now.started_at, then.started_at) == (START, 5)


async def test_a_taken_id_is_refused() -> None:
    """Section 4: `batch_exists`, whichever org has it; nothing is overwritten."""
    async with open_node() as node:
        first = await node.perform(create_batch, ACME, NewBatch(id=new_id(), plan_id="gold"))
        for org_id in (ACME, GLOBEX):
            with pytest.raises(StateRefused) as refused:
                await node.perform(create_batch, org_id, NewBatch(id=first.id))
            assert refused.value.code == "batch_exists"
        assert await node.batch(first.id) == first


async def test_each_batch_of_a_bulk_stands_alone() -> None:
    """Section 4: a taken id, also one taken earlier in the same bulk, costs only that batch."""
    async with open_node() as node:
        taken = await registered(node)
        twin = new_id()
        news = [
            NewBatch(callback_url=URL, status="succeeded"),
            NewBatch(id=taken.id, callback_url=URL, status="failed"),
            NewBatch(id=twin, plan_id="first"),
            NewBatch(id=twin, plan_id="second"),
            NewBatch(),
        ]
        results = await node.perform(create_batches, ACME, news)
        assert [r.code if isinstance(r, StateRefused) else "made" for r in results] == [
            "made",
            "batch_exists",
            "made",
            "batch_exists",
            "made",
        ]
        for result in results:
            if isinstance(result, Batch):
                assert await node.batch(result.id) == result
        assert await node.batch(taken.id) == taken
        assert (await node.batch(twin)).plan_id == "first"
        assert [d.is_automatic for d in await node.deliveries()] == [True]


async def test_deliveries_of_a_bulk_differ_where_their_batches_do() -> None:
    """3.5, 4.6: each has the policy of its plan and its own URL, also after others like it."""
    async with open_node() as node:
        await node.perform(put_policy, ACME, "eager", ("1s", "2s"), 7)
        other = "https://other.example/callback"
        wanted = [(URL, ""), (URL, "eager"), (other, "eager"), (URL, ""), (other, "eager")]
        news = [NewBatch(callback_url=url, plan_id=p, status="failed") for url, p in wanted]
        made = await node.perform(create_batches, ACME, news)
        found = []
        for batch in made:
            assert isinstance(batch, Batch)
            [delivery] = await node.deliveries(batch.id)
            assert delivery.destination == parse(delivery.callback_url).destination
            assert (delivery.policy_source == "plan") == (delivery.max_retries == 7)
            found.append((delivery.callback_url, delivery.policy_plan_id))
        assert found == wanted
        assert len({delivery.id for delivery in await node.deliveries()}) == len(wanted)


# Ending


@pytest.mark.parametrize("status", ENDS)
async def test_a_batch_may_be_born_ended(status: TerminalStatus) -> None:
    """4.6, 3.5, 6.3: one call, one callback."""
    async with open_node() as node:
        new = NewBatch(callback_url=URL, status=status, output=b"1")
        batch = await node.perform(create_batch, ACME, new)
        assert (batch.status, batch.completed_at) == (status, START)
        [delivery] = await node.deliveries(batch.id)
        assert delivery.is_automatic
        assert (delivery.status, delivery.due_at) == ("pending", START)
        assert delivery.destination == "https://example.com:443"
        assert delivery.claimed_by == NODE
        assert delivery.signing_secret_id is None
        assert node.schedule.admitted == [(delivery, await node.payload(batch.id))]
        assert await output_sent(node, batch.id) == "1"


async def test_a_batch_may_be_born_ended_long_ago() -> None:
    """4.2: `duration_ms` is never negative."""
    async with open_node() as node:
        new = NewBatch(callback_url=URL, status="failed", completed_at=START - SECOND)
        batch = await node.perform(create_batch, ACME, new)
        assert batch.completed_at == START - SECOND
        assert json.loads((await node.payload(batch.id)) or b"")["duration_ms"] == 0


@pytest.mark.parametrize("status", ENDS)
async def test_completion_ends_a_batch(status: TerminalStatus) -> None:
    """4.1, 4.6"""
    clock = HandClock()
    async with open_node(clock=clock) as node:
        before = await registered(node)
        clock.instant += SECOND
        batch, changed = await node.perform(complete, ACME, before.id, status, b"{}", None)
        assert changed
        assert batch == msgspec.structs.replace(
            before,
            status=status,
            output=b"{}",
            payload=batch.payload,
            completed_at=START + SECOND,
            updated_at=START + SECOND,
        )
        assert await node.payload(batch.id) == batch.payload
        [delivery] = await node.deliveries(batch.id)
        assert delivery.is_automatic
        assert node.schedule.admitted == [(delivery, batch.payload)]


async def test_a_completion_may_name_its_instant() -> None:
    """4.2: `duration_ms` counts to it; the batch was changed now all the same."""
    clock = HandClock()
    async with open_node(clock=clock) as node:
        batch = await registered(node)
        clock.instant += SECOND
        then = START + 250 * MILLISECOND
        batch, _ = await node.perform(complete, ACME, batch.id, "succeeded", None, then)
        assert (batch.completed_at, batch.updated_at) == (then, START + SECOND)
        assert json.loads(batch.payload or b"")["duration_ms"] == 250


@pytest.mark.parametrize("first", ENDS)
async def test_an_ended_batch_never_changes(first: TerminalStatus) -> None:
    """4.1: the same end again changes nothing, another is refused, late reports are too."""
    clock = HandClock()
    async with open_node(clock=clock) as node:
        batch = await registered(node, total=1)
        await node.perform(complete, ACME, batch.id, first, b"1", None)
        ended = await node.batch(batch.id)
        deliveries = await node.deliveries()
        clock.instant += SECOND
        for second in ENDS:
            if second == first:
                again = await node.perform(complete, ACME, batch.id, second, b"2", None)
                assert again[1] is False
                continue
            with pytest.raises(StateRefused) as refused:
                await node.perform(complete, ACME, batch.id, second, b"2", None)
            assert refused.value.code == "invalid_state"
        assert (await node.perform(cancel_batch, ACME, batch.id, "late"))[1] is False
        report = ItemReport(sequence_index=0, status="succeeded")
        with pytest.raises(StateRefused) as refused:
            await node.perform(report_items, ACME, batch.id, [report])
        assert refused.value.code == "invalid_state"
        assert await node.batch(batch.id) == ended
        assert await node.read(lambda tx: tx.items(ACME, batch.id, None, None)) == []
        assert await node.deliveries() == deliveries


async def test_cancelling_a_batch() -> None:
    """4.1: it ends as `cancelled`, with its delivery."""
    async with open_node() as node:
        batch, changed = await node.perform(cancel_batch, ACME, (await registered(node)).id, "dup")
        assert changed
        assert (batch.status, batch.cancellation_reason) == ("cancelled", "dup")
        assert (await node.batch(batch.id)).cancellation_reason == "dup"
        assert len(await node.deliveries(batch.id)) == 1


async def test_another_org_s_batch_is_not_there() -> None:
    """2.4"""
    async with open_node() as node:
        batch = await registered(node)
        for org_id, batch_id in [(GLOBEX, batch.id), (ACME, new_id())]:
            with pytest.raises(NotFound):
                await node.perform(complete, org_id, batch_id, "failed", None, None)
            with pytest.raises(NotFound):
                await node.perform(cancel_batch, org_id, batch_id, None)
        assert await node.batch(batch.id) == batch


# The output and the frozen bytes


async def test_output_is_what_the_client_gave() -> None:
    """4.2, 4.4: verbatim, also when it is null and items could tell more."""
    async with open_node() as node:
        report = ItemReport(sequence_index=0, status="succeeded")
        for given in (b'{"z":9007199254740993,"a":1.0e0}', b"null", b'""'):
            batch = await registered(node, total=2)
            await node.perform(report_items, ACME, batch.id, [report])
            await node.perform(complete, ACME, batch.id, "succeeded", given, None)
            assert await output_sent(node, batch.id) == given.decode()


async def test_output_given_at_registration_stays() -> None:
    """4.2: unless the completion brings another."""
    async with open_node() as node:
        for later, sent in [(None, "[1]"), (b"[2]", "[2]")]:
            batch = await registered(node, output=b"[1]")
            await node.perform(complete, ACME, batch.id, "succeeded", later, None)
            assert await output_sent(node, batch.id) == sent


async def test_output_tells_of_items_where_some_were_reported() -> None:
    """4.2: also at a cancellation half-way."""
    async with open_node() as node:
        batch = await registered(node, total=3)
        report = ItemReport(sequence_index=1, client_ref="b", status="failed", error=b'"no"')
        await node.perform(report_items, ACME, batch.id, [report])
        await node.perform(cancel_batch, ACME, batch.id, None)
        assert json.loads(await output_sent(node, batch.id)) == {
            "items": [
                {
                    "sequence_index": 1,
                    "client_ref": "b",
                    "status_code": "failed",
                    "output": None,
                    "error": "no",
                }
            ],
            "succeeded": 0,
            "failed": 1,
            "cancelled": 0,
            "total": 3,
        }


async def test_output_is_null_otherwise() -> None:
    """4.2"""
    async with open_node() as node:
        batch = await registered(node, total=3)
        await node.perform(complete, ACME, batch.id, "failed", None, None)
        assert await output_sent(node, batch.id) == "null"


async def test_the_test_vector() -> None:
    """Section 4: 311 bytes, and their signature."""
    clock = HandClock(from_datetime(datetime(2026, 5, 6, 10, tzinfo=UTC)))
    async with open_node(clock=clock) as node:
        new = NewBatch(id="01920000-0000-7000-8000-00000000abcd", callback_url=URL)
        batch = await node.perform(create_batch, ACME, new)
        clock.instant += 1500 * MILLISECOND
        output = b'{"items":[],"succeeded":2,"failed":1,"cancelled":0,"total":3}'
        await node.perform(complete, ACME, batch.id, "partial_succeeded", output, None)
        payload = await node.payload(batch.id)
        assert payload is not None
        assert len(payload) == 311
        digest = hmac.new(b"whsec_primeflowd_example_0001", payload, "sha256").hexdigest()
        assert digest == "2ffcaf30617273c5de2e02c955063595df2516be200cd57dec93b5118475c3ba"


async def test_the_payload_is_frozen() -> None:
    """4.5: serialised once; redeliveries have the very same bytes."""
    clock = HandClock()
    async with open_node(clock=clock) as node:
        batch = await node.ended()
        frozen = await node.payload(batch.id)
        assert frozen is not None
        for _ in range(2):
            [*_, latest] = await node.deliveries(batch.id)
            await node.settle(latest.id)
            clock.instant += SECOND
            await node.perform(redeliver, ACME, batch.id)
        assert await node.payload(batch.id) == frozen
        assert [body for _, body in node.schedule.admitted] == [frozen] * 3


# One transaction


@pytest.mark.parametrize("status", ["queued", *ENDS])
async def test_no_callback_url_no_delivery(status: BatchStatus) -> None:
    """4.6"""
    async with open_node() as node:
        batch = await node.perform(create_batch, ACME, NewBatch(status=status))
        if status == "queued":
            batch, _ = await node.perform(complete, ACME, batch.id, "failed", None, None)
        assert batch.payload is None
        assert await node.payload(batch.id) is None
        assert await node.deliveries() == []
        assert node.schedule.admitted == []


async def test_an_end_and_its_delivery_are_stored_together_or_not_at_all(storage_url: str) -> None:
    """4.6: whatever fails after the end takes all of it back."""

    class Failure(Exception):
        pass

    def then_fail(operation: Callable[[Unit], object]) -> Callable[[Unit], None]:
        def both(unit: Unit) -> None:
            operation(unit)
            assert unit.made
            raise Failure

        return both

    async with open_node(storage_url) as node:
        batch = await registered(node, total=1)
        report = ItemReport(sequence_index=0, status="succeeded")
        born = new_id()
        endings: list[Callable[[Unit], object]] = [
            lambda unit: complete(unit, ACME, batch.id, "failed", None, None),
            lambda unit: cancel_batch(unit, ACME, batch.id, None),
            lambda unit: report_items(unit, ACME, batch.id, [report]),
            lambda unit: create_batch(
                unit, ACME, NewBatch(id=born, callback_url=URL, status="failed")
            ),
        ]
        for ending in endings:
            with pytest.raises(Failure):
                await node.intake.perform(then_fail(ending))
            assert await node.batch(batch.id) == batch
            assert await node.read(lambda tx: tx.batch(ACME, born)) is None
            assert await node.deliveries() == []
            assert node.schedule.admitted == []


async def test_concurrent_ends_make_one_delivery(storage_url: str) -> None:
    """4.6: never two automatic ones, and no reader sees an end without its delivery."""
    async with open_node(storage_url) as node:
        batch = await registered(node)
        changes: list[bool] = []
        refusals: list[str] = []

        async def end(status: TerminalStatus) -> None:
            try:
                _, changed = await node.perform(complete, ACME, batch.id, status, None, None)
                changes.append(changed)
            except StateRefused as error:
                refusals.append(error.code)

        async def look() -> None:
            for _ in range(20):
                status, deliveries = await node.read(
                    lambda tx: (
                        tx.batch(ACME, batch.id),
                        tx.in_flight(ACME, batch.id),
                    )
                )
                assert status is not None
                assert (status.status == "queued") == (deliveries is None)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(look)
            for k in range(20):
                nursery.start_soon(end, ENDS[k % 4])

        # The first to come ended it; four more asked for the same end, the others for another.
        assert sorted(changes) == [False] * 4 + [True]
        assert refusals == ["invalid_state"] * 15
        assert [d.is_automatic for d in await node.deliveries()] == [True]
        assert len(node.schedule.admitted) == 1


# The signing secret


async def test_a_delivery_is_pinned_to_the_current_secret() -> None:
    """6.3: of its org, at the moment it is made."""
    async with open_node() as node:
        former, later = make_secret(org_id=ACME), make_secret(org_id=ACME, is_current=False)
        foreign = make_secret(org_id=GLOBEX)

        def put(unit: Unit) -> None:
            for secret in (former, later, foreign):
                unit.tx.put_secret(secret)

        await node.perform(put)
        [first] = await node.deliveries((await node.ended()).id)
        assert first.signing_secret_id == former.id

        def promote(unit: Unit) -> None:
            unit.tx.put_secret(msgspec.structs.replace(former, is_current=False))
            unit.tx.put_secret(msgspec.structs.replace(later, is_current=True))

        await node.perform(promote)
        assert (await node.delivery(first.id)).signing_secret_id == former.id
        await node.settle(first.id)
        second = await node.perform(redeliver, ACME, first.batch_id)
        assert second.signing_secret_id == later.id
