"""Workers' reports, and the batch that ends with the last of them (contract 4.1, 4.2)."""

from collections import Counter
from itertools import product
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from primeflowd.errors import NotFound, StateRefused
from primeflowd.instants import SECOND
from primeflowd.items import ItemReport, report_items
from primeflowd.lifecycle import NewBatch, NewItem, create_batch
from primeflowd.model import Batch, Item, ItemStatus, new_id
from tests.node import ACME, GLOBEX, START, URL, HandClock, Node, open_node

RESULTS: tuple[ItemStatus, ...] = ("succeeded", "failed", "cancelled")


def expected_status(results: tuple[ItemStatus, ...]) -> str:
    """4.1, as it is written."""
    kinds = set(results)
    if kinds == {"succeeded"}:
        return "succeeded"
    if "succeeded" in kinds:
        return "partial_succeeded"
    if "failed" in kinds:
        return "failed"
    return "cancelled"


async def registered(node: Node, total: int, refs: bool = False) -> Batch:
    items = tuple(NewItem(client_ref=f"ref{k}", input=b"%d" % k) for k in range(total))
    if refs:
        return await node.perform(create_batch, ACME, NewBatch(callback_url=URL, items=items))
    return await node.perform(create_batch, ACME, NewBatch(callback_url=URL, items_total=total))


async def reported(node: Node, batch: Batch, *reports: ItemReport) -> Batch:
    return await node.perform(report_items, ACME, batch.id, reports)


async def items(node: Node, batch: Batch) -> list[Item]:
    return await node.read(lambda tx: tx.items(ACME, batch.id, None, None))


def by_index(index: int, status: ItemStatus = "succeeded") -> ItemReport:
    return ItemReport(sequence_index=index, status=status)


def by_ref(ref: str, status: ItemStatus = "succeeded") -> ItemReport:
    return ItemReport(client_ref=ref, status=status)


# How a batch ends


async def test_every_combination_of_results() -> None:
    """4.1: all of up to four items."""
    async with open_node() as node:
        for total in range(1, 5):
            for results in product(RESULTS, repeat=total):
                batch = await registered(node, total)
                reports = [by_index(k, status) for k, status in enumerate(results)]
                ended = await reported(node, batch, *reports)
                assert ended.status == expected_status(results)
                assert await node.batch(batch.id) == ended


@given(
    results=st.lists(st.sampled_from(RESULTS), min_size=1, max_size=8),
    data=st.data(),
    refs=st.booleans(),
)
async def test_however_the_reports_arrive(
    results: list[ItemStatus], data: st.DataObject, refs: bool
) -> None:
    """4.1, 4.2: in any order and grouping, by index or reference, some more than once."""
    async with open_node() as node:
        batch = await registered(node, len(results), refs)
        order = data.draw(st.permutations(range(len(results))))
        while order:
            size = data.draw(st.integers(1, len(order)))
            group, order = order[:size], order[size:]
            again = data.draw(st.lists(st.sampled_from(group), max_size=2))
            batch = await reported(
                node,
                batch,
                *(
                    by_ref(f"ref{k}", results[k])
                    if refs and data.draw(st.booleans())
                    else by_index(k, results[k])
                    for k in [*group, *again]
                ),
            )
            assert (batch.status == "running") == bool(order)
            assert len(await node.deliveries(batch.id)) == (not order)
        counts = Counter(results)
        assert batch.status == expected_status(tuple(results))
        assert batch.items_succeeded == counts["succeeded"]
        assert batch.items_failed == counts["failed"]
        assert batch.items_cancelled == counts["cancelled"]
        assert [item.status for item in await items(node, batch)] == results
        assert batch.output is not None
        assert batch.output.endswith(
            b',"succeeded":%d,"failed":%d,"cancelled":%d,"total":%d}'
            % (counts["succeeded"], counts["failed"], counts["cancelled"], len(results))
        )


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_workers_that_report_at_once(kind: str, tmp_path: Path) -> None:
    """4.6: each one item, 20 at a time; one of them ends the batch, with one delivery."""
    url = "memory://" if kind == "memory" else f"sqlite:///{tmp_path / 'p.db'}"
    async with open_node(url) as node:
        batch = await registered(node, 20)
        statuses: list[str] = []

        async def work(k: int) -> None:
            statuses.append((await reported(node, batch, by_index(k))).status)

        async with trio.open_nursery() as nursery:
            for k in range(20):
                nursery.start_soon(work, k)

        assert Counter(statuses) == {"running": 19, "succeeded": 1}
        assert (await node.batch(batch.id)).items_succeeded == 20
        assert len(await node.deliveries(batch.id)) == 1


async def test_without_a_callback_url_it_just_ends() -> None:
    """4.6"""
    async with open_node() as node:
        batch = await node.perform(create_batch, ACME, NewBatch(items_total=1))
        assert (await reported(node, batch, by_index(0))).status == "succeeded"
        assert await node.deliveries() == []


# What a report changes


