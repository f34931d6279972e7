"""The scheduler: what is held, what is given back, and when things start."""

from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs
from trio.testing import MockClock

from primeflowd.builtin.memory import MemoryStorage
from primeflowd.clock import SystemClock
from primeflowd.config import DeliverySettings
from primeflowd.destination import Held
from primeflowd.durations import Duration
from primeflowd.errors import StorageUnavailable
from primeflowd.hookspecs import Tx
from primeflowd.instants import MINUTE, SECOND, Micros
from primeflowd.intake import Schedule
from primeflowd.redelivery import attempt_now, cancel_delivery
from primeflowd.sender import Desk
from primeflowd.testing.factories import ORG
from tests.network import pairs
from tests.sending import (
    BODY,
    HANGS,
    ILL,
    NODE,
    OK,
    Answer,
    Line,
    destination,
    open_line,
)

TICK: Micros = SECOND // 20

T = TypeVar("T")


@asynccontextmanager
async def running(**changes: Any) -> AsyncIterator[Line]:
    async with open_line(**changes) as line, trio.open_nursery() as nursery:
        line.start(nursery)
        yield line
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def scheduling(**changes: Any) -> AsyncIterator[Line]:
    """Without senders: what is due stays in the queues."""
    async with open_line(**changes) as line, trio.open_nursery() as nursery:
        nursery.start_soon(line.scheduler.run)
        yield line
        nursery.cancel_scope.cancel()


async def taken(line: Line) -> Held:
    held = await line.destinations.take()
    assert held is not None
    return held


async def ended(line: Line, held: Held) -> None:
    """What a sender does at the end of a delivery."""
    after = msgspec.structs.replace(
        held.delivery, status="succeeded", due_at=None, claimed_by=None, completed_at=line.now()
    )
    await line.storage.write(lambda tx: tx.update_delivery(after))
    line.destinations.done(held, False, line.now())
    line.scheduler.settle(held, after)


def test_what_intake_and_senders_need() -> None:
    """mypy compares the signatures."""

    async def main() -> None:
        async with open_line() as line:
            needs: tuple[Schedule, Desk] = (line.scheduler, line.scheduler)
            assert needs[0].node_for(destination("a")) == NODE

    trio.run(main)


async def test_nothing_starts_before_it_is_due(autojump_clock: MockClock) -> None:
    """3.6: never early, and at most a tick late, whether it was within the horizon or not."""
    async with running(horizon=Duration("30s")) as line:
        delays = [0.0, 0.001, 0.049, 0.05, 1.0, 29.9, 30.0, 30.1, 60.03, 300.0]
        due = {}
        for delay in delays:
            (delivery_id,) = await line.add(due_in=delay)
            due[delivery_id] = line.now() + round(delay * SECOND)
        await trio.sleep(400)
        started = {
            dict(pairs(request.lines))["Primeflow-Delivery-Id"]: instant
            for instant, request in line.wire.sent
        }
        assert started.keys() == due.keys()
        for delivery_id, instant in due.items():
            late = started[delivery_id] - instant
            assert late >= 0
            if instant > line.begun + 5 * SECOND:  # what is due at once waits for the next claim
                assert late <= TICK + SECOND // 100


async def test_what_is_due_beyond_the_horizon_is_not_held(autojump_clock: MockClock) -> None:
    async with scheduling(horizon=Duration("10s")) as line:
        (soon,) = await line.add(due_in=9)
        (later,) = await line.add(due_in=30)
        await trio.sleep(1)
        assert line.scheduler.holds(soon)
        assert line.scheduler.waiting() == 1
        assert not line.scheduler.holds(later)
        assert (await line.delivery(later)).claimed_by is None
        await trio.sleep(26)
        assert line.scheduler.holds(later)
        assert (len(line.scheduler), line.scheduler.waiting()) == (2, 1)


async def test_overdue_deliveries_are_attempted_once_each(autojump_clock: MockClock) -> None:
    """5.6: soon after a start, and no burst per delivery however long it was down."""
    async with open_line() as line, trio.open_nursery() as nursery:
        ids = []
        for host in "abc":
            ids += await line.add(host, count=40, due_in=-7 * 24 * 3600, claimed_by="node-0")
        line.wire.answers["a"] = Answer(404)
        await line.storage.write(lambda tx: tx.release_lost())
        line.start(nursery)
        await trio.sleep(10)
        sent = Counter(
            dict(pairs(request.lines))["Primeflow-Delivery-Id"] for _, request in line.wire.sent
        )
        assert sent == dict.fromkeys(ids, 1)
        await line.check_claims()
        nursery.cancel_scope.cancel()


async def test_a_thousand_through_room_for_fifty(autojump_clock: MockClock) -> None:
    """All attempted exactly once, each destination's in the order they were due."""
    async with open_line(active_limit=50) as line, trio.open_nursery() as nursery:
        hosts = [f"h{number}" for number in range(20)]
        expected = {}
        for host in hosts:
            expected[host] = await line.add(host, count=50, due_in=-60)
            line.wire.answers[host] = Answer(after=0.01)
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, len(line.scheduler))
                await trio.sleep(0.005)

        nursery.start_soon(watch)
        line.start(nursery)
        await trio.sleep(60)
        assert most == 50
        started = {
            dict(pairs(request.lines))["Primeflow-Delivery-Id"]: instant
            for instant, request in line.wire.sent
        }
        assert len(started) == len(line.wire.sent) == 1000
        for host in hosts:
            instants = [started[delivery_id] for delivery_id in expected[host]]
            assert instants == sorted(instants)
        assert len(line.scheduler) == 0
        nursery.cancel_scope.cancel()


