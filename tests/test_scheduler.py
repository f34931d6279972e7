"""The scheduler: when things start, what is claimed, and storage that fails."""

from collections import Counter
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs
from trio.testing import MockClock

from primeflowd.durations import Duration
from primeflowd.errors import StorageUnavailable
from primeflowd.holdings import Holdings
from primeflowd.instants import SECOND, Micros
from primeflowd.redelivery import attempt_now, cancel_delivery
from primeflowd.scheduler import Scheduler
from primeflowd.testing.factories import ORG
from tests.network import pairs
from tests.scheduling import running, scheduling, taken
from tests.sending import HANGS, ILL, NODE, OK, Answer, Line, Tenure, destination, open_line

TICK: Micros = SECOND // 20


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
        assert line.holdings.holds(soon)
        assert line.holdings.waiting() == 1
        assert not line.holdings.holds(later)
        assert (await line.delivery(later)).claimed_by is None
        await trio.sleep(26)
        assert line.holdings.holds(later)
        assert (len(line.holdings), line.holdings.waiting()) == (2, 1)


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
                most = max(most, len(line.holdings))
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
        assert len(line.holdings) == 0
        nursery.cancel_scope.cancel()


async def test_limit_and_share_hold_for_what_is_claimed(autojump_clock: MockClock) -> None:
    async with scheduling(active_limit=40, destination_share=0.25) as line:
        await line.add("big", count=100, due_in=-60)
        for number in range(30):
            await line.add(f"h{number}", count=2, due_in=-30)
        await trio.sleep(30)
        assert len(line.holdings) == 40
        claims = await line.claims()
        assert len(claims[NODE]) == 40
        held = Counter(
            delivery.destination for delivery in await line.deliveries() if delivery.claimed_by
        )
        assert held[destination("big")] == 10


async def test_surplus_is_claimed_again_later(autojump_clock: MockClock) -> None:
    async with running(active_limit=20, destination_share=0.5) as line:
        line.wire.answers["a"] = Answer(after=0.1)
        await trio.sleep(1)
        for _ in range(5):
            await line.submit("a", count=30)
        await trio.sleep(40)
        assert len(line.wire.sent) == 150
        assert {one.status for one in await line.deliveries()} == {"succeeded"}
        assert len(line.holdings) == 0


async def test_waiting_retries_leave_room_for_what_is_due(autojump_clock: MockClock) -> None:
    """A wave of retries that is due in half a minute must not keep out what is due now."""
    async with running(active_limit=40, destination_share=0.25) as line:
        for number in range(20):
            await line.add(f"wave{number}", count=20, due_in=28)
        await trio.sleep(6)
        assert line.holdings.waiting() == 20
        (claimed,) = await line.add("now", due_in=0)
        (submitted,) = await line.submit("now")
        await trio.sleep(5.2)
        for one in (claimed, submitted):
            assert (await line.delivery(one)).status == "succeeded"
        await trio.sleep(120)
        assert len(line.wire.sent) == 402


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
        assert len(line.holdings) <= 2 * len(dead) + 5
        await line.check_claims()
        await line.submit(dead[0], count=50)  # and what comes in waits in storage
        assert len(line.holdings) <= 2 * len(dead) + 5
        # The others are served as if nothing was.
        (claimed,) = await line.add("well", due_in=0)
        (submitted,) = await line.submit("well")
        assert line.holdings.holds(submitted)
        await trio.sleep(5.2)
        for one in (claimed, submitted):
            assert (await line.delivery(one)).status == "succeeded"
        await trio.sleep(60)
        assert len(line.holdings) <= 2 * len(dead) + 5
        # And once they are back, all of it is delivered.
        for host in dead:
            line.wire.answers[host] = OK
        await trio.sleep(2 * 3600)
        assert {one.status for one in await line.deliveries()} == {"succeeded"}
        assert len(line.holdings) == 0


async def test_retries_of_a_dead_destination_within_the_horizon(autojump_clock: MockClock) -> None:
    """They wait in storage, too, and none is lost."""
    async with running(active_limit=40, window_initial=2, suspend_after=1) as line:
        line.wire.answers["a"] = ILL
        await line.add("a", count=30, due_in=-60, delays=("5s",), max_retries=100)
        for _ in range(60):
            await trio.sleep(1)
            assert len(line.holdings) <= 4
        line.wire.answers["a"] = OK
        await trio.sleep(120)
        assert {one.status for one in await line.deliveries()} == {"succeeded"}
        await line.check_claims()


async def test_while_storage_is_down_what_is_held_is_kept(autojump_clock: MockClock) -> None:
    """No crash, no loss, and claims again once it is back; the log is not flooded."""
    async with scheduling() as line:
        held = await line.add(count=5, due_in=20)
        await trio.sleep(6)
        assert len(line.holdings) == 5
        line.storage.fail_with = StorageUnavailable("the disk is gone")
        with capture_logs() as logs:
            await trio.sleep(60.5)
        assert len(line.holdings) == 5
        assert len(line.destinations) == 5  # due by now, and queued though storage was down
        assert 10 <= len([entry for entry in logs if entry["event"] == "claim_failed"]) <= 62
        line.storage.fail_with = None
        more = await line.add(count=5, due_in=-1)
        await trio.sleep(1.5)
        assert all(line.holdings.holds(one) for one in (*held, *more))


async def test_surplus_is_given_back_once_storage_is_back(autojump_clock: MockClock) -> None:
    async with scheduling(active_limit=10, destination_share=0.5) as line:
        await trio.sleep(1)
        await line.submit("a", count=8)
        line.storage.fail_with = StorageUnavailable("the disk is gone")
        with capture_logs() as logs:
            for _ in range(105):  # and the loop has other things to do
                held = await taken(line)
                line.destinations.done(held, None, line.now())
                line.holdings.postpone(held, line.now() + SECOND // 20)
                await trio.sleep(0.1)
        assert len(logs) <= 11
        assert len((await _claims_anyhow(line))[NODE]) == 8
        line.storage.fail_with = None
        await trio.sleep(2)
        await line.check_claims()
        assert len(line.holdings) == 5


async def _claims_anyhow(line: Line) -> dict[str, set[str]]:
    failure, line.storage.fail_with = line.storage.fail_with, None
    try:
        return await line.claims()
    finally:
        line.storage.fail_with = failure


async def test_a_new_node_takes_over_what_a_drain_released(autojump_clock: MockClock) -> None:
    async with open_line() as line:
        ids = await line.add(count=30, due_in=20)
        async with trio.open_nursery() as nursery:
            line.start(nursery)
            await trio.sleep(6)
            line.holdings.close()
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
        assert line.holdings.holds(one)


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
            assert len(line.holdings) == 0
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


class AskedLease(Tenure):
    """Has lapsed, and counts who asks."""

    asked = 0

    def holds(self) -> bool:
        self.asked += 1
        return False


async def test_a_loop_without_a_lease_rests(autojump_clock: MockClock) -> None:
    """Claims are overdue all the time, and that is no reason to turn in circles."""
    async with open_line() as line:
        lease = AskedLease(NODE)
        holdings = Holdings(line.destinations, line.clock, line.settings, lease)
        scheduler = Scheduler(line.storage, holdings, line.destinations, line.clock, lease)
        with trio.move_on_after(60):
            await scheduler.run()
        assert 60 <= lease.asked <= 130


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