async def test_the_first_report_starts_the_batch() -> None:
    """4.1: once; `started_at` stays."""
    clock = HandClock()
    async with open_node(clock=clock) as node:
        batch = await registered(node, 2)
        for instant in (START + SECOND, START + 2 * SECOND):
            clock.instant = instant
            batch = await reported(node, batch, by_index(0, "running"))
            assert (batch.status, batch.started_at) == ("running", START + SECOND)
            assert batch.updated_at == instant
        assert (batch.items_succeeded, batch.items_failed, batch.items_cancelled) == (0, 0, 0)


async def test_a_report_keeps_what_was_registered() -> None:
    """Section 4: reference and input of an item are its own; output and error are the report's."""
    async with open_node() as node:
        batch = await registered(node, 2, refs=True)
        await reported(
            node,
            batch,
            ItemReport(sequence_index=1, status="failed", output=b"[]", error=b'{"no":1}'),
        )
        _, item = await items(node, batch)
        assert item == Item(
            org_id=ACME,
            batch_id=batch.id,
            sequence_index=1,
            client_ref="ref1",
            status="failed",
            input=b"1",
            output=b"[]",
            error=b'{"no":1}',
            updated_at=START,
        )


async def test_repeating_a_report_changes_nothing() -> None:
    """4.1: a worker that did not hear the answer may ask again."""
    clock = HandClock()
    async with open_node(clock=clock) as node:
        batch = await registered(node, 2)
        first = await reported(
            node, batch, ItemReport(sequence_index=0, status="succeeded", output=b"1")
        )
        before = await items(node, batch)
        clock.instant += SECOND
        again = await reported(
            node, batch, ItemReport(sequence_index=0, status="succeeded", output=b"2")
        )
        assert again == first
        assert await node.batch(batch.id) == first
        assert await items(node, batch) == before


async def test_an_unregistered_item_gets_its_reference_from_a_report() -> None:
    """Section 4: of a batch with `items_total` only; later reports may use the reference."""
    async with open_node() as node:
        batch = await registered(node, 2)
        await reported(node, batch, by_index(0, "running"))
        named = ItemReport(sequence_index=0, client_ref="a", status="running")
        await reported(node, batch, named)
        await reported(node, batch, by_ref("a"))
        # Also within one call.
        ended = await reported(
            node,
            batch,
            ItemReport(sequence_index=1, client_ref="b", status="running"),
            by_ref("b", "failed"),
        )
        assert [(i.client_ref, i.status) for i in await items(node, batch)] == [
            ("a", "succeeded"),
            ("b", "failed"),
        ]
        assert ended.status == "partial_succeeded"


# What is refused


@pytest.mark.parametrize(
    ("code", "report"),
    [
        ("item_not_found", by_index(3)),
        ("item_not_found", by_index(-1)),
        ("item_not_found", by_ref("ref3")),
        ("invalid_item", ItemReport(sequence_index=1, client_ref="ref0", status="failed")),
        ("invalid_item", ItemReport(sequence_index=1, client_ref="other", status="failed")),
        ("invalid_state", by_index(0, "failed")),
        ("invalid_state", by_ref("ref0", "running")),
    ],
)
async def test_a_refused_report_takes_its_whole_request_with_it(
    code: str, report: ItemReport
) -> None:
    """4.1, 2.5: 422, and nothing of it is stored."""
    async with open_node() as node:
        batch = await registered(node, 3, refs=True)
        batch = await reported(node, batch, by_index(0))
        before = await items(node, batch)
        with pytest.raises(StateRefused) as refused:
            await reported(node, batch, by_index(2), report)
        assert refused.value.code == code
        assert await items(node, batch) == before
        assert await node.batch(batch.id) == batch


async def test_two_items_cannot_share_a_reference() -> None:
    """Section 4: refused by name, not by an error of the storage."""
    async with open_node() as node:
        batch = await registered(node, 2)
        with pytest.raises(StateRefused) as refused:
            await reported(
                node,
                batch,
                ItemReport(sequence_index=0, client_ref="a", status="running"),
                ItemReport(sequence_index=1, client_ref="a", status="running"),
            )
        assert refused.value.code == "invalid_item"
        assert await items(node, batch) == []


async def test_a_report_may_not_contradict_one_of_the_same_request() -> None:
    """4.1: an item ends once."""
    async with open_node() as node:
        batch = await registered(node, 2)
        with pytest.raises(StateRefused) as refused:
            await reported(node, batch, by_index(0, "failed"), by_index(0, "succeeded"))
        assert refused.value.code == "invalid_state"
        assert await items(node, batch) == []


async def test_a_batch_that_told_of_no_items_has_none() -> None:
    """Section 4"""
    async with open_node() as node:
        batch = await node.perform(create_batch, ACME, NewBatch())
        with pytest.raises(StateRefused) as refused:
            await reported(node, batch, by_index(0))
        assert refused.value.code == "item_not_found"
        assert (await node.batch(batch.id)).status == "queued"


async def test_another_org_s_batch_is_not_there() -> None:
    """2.4"""
    async with open_node() as node:
        batch = await registered(node, 1)
        for org_id, batch_id in [(GLOBEX, batch.id), (ACME, new_id())]:
            with pytest.raises(NotFound):
                await node.perform(report_items, org_id, batch_id, [by_index(0)])
        assert await items(node, batch) == []