async def test_room_that_becomes_free_is_used_soon(autojump_clock: MockClock) -> None:
    """Not only at the next regular claim: also where all of it became free at once, right after
    the last claim."""
    async with running(active_limit=10, destination_share=1.0) as line:
        line.wire.answers["a"] = OK
        await line.add(count=100, due_in=-1)
        await trio.sleep(6)
        line.wire.sent.clear()
        await line.add(count=100, due_in=-1)
        await trio.sleep(5.3)  # a regular claim finds them at the latest
        first = line.wire.times("a")[0]
        await trio.sleep(5)
        assert len(line.wire.sent) == 100
        assert line.wire.times("a")[-1] - first <= 1.5 * SECOND


async def test_limit_and_share_hold_for_what_is_claimed(autojump_clock: MockClock) -> None:
    async with scheduling(active_limit=40, destination_share=0.25) as line:
        await line.add("big", count=100, due_in=-60)
        for number in range(30):
            await line.add(f"h{number}", count=2, due_in=-30)
        await trio.sleep(30)
        assert len(line.scheduler) == 40
        claims = await line.claims()
        assert len(claims[NODE]) == 40
        held = Counter(
            delivery.destination for delivery in await line.deliveries() if delivery.claimed_by
        )
        assert held[destination("big")] == 10


async def test_limit_and_share_hold_for_what_comes_in(autojump_clock: MockClock) -> None:
    """More may be promised than there is room for; the surplus is given back, not kept."""
    async with scheduling(active_limit=40, destination_share=0.25) as line:
        await trio.sleep(1)
        await line.submit("big", count=25)
        assert len(line.scheduler) == 10
        await trio.sleep(1)
        await line.check_claims()
        for number in range(8):
            await line.submit(f"h{number}", count=9)
        assert len(line.scheduler) == 40
        await trio.sleep(1)
        await line.check_claims()


async def test_surplus_is_claimed_again_later(autojump_clock: MockClock) -> None:
    async with running(active_limit=20, destination_share=0.5) as line:
        line.wire.answers["a"] = Answer(after=0.1)
        await trio.sleep(1)
        for _ in range(5):
            await line.submit("a", count=30)
        await trio.sleep(40)
        assert len(line.wire.sent) == 150
        assert {one.status for one in await line.deliveries()} == {"succeeded"}
        assert len(line.scheduler) == 0


async def test_what_waits_in_storage_is_not_overtaken(autojump_clock: MockClock) -> None:
    """More comes in than can be sent, and takes no place from what came before."""
    limits: dict[str, Any] = {"active_limit": 20, "destination_share": 1.0}
    async with running(window_initial=1, window_max=1, **limits) as line:
        line.wire.answers["a"] = Answer(after=0.023)  # some 40 in a second
        await trio.sleep(1)
        old = await line.submit("a", count=200)
        for _ in range(100):
            await trio.sleep(0.0531)
            await line.submit("a", count=5)
        sent = [
            dict(pairs(request.lines))["Primeflow-Delivery-Id"] for _, request in line.wire.sent
        ]
        assert len(sent) > 210
        assert set(sent[:200]) == set(old)


async def test_a_destination_that_lags_does_not_send_others_the_long_way(
    autojump_clock: MockClock,
) -> None:
    """What comes in for others is held at once, though one destination's backlog waits."""
    async with running(active_limit=40, destination_share=0.25) as line:
        line.wire.answers["slow"] = Answer(after=10)
        await trio.sleep(1)
        await line.submit("slow", count=100)
        for number in range(50):
            await trio.sleep(0.037)
            (one,) = await line.submit(f"h{number}")
            assert line.scheduler.holds(one)


async def test_claims_rest_while_nothing_can_be_gained(autojump_clock: MockClock) -> None:
    """A destination that has all of its share and does not move is no reason to ask storage."""
    async with scheduling(active_limit=40, destination_share=0.25) as line:
        await line.add("a", count=100, due_in=-1)
        await trio.sleep(5)
        await line.submit("a", count=10)
        before = line.storage.statistics().commits
        await trio.sleep(50)
        assert line.storage.statistics().commits - before <= 11


async def test_waiting_retries_leave_room_for_what_is_due(autojump_clock: MockClock) -> None:
    """A wave of retries that is due in half a minute must not keep out what is due now."""
    async with running(active_limit=40, destination_share=0.25) as line:
        for number in range(20):
            await line.add(f"wave{number}", count=20, due_in=28)
        await trio.sleep(6)
        assert line.scheduler.waiting() == 20
        (claimed,) = await line.add("now", due_in=0)
        (submitted,) = await line.submit("now")
        await trio.sleep(5.2)
        for one in (claimed, submitted):
            assert (await line.delivery(one)).status == "succeeded"
        await trio.sleep(120)
        assert len(line.wire.sent) == 402


async def test_no_claim_is_kept_where_enough_is_waiting(autojump_clock: MockClock) -> None:
    async with scheduling(active_limit=40, destination_share=1.0) as line:
        await line.add("a", count=19, due_in=20)
        await line.add("b", due_in=-1)
        await trio.sleep(5.5)
        held = await taken(line)
        soon = msgspec.structs.replace(held.delivery, due_at=line.now() + SECOND)
        assert line.scheduler.keeps(soon)
        await line.add("a", due_in=20)
        await trio.sleep(5.5)
        assert line.scheduler.waiting() == 20
        assert not line.scheduler.keeps(soon)


async def test_a_long_queue_is_claimed_in_quick_succession(autojump_clock: MockClock) -> None:
    """One transaction claims so many and no more; the next follows soon."""
    async with scheduling(destination_share=1.0) as line:
        await line.add(count=5000, due_in=-1)
        await trio.sleep(5.5)
        assert len(line.scheduler) == 5000


async def test_no_claims_for_what_comes_and_goes(autojump_clock: MockClock) -> None:
    """While nothing waits in storage, it is asked at its regular times only."""
    async with running() as line:
        await trio.sleep(1)
        before = line.storage.statistics().commits
        for _ in range(90):
            await line.submit()
            await trio.sleep(0.1)
        assert len(line.wire.sent) == 90
        assert line.storage.statistics().commits - before <= 2 * 90 + 2


async def test_a_hanging_destination_does_not_delay_another(autojump_clock: MockClock) -> None:
    """200 callbacks to one that hangs delay one to another by no more than a round."""
    async with running(concurrency=16) as line:
        line.wire.answers["hangs"] = HANGS
        await trio.sleep(1)
        await line.submit("hangs", count=200)
        await trio.sleep(1)
        for number in range(20):
            submitted_at = line.now()
            (one,) = await line.submit("well")
            await trio.sleep(0.05)
            assert (await line.delivery(one)).status == "succeeded", number
            assert line.wire.times("well")[-1] - submitted_at < SECOND // 100
        assert len(line.wire.times("hangs")) <= 4  # a quarter of the pool


async def test_dead_destinations_do_not_fill_the_node(autojump_clock: MockClock) -> None:
    """Ten of them could have a tenth each; suspended, they keep only what probes need."""
    async with running(
        active_limit=100, window_initial=2, suspend_after=2, suspend_max=Duration("60s")
    ) as line:
        dead = [f"dead{number}" for number in range(15)]
        for host in dead:
            line.wire.answers[host] = Answer(failure="connection_error", after=0.1)
            await line.add(host, count=50, due_in=-60, delays=("1h",), max_retries=9)
        await trio.sleep(8)
        for host in dead:
            assert destination(host) in line.destinations.ill()
        assert len(line.scheduler) <= 2 * len(dead) + 5
        await line.check_claims()
        await line.submit(dead[0], count=50)  # and what comes in waits in storage
        assert len(line.scheduler) <= 2 * len(dead) + 5
        # The others are served as if nothing was.
        (claimed,) = await line.add("well", due_in=0)
        (submitted,) = await line.submit("well")
        assert line.scheduler.holds(submitted)
        await trio.sleep(5.2)
        for one in (claimed, submitted):
            assert (await line.delivery(one)).status == "succeeded"
        await trio.sleep(60)
        assert len(line.scheduler) <= 2 * len(dead) + 5
        # And once they are back, all of it is delivered.
        for host in dead:
            line.wire.answers[host] = OK
        await trio.sleep(2 * 3600)
        assert {one.status for one in await line.deliveries()} == {"succeeded"}
        assert len(line.scheduler) == 0


async def test_what_waits_for_a_destination_that_is_suspended(autojump_clock: MockClock) -> None:
    """When it is due, all but a few go back to storage; the claim of a retry is not kept."""
    async with scheduling(window_initial=2, suspend_after=1, suspend_min=Duration("60s")) as line:
        await line.add("a", count=10, due_in=20)
        await line.add("a", count=10, due_in=-1)
        await trio.sleep(5.5)
        assert (len(line.scheduler), line.scheduler.waiting()) == (20, 10)
        change = None
        while change is None:
            held = await taken(line)
            after = msgspec.structs.replace(held.delivery, due_at=line.now() + SECOND)
            assert line.scheduler.keeps(after)
            change = line.destinations.done(held, True, line.now())
            line.destinations.put(held)
        line.scheduler.turned(destination("a"), change)
        assert (len(line.scheduler), line.scheduler.waiting()) == (12, 10)
        assert not line.scheduler.keeps(after)
        await trio.sleep(20)
        assert (len(line.scheduler), line.scheduler.waiting()) == (2, 0)
        await line.check_claims()


async def test_a_destination_that_recovers_gets_its_backlog_soon(
    autojump_clock: MockClock,
) -> None:
    async with running(active_limit=100, window_initial=2, suspend_after=1) as line:
        line.wire.answers["a"] = Answer(failure="connection_error")
        await line.add("a", count=20, due_in=-60, delays=("1h",), max_retries=1)
        await trio.sleep(20)
        backlog = [one for one in await line.deliveries() if not one.attempt_count]
        assert len(backlog) > 5
        line.wire.answers["a"] = OK
        line.wire.sent.clear()
        await trio.sleep(60)
        first, *_, last = line.wire.times("a")
        assert len(line.wire.sent) == len(backlog)
        assert last - first < SECOND


async def test_retries_of_a_dead_destination_within_the_horizon(autojump_clock: MockClock) -> None:
    """They wait in storage, too, and none is lost."""
    async with running(active_limit=40, window_initial=2, suspend_after=1) as line:
        line.wire.answers["a"] = ILL
        await line.add("a", count=30, due_in=-60, delays=("5s",), max_retries=100)
        for _ in range(60):
            await trio.sleep(1)
            assert len(line.scheduler) <= 4
        line.wire.answers["a"] = OK
        await trio.sleep(120)
        assert {one.status for one in await line.deliveries()} == {"succeeded"}
        await line.check_claims()


async def test_while_storage_is_down_what_is_held_is_kept(autojump_clock: MockClock) -> None:
    """No crash, no loss, and claims again once it is back; the log is not flooded."""
    async with scheduling() as line:
        held = await line.add(count=5, due_in=20)
        await trio.sleep(6)
        assert len(line.scheduler) == 5
        line.storage.fail_with = StorageUnavailable("the disk is gone")
        with capture_logs() as logs:
            await trio.sleep(60.5)
        assert len(line.scheduler) == 5
        assert len(line.destinations) == 5  # due by now, and queued though storage was down
        assert 10 <= len([entry for entry in logs if entry["event"] == "claim_failed"]) <= 62
        line.storage.fail_with = None
        more = await line.add(count=5, due_in=-1)
        await trio.sleep(1.5)
        assert all(line.scheduler.holds(one) for one in (*held, *more))


async def test_surplus_is_given_back_once_storage_is_back(autojump_clock: MockClock) -> None:
    async with scheduling(active_limit=10, destination_share=0.5) as line:
        await trio.sleep(1)
        await line.submit("a", count=8)
        line.storage.fail_with = StorageUnavailable("the disk is gone")
        with capture_logs() as logs:
            for _ in range(105):  # and the loop has other things to do
                held = await taken(line)
                line.destinations.done(held, None, line.now())
                line.scheduler.postpone(held, line.now() + SECOND // 20)
                await trio.sleep(0.1)
        assert len(logs) <= 11
        assert len((await _claims_anyhow(line))[NODE]) == 8
        line.storage.fail_with = None
        await trio.sleep(2)
        await line.check_claims()
        assert len(line.scheduler) == 5


async def _claims_anyhow(line: Line) -> dict[str, set[str]]:
    failure, line.storage.fail_with = line.storage.fail_with, None
    try:
        return await line.claims()
    finally:
        line.storage.fail_with = failure


async def test_drop_in_the_wheel(autojump_clock: MockClock) -> None:
    async with running() as line:
        (one,) = await line.add(due_in=20)
        await trio.sleep(6)
        assert line.scheduler.waiting() == 1
        await line.intake.perform(lambda unit: cancel_delivery(unit, ORG, one))
        assert not line.scheduler.holds(one)
        assert line.scheduler.waiting() == 0
        await trio.sleep(60)
        assert line.wire.sent == []
        assert (await line.delivery(one)).claimed_by is None


async def test_drop_in_the_queue(autojump_clock: MockClock) -> None:
    async with scheduling() as line:
        one, other = await line.add(count=2)
        await trio.sleep(1)
        await line.intake.perform(lambda unit: cancel_delivery(unit, ORG, one))
        assert not line.scheduler.holds(one)
        await trio.sleep(1)
        assert (await line.delivery(one)).claimed_by is None
        assert (await taken(line)).delivery.id == other
        assert len(line.destinations) == 0


async def test_drop_while_it_is_sent(autojump_clock: MockClock) -> None:
    """A sender has it: it stays held until the attempt is over."""
    async with scheduling() as line:
        (one,) = await line.add()
        await trio.sleep(1)
        held = await taken(line)
        await line.intake.perform(lambda unit: cancel_delivery(unit, ORG, one))
        assert line.scheduler.holds(one)
        assert (await line.delivery(one)).claimed_by == NODE
        line.scheduler.forget([held])
        assert not line.scheduler.holds(one)


async def test_drop_of_what_is_not_held(autojump_clock: MockClock) -> None:
    async with scheduling() as line:
        (one,) = await line.add(due_in=3600)
        await line.intake.perform(lambda unit: cancel_delivery(unit, ORG, one))
        line.scheduler.drop("nobody has heard of it")
        await trio.sleep(10)
        assert len(line.scheduler) == 0


async def test_hasten_in_the_wheel(autojump_clock: MockClock) -> None:
    async with running() as line:
        (one,) = await line.add(due_in=25)
        await trio.sleep(6)
        await line.intake.perform(lambda unit: attempt_now(unit, ORG, one))
        await trio.sleep(0.05)
        assert (await line.delivery(one)).status == "succeeded"
        await trio.sleep(60)
        assert len(line.wire.sent) == 1


async def test_hasten_in_the_queue_changes_nothing(autojump_clock: MockClock) -> None:
    async with scheduling() as line:
        (one,) = await line.add()
        await trio.sleep(1)
        await line.intake.perform(lambda unit: attempt_now(unit, ORG, one))
        assert len(line.destinations) == 1
        assert (await taken(line)).delivery.id == one


async def test_hasten_while_it_is_sent_changes_nothing(autojump_clock: MockClock) -> None:
    async with running() as line:
        line.wire.answers["a"] = Answer(404, after=10)
        (one,) = await line.add(delays=("1m",), max_retries=1)
        await trio.sleep(5)
        await line.intake.perform(lambda unit: attempt_now(unit, ORG, one))
        await trio.sleep(20)
        assert len(line.wire.sent) == 1
        assert (await line.delivery(one)).due_at == line.wire.sent[0][0] + 10 * SECOND + MINUTE
        await line.check_claims()


async def test_hasten_of_what_is_not_held(autojump_clock: MockClock) -> None:
    """It is claimed by the order itself, where there is room."""
    async with running() as line:
        (one,) = await line.add(due_in=3600)
        await trio.sleep(6.5)
        await line.intake.perform(lambda unit: attempt_now(unit, ORG, one))
        await trio.sleep(0.05)
        assert (await line.delivery(one)).status == "succeeded"


async def test_hasten_without_room(autojump_clock: MockClock) -> None:
    """It waits in storage, and is claimed as soon as there is some."""
    async with running(active_limit=10, destination_share=0.1) as line:
        (one,) = await line.add(due_in=3600)
        line.wire.answers["a"] = Answer(after=20)
        await line.submit("a")
        await trio.sleep(6.5)
        await line.intake.perform(lambda unit: attempt_now(unit, ORG, one))
        assert not line.scheduler.holds(one)
        assert (await line.delivery(one)).claimed_by is None
        await trio.sleep(14)
        assert len(line.wire.sent) == 2


async def test_hasten_what_another_node_holds(autojump_clock: MockClock) -> None:
    async with running() as line:
        (one,) = await line.add(due_in=25, claimed_by="node-2")
        await line.intake.perform(lambda unit: attempt_now(unit, ORG, one))
        await trio.sleep(10)
        assert line.wire.sent == []
        assert not line.scheduler.holds(one)


@pytest.mark.parametrize("order_first", [True, False])
async def test_hasten_of_what_is_being_given_back(
    order_first: bool, autojump_clock: MockClock
) -> None:
    """In one group commit with its release, before it or after it: neither lost nor sent twice."""
    async with open_line(window_initial=2) as line, trio.open_nursery() as nursery:
        ids = await line.add(count=5, due_in=-1, claimed_by=NODE)
        for one in ids:
            line.scheduler.admit([(await line.delivery(one), None)])
        surplus = ids[-1]
        with trio.move_on_after(1):
            await line.scheduler.run()

        async def order() -> None:
            await line.intake.perform(lambda unit: attempt_now(unit, ORG, surplus))

        # Suspended, and well again before the loop comes to give anything back.
        line.scheduler.turned(destination("a"), "suspended")
        assert not line.scheduler.holds(surplus)
        line.storage.hold()
        orders = (order, line.scheduler.run) if order_first else (line.scheduler.run, order)
        for task in (line.senders.run, *orders):
            nursery.start_soon(task)
            await trio.sleep(0.02)
        assert line.storage.statistics().backlog == 3  # one with both attempts
        line.storage.resume()
        await trio.sleep(1)
        assert (await line.delivery(surplus)).status == "succeeded"
        sent = [
            dict(pairs(request.lines))["Primeflow-Delivery-Id"] for _, request in line.wire.sent
        ]
        assert sent.count(surplus) == 1
        await line.check_claims()
        nursery.cancel_scope.cancel()


async def test_claimed_again_right_after_its_claim_was_given_up(autojump_clock: MockClock) -> None:
    """In one group commit: the record releases it, a claim takes it. It must be held then."""
    async with running(horizon=Duration("10s")) as line:
        line.wire.answers["a"] = Answer(404, after=4.5)
        (one,) = await line.add(delays=("11s",), max_retries=1)
        await trio.sleep(4)
        line.storage.hold()
        await trio.sleep(0.9)  # its record waits; it gives up the claim, for it is due in 11 s
        await trio.sleep(5)  # a claim waits behind it, for which it is within the horizon
        line.wire.answers["a"] = OK
        line.storage.resume()
        await line.check_claims()
        await trio.sleep(20)
        assert (await line.delivery(one)).status == "succeeded"


async def test_settle(autojump_clock: MockClock) -> None:
    """Kept: waits on. Given up, or no longer ours: forgotten."""
    async with scheduling() as line:
        await line.add(count=3)
        await trio.sleep(1)
        kept, given_up, lost = [await taken(line) for _ in range(3)]
        soon = msgspec.structs.replace(kept.delivery, due_at=line.now() + 2 * SECOND)
        later = msgspec.structs.replace(
            given_up.delivery, due_at=line.now() + 3600 * SECOND, claimed_by=None
        )
        assert line.scheduler.keeps(soon)
        assert not line.scheduler.keeps(later)
        for held in (kept, given_up, lost):
            line.destinations.done(held, False, line.now())
        line.scheduler.settle(kept, soon)
        line.scheduler.settle(given_up, later)
        line.scheduler.forget([lost])
        assert len(line.scheduler) == 1
        assert line.scheduler.waiting() == 1
        await trio.sleep(1.9)
        assert len(line.destinations) == 0
        await trio.sleep(0.2)
        assert len(line.destinations) == 1
        assert (await taken(line)).delivery == soon


async def test_admit_twice_holds_once(autojump_clock: MockClock) -> None:
    async with open_line() as line:
        (one,) = await line.add(claimed_by=NODE)
        delivery = await line.delivery(one)
        line.scheduler.admit([(delivery, BODY)])
        line.scheduler.admit([(delivery, BODY)])
        assert (len(line.scheduler), len(line.destinations)) == (1, 1)
        assert (await taken(line)).body == BODY


async def test_bodies_are_kept_within_a_budget(autojump_clock: MockClock) -> None:
    """64 MiB of them; beyond it they are read back. Whoever is let go of makes room."""
    async with open_line() as line:
        mebibyte = bytes(1024 * 1024)
        deliveries = [
            await line.delivery(one)
            for one in await line.add(count=210, due_in=-1, claimed_by=NODE)
        ]

        def kept() -> int:
            shed = line.destinations.shed(destination("a"), 0)
            for held in shed:
                line.destinations.put(held)
            return len([held for held in shed if held.body is not None])

        for delivery in deliveries[:70]:
            line.scheduler.admit([(delivery, mebibyte)])
        assert kept() == 64
        for delivery in deliveries[:70]:
            line.scheduler.drop(delivery.id)
        for delivery in deliveries[70:140]:
            line.scheduler.admit([(delivery, mebibyte)])
        assert kept() == 64
        for _ in range(70):
            held = await taken(line)
            line.destinations.done(held, False, line.now())
            line.scheduler.settle(held, held.delivery)  # waits on, with an attempt behind it
            line.destinations.remove(held)
        for delivery in deliveries[140:]:
            line.scheduler.admit([(delivery, mebibyte)])
        assert kept() == 64


async def test_close(autojump_clock: MockClock) -> None:
    """Nothing new is held, nothing is promised or kept; what is being sent settles."""
    async with scheduling() as line:
        waiting, sending = (*await line.add(due_in=20), *await line.add())
        await trio.sleep(6)
        held = await taken(line)
        assert held.delivery.id == sending
        line.scheduler.close()
        assert line.scheduler.node_for(destination("a")) is None
        soon = msgspec.structs.replace(held.delivery, due_at=line.now() + SECOND)
        assert not line.scheduler.keeps(soon)
        line.destinations.done(held, False, line.now())
        line.scheduler.settle(held, soon)
        assert not line.scheduler.holds(sending)
        (late,) = await line.add(claimed_by=NODE)
        line.scheduler.admit([(await line.delivery(late), None)])
        assert not line.scheduler.holds(late)
        assert line.scheduler.holds(waiting)
        released = await line.storage.write(lambda tx: tx.release(NODE, None))
        assert released in (2, 3)
        assert await line.claims() == {}


async def test_a_new_node_takes_over_what_a_drain_released(autojump_clock: MockClock) -> None:
    async with open_line() as line:
        ids = await line.add(count=30, due_in=20)
        async with trio.open_nursery() as nursery:
            line.start(nursery)
            await trio.sleep(6)
            line.scheduler.close()
            nursery.cancel_scope.cancel()
        await line.storage.write(lambda tx: tx.release(NODE, None))
        line.another("node-2")
        async with trio.open_nursery() as nursery:
            line.start(nursery)
            await trio.sleep(60)
            nursery.cancel_scope.cancel()
        sent = [
            dict(pairs(request.lines))["Primeflow-Delivery-Id"] for _, request in line.wire.sent
        ]
        assert sorted(sent) == sorted(ids)
        assert await line.claims() == {}


async def test_two_nodes_share_without_doing_anything_twice(autojump_clock: MockClock) -> None:
    async with open_line(active_limit=30, destination_share=0.5) as line:
        ids = []
        for number in range(10):
            line.wire.answers[f"h{number}"] = Answer(after=0.2)
            ids += await line.add(f"h{number}", count=40, due_in=-1)
        async with trio.open_nursery() as nursery:
            line.start(nursery)
            line.another("node-2")
            line.start(nursery)
            await trio.sleep(60)
            nursery.cancel_scope.cancel()
        sent = [
            dict(pairs(request.lines))["Primeflow-Delivery-Id"] for _, request in line.wire.sent
        ]
        assert sorted(sent) == sorted(ids)


async def test_the_clock_being_set_back_does_not_stop_claims(autojump_clock: MockClock) -> None:
    async with scheduling() as line:
        await trio.sleep(1)
        line.clock._start -= 24 * 3600 * SECOND
        (one,) = await line.add(due_in=-1)
        await trio.sleep(6)
        assert line.scheduler.holds(one)


STEP = st.tuples(
    st.sampled_from(["add", "submit", "cancel", "now", "answer", "hold", "down", "sleep", "sleep"]),
    st.integers(0, 30),
)


@given(st.lists(STEP, max_size=40))
def test_whatever_happens_each_delivery_is_seen_through(steps: list[tuple[str, int]]) -> None:
    """5.5, 5.6: no attempt is skipped or made twice, nothing is lost, nothing stays claimed; with
    slow and failing storage, orders by people, and destinations that come and go."""
    trio.run(_whatever, steps, clock=MockClock(autojump_threshold=0))


async def _whatever(steps: list[tuple[str, int]]) -> None:
    answers = [OK, ILL, Answer(404, after=0.3), Answer(after=2), Answer(410)]
    policy: dict[str, Any] = {"delays": ("200ms", "7s", "40s"), "max_retries": 3}
    with capture_logs() as logs:
        async with running(
            active_limit=12, destination_share=0.34, window_initial=2, suspend_after=2
        ) as line:
            hosts = ["a", "b", "c", "d"]
            cancelled = set()

            async def order(operation: Any, delivery_id: str) -> None:
                try:
                    await line.intake.perform(lambda unit: operation(unit, ORG, delivery_id))
                except Exception:  # noqa: BLE001 - refused, or storage is down: either is fine
                    return
                if operation is cancel_delivery:
                    cancelled.add(delivery_id)

            async def submit(host: str, count: int) -> None:
                with trio.CancelScope(shield=True):
                    try:
                        await line.submit(host, count)
                    except StorageUnavailable:
                        return

            async with trio.open_nursery() as people:
                for step, number in steps:
                    host = hosts[number % 4]
                    known = [] if line.storage.fail_with else await line.deliveries()
                    if step == "add" and not line.storage.fail_with and not line.storage._held:
                        await _or_hold(line, line.add(host, 1 + number, due_in=-1, **policy))
                    elif step == "submit":
                        people.start_soon(submit, host, 1 + number)
                    elif step in ("cancel", "now") and known:
                        operation = cancel_delivery if step == "cancel" else attempt_now
                        chosen = known[number % len(known)].id
                        people.start_soon(order, operation, chosen)
                    elif step == "answer":
                        line.wire.answers[host] = answers[number % len(answers)]
                    elif step == "hold" and not line.storage.fail_with:
                        line.storage.hold()
                    elif step == "down":
                        line.storage.resume()
                        line.storage.fail_with = (
                            None if line.storage.fail_with else StorageUnavailable("down")
                        )
                    elif step == "sleep":
                        await trio.sleep(number / 10)
                        line.storage.resume()
                line.storage.fail_with = None
                line.storage.resume()
                for host in hosts:
                    line.wire.answers[host] = Answer()
            await trio.sleep(600)
            assert len(line.scheduler) == 0
            assert line.senders.busy == 0
            for delivery in await line.deliveries():
                assert delivery.claimed_by is None
                assert delivery.status in ("succeeded", "failed")
                numbers = [one.attempt_number for one in await line.attempts(delivery.id)]
                assert numbers == list(range(1, len(numbers) + 1))
                assert len(numbers) == delivery.attempt_count
                if delivery.id in cancelled:
                    assert delivery.failure_reason == "cancelled"
            sent = Counter(
                dict(pairs(request.lines))["Primeflow-Delivery-Id"] for _, request in line.wire.sent
            )
            for delivery in await line.deliveries():
                assert sent[delivery.id] == delivery.attempt_count
    assert [entry for entry in logs if "after" in entry["event"]] == []


async def _or_hold(line: Line, adding: Any) -> None:
    line.storage.resume()
    await adding


class WakesLate(MemoryStorage):
    """Callers hear of their commit a little after it, when others have been committed since."""

    async def write(
        self, function: Callable[[Tx], T], on_commit: Callable[[T], None] | None = None
    ) -> T:
        result = await super().write(function, on_commit)
        await trio.sleep(0.005)
        return result


async def test_a_backlog_of_one_destination_is_worked_off_without_a_pause(
    autojump_clock: MockClock,
) -> None:
    """Places come free while a claim is under way, too; the rest must not wait for the next
    regular claim because of that."""
    settings = DeliverySettings(active_limit=100, destination_share=0.2)
    line = Line(WakesLate(SystemClock()), settings)
    await line.submit(count=400)
    line.wire.answers["a"] = Answer(after=0.001)
    async with trio.open_nursery() as nursery:
        line.start(nursery)
        await trio.sleep(4.5)
        assert len(line.wire.sent) == 400
        nursery.cancel_scope.cancel()


async def test_a_node_whose_lease_lapsed_claims_nothing(autojump_clock: MockClock) -> None:
    async with open_line() as line, trio.open_nursery() as nursery:
        line.lease.lapsed = True
        line.start(nursery)
        ids = await line.add(count=4)
        await trio.sleep(60)
        assert (line.wire.sent, await line.claims()) == ([], {})
        with pytest.raises(StorageUnavailable, match="cut off"):
            await line.submit()
        line.lease.lapsed = False
        await trio.sleep(6)
        assert len(line.wire.sent) == 4
        for one in ids:
            assert (await line.delivery(one)).status == "succeeded"
        nursery.cancel_scope.cancel()


async def test_a_lost_lease_leaves_nothing_in_memory(autojump_clock: MockClock) -> None:
    """What was queued or waited is another node's now; this one claims afresh."""
    async with open_line(window_initial=1, window_max=1) as line, trio.open_nursery() as nursery:
        line.wire.answers["a"] = Answer(after=5)
        line.start(nursery)
        now = await line.submit(count=3)
        later = await line.add("b", count=3, due_in=20)
        await trio.sleep(6)
        assert len(line.scheduler) == 5
        await line.storage.write(lambda tx: tx.release(NODE, None))
        line.lease.node_id = "node-1/2"
        line.scheduler.renounce()
        assert len(line.scheduler) == 1  # with a sender, whose record will find it lost
        await trio.sleep(60)
        assert await line.claims() == {}
        for one in (*now, *later):
            assert (await line.delivery(one)).status == "succeeded"
        assert line.wire.hosts().count("b") == 3
        assert len(line.scheduler) == 0
        nursery.cancel_scope.cancel()


async def test_a_claim_under_a_lost_lease_is_not_taken_up(autojump_clock: MockClock) -> None:
    """It was committed after the lease was ended: another node may have freed it by now."""
    async with open_line() as line:
        (one,) = await line.add(claimed_by=NODE)
        delivery = await line.delivery(one)
        line.lease.node_id = "node-1/2"
        line.scheduler.admit([(delivery, None)])
        assert not line.scheduler.holds(one)


async def test_a_delivery_that_a_sender_still_has_from_before_is_claimed_again_later(
    autojump_clock: MockClock,
) -> None:
    async with open_line() as line, trio.open_nursery() as nursery:
        line.wire.answers["a"] = Answer(after=10)
        line.start(nursery)
        (one,) = await line.submit()
        await trio.sleep(1)
        await line.storage.write(lambda tx: tx.release(NODE, None))
        line.lease.node_id = "node-1/2"
        line.scheduler.renounce()
        await trio.sleep(30)
        # The first was lost: sent, and not on record.
        assert len(line.wire.sent) == 2
        assert [a.attempt_number for a in await line.attempts(one)] == [1]
        assert (await line.delivery(one)).status == "succeeded"
        await line.check_claims()
        nursery.cancel_scope.cancel()


async def test_an_order_from_another_node_is_obeyed(autojump_clock: MockClock) -> None:
    """5.4: cancelled, or due at once, whichever node was asked."""
    async with open_line() as line, trio.open_nursery() as nursery:
        line.start(nursery)
        cancelled, hastened, left = await line.add(count=3, due_in=25)
        await trio.sleep(6)
        assert line.scheduler.waiting() == 3
        here = line.scheduler
        line.another("node-2")  # shares nothing with the first but storage
        await line.intake.perform(lambda unit: cancel_delivery(unit, ORG, cancelled))
        await line.intake.perform(lambda unit: attempt_now(unit, ORG, hastened))
        await trio.sleep(1.1)
        assert [one for one in (cancelled, hastened, left) if here.holds(one)] == [left]
        assert (await line.delivery(hastened)).status == "succeeded"
        assert len(line.wire.sent) == 1
        await trio.sleep(30)
        assert len(line.wire.sent) == 2
        assert await line.claims() == {}
        assert not await line.storage.read(lambda tx: tx.has_orders(NODE))
        nursery.cancel_scope.cancel()


async def test_no_order_is_given_for_what_nobody_else_holds(autojump_clock: MockClock) -> None:
    async with open_line() as line:
        unclaimed, own = await line.add(count=2, due_in=25)
        await line.storage.write(lambda tx: tx.claim(NODE, line.now() + 30 * SECOND, 1, 1, {}))
        await line.intake.perform(lambda unit: cancel_delivery(unit, ORG, unclaimed))
        await line.intake.perform(lambda unit: cancel_delivery(unit, ORG, own))
        assert not await line.storage.read(lambda tx: tx.has_orders(NODE))


async def test_claims_that_a_failed_commit_made_after_all_are_given_back(
    autojump_clock: MockClock,
) -> None:
    """The connection was lost during the commit: nobody was told, and it happened all the same."""
    async with open_line() as line, trio.open_nursery() as nursery:
        line.start(nursery)
        await trio.sleep(1)
        stray = await line.add(count=3, claimed_by=NODE)
        await trio.sleep(60)
        assert line.wire.sent == []
        line.storage.fail_with = StorageUnavailable("gone")
        with pytest.raises(StorageUnavailable):
            await line.submit()
        line.storage.fail_with = None
        await trio.sleep(3)
        assert len(line.wire.sent) == 3
        late = await line.add(count=2, claimed_by=NODE)  # the server was slow to commit it
        await trio.sleep(25)
        for one in (*stray, *late):
            assert (await line.delivery(one)).status == "succeeded"
        await line.check_claims()
        nursery.cancel_scope.cancel()


async def test_letting_go_tells_what_no_sender_has(autojump_clock: MockClock) -> None:
    """A drain gives it back before it waits for the attempts under way."""
    async with open_line(window_initial=1, window_max=1) as line, trio.open_nursery() as nursery:
        line.wire.answers["a"] = HANGS
        line.start(nursery)
        sending, queued = await line.submit(count=2)
        (waiting,) = await line.add("b", due_in=20)
        await trio.sleep(6)
        assert line.scheduler.let_go() == {queued, waiting}
        assert line.scheduler.holds(sending)
        assert len(line.scheduler) == 1
        assert line.scheduler.let_go() == set()
        nursery.cancel_scope.cancel()
