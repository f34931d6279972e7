"""What a node holds: admitted, dropped, hastened, settled, let go; and what it gives back."""

import msgspec
import pytest
import trio
from trio.testing import MockClock

from primeflowd.durations import Duration
from primeflowd.instants import MINUTE, SECOND
from primeflowd.intake import Schedule
from primeflowd.redelivery import attempt_now, cancel_delivery
from primeflowd.sender import Desk
from primeflowd.testing.factories import ORG
from tests.network import pairs
from tests.scheduling import running, scheduling, taken
from tests.sending import BODY, HANGS, NODE, OK, Answer, destination, open_line


def test_what_intake_and_senders_need() -> None:
    """mypy compares the signatures."""

    async def main() -> None:
        async with open_line() as line:
            needs: tuple[Schedule, Desk] = (line.holdings, line.holdings)
            assert needs[0].node_for(destination("a")) == NODE

    trio.run(main)


async def test_limit_and_share_hold_for_what_comes_in(autojump_clock: MockClock) -> None:
    """More may be promised than there is room for; the surplus is given back, not kept."""
    async with scheduling(active_limit=40, destination_share=0.25) as line:
        await trio.sleep(1)
        await line.submit("big", count=25)
        assert len(line.holdings) == 10
        await trio.sleep(1)
        await line.check_claims()
        for number in range(8):
            await line.submit(f"h{number}", count=9)
        assert len(line.holdings) == 40
        await trio.sleep(1)
        await line.check_claims()


async def test_surplus_is_given_back_at_once(autojump_clock: MockClock) -> None:
    """Another node may have room for it."""
    async with scheduling(active_limit=10, destination_share=1.0) as line:
        await trio.sleep(1.2)
        await line.submit("a", count=20)
        await trio.sleep(0.01)
        assert len(line.holdings) == 10
        await line.check_claims()


async def test_no_claim_is_kept_where_enough_is_waiting(autojump_clock: MockClock) -> None:
    async with scheduling(active_limit=40, destination_share=1.0) as line:
        await line.add("a", count=19, due_in=20)
        await line.add("b", due_in=-1)
        await trio.sleep(5.5)
        held = await taken(line)
        soon = msgspec.structs.replace(held.delivery, due_at=line.now() + SECOND)
        assert line.holdings.keeps(soon)
        await line.add("a", due_in=20)
        await trio.sleep(5.5)
        assert line.holdings.waiting() == 20
        assert not line.holdings.keeps(soon)


async def test_what_waits_for_a_destination_that_is_suspended(autojump_clock: MockClock) -> None:
    """When it is due, all but a few go back to storage; the claim of a retry is not kept."""
    async with scheduling(window_initial=2, suspend_after=1, suspend_min=Duration("60s")) as line:
        await line.add("a", count=10, due_in=20)
        await line.add("a", count=10, due_in=-1)
        await trio.sleep(5.5)
        assert (len(line.holdings), line.holdings.waiting()) == (20, 10)
        change = None
        while change is None:
            held = await taken(line)
            after = msgspec.structs.replace(held.delivery, due_at=line.now() + SECOND)
            assert line.holdings.keeps(after)
            change = line.destinations.done(held, True, line.now())
            line.destinations.put(held)
        line.holdings.turned(destination("a"), change)
        assert (len(line.holdings), line.holdings.waiting()) == (12, 10)
        assert not line.holdings.keeps(after)
        await trio.sleep(20)
        assert (len(line.holdings), line.holdings.waiting()) == (2, 0)
        await line.check_claims()


async def test_drop_in_the_wheel(autojump_clock: MockClock) -> None:
    async with running() as line:
        (one,) = await line.add(due_in=20)
        await trio.sleep(6)
        assert line.holdings.waiting() == 1
        await line.intake.perform(lambda unit: cancel_delivery(unit, ORG, one))
        assert not line.holdings.holds(one)
        assert line.holdings.waiting() == 0
        await trio.sleep(60)
        assert line.wire.sent == []
        assert (await line.delivery(one)).claimed_by is None


async def test_drop_in_the_queue(autojump_clock: MockClock) -> None:
    async with scheduling() as line:
        one, other = await line.add(count=2)
        await trio.sleep(1)
        await line.intake.perform(lambda unit: cancel_delivery(unit, ORG, one))
        assert not line.holdings.holds(one)
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
        assert line.holdings.holds(one)
        assert (await line.delivery(one)).claimed_by == NODE
        line.holdings.forget([held])
        assert not line.holdings.holds(one)


async def test_drop_of_what_is_not_held(autojump_clock: MockClock) -> None:
    async with scheduling() as line:
        (one,) = await line.add(due_in=3600)
        await line.intake.perform(lambda unit: cancel_delivery(unit, ORG, one))
        line.holdings.drop("nobody has heard of it")
        await trio.sleep(10)
        assert len(line.holdings) == 0


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
        assert not line.holdings.holds(one)
        assert (await line.delivery(one)).claimed_by is None
        await trio.sleep(14)
        assert len(line.wire.sent) == 2


async def test_hasten_what_another_node_holds(autojump_clock: MockClock) -> None:
    async with running() as line:
        (one,) = await line.add(due_in=25, claimed_by="node-2")
        await line.intake.perform(lambda unit: attempt_now(unit, ORG, one))
        await trio.sleep(10)
        assert line.wire.sent == []
        assert not line.holdings.holds(one)


@pytest.mark.parametrize("order_first", [True, False])
async def test_hasten_of_what_is_being_given_back(
    order_first: bool, autojump_clock: MockClock
) -> None:
    """In one group commit with its release, before it or after it: neither lost nor sent twice."""
    async with open_line(window_initial=2) as line, trio.open_nursery() as nursery:
        ids = await line.add(count=5, due_in=-1, claimed_by=NODE)
        for one in ids:
            line.holdings.admit([(await line.delivery(one), None)])
        surplus = ids[-1]
        with trio.move_on_after(1):
            await line.scheduler.run()

        async def order() -> None:
            await line.intake.perform(lambda unit: attempt_now(unit, ORG, surplus))

        # Suspended, and well again before the loop comes to give anything back.
        line.holdings.turned(destination("a"), "suspended")
        assert not line.holdings.holds(surplus)
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
        assert line.holdings.keeps(soon)
        assert not line.holdings.keeps(later)
        for held in (kept, given_up, lost):
            line.destinations.done(held, False, line.now())
        line.holdings.settle(kept, soon)
        line.holdings.settle(given_up, later)
        line.holdings.forget([lost])
        assert len(line.holdings) == 1
        assert line.holdings.waiting() == 1
        await trio.sleep(1.9)
        assert len(line.destinations) == 0
        await trio.sleep(0.2)
        assert len(line.destinations) == 1
        assert (await taken(line)).delivery == soon


async def test_admit_twice_holds_once(autojump_clock: MockClock) -> None:
    async with open_line() as line:
        (one,) = await line.add(claimed_by=NODE)
        delivery = await line.delivery(one)
        line.holdings.admit([(delivery, BODY)])
        line.holdings.admit([(delivery, BODY)])
        assert (len(line.holdings), len(line.destinations)) == (1, 1)
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
            line.holdings.admit([(delivery, mebibyte)])
        assert kept() == 64
        for delivery in deliveries[:70]:
            line.holdings.drop(delivery.id)
        for delivery in deliveries[70:140]:
            line.holdings.admit([(delivery, mebibyte)])
        assert kept() == 64
        for _ in range(70):
            held = await taken(line)
            line.destinations.done(held, False, line.now())
            line.holdings.settle(held, held.delivery)  # waits on, with an attempt behind it
        assert kept() == 32
        for delivery in deliveries[140:]:
            line.holdings.admit([(delivery, mebibyte)])
        assert kept() == 64


async def test_a_retry_has_its_payload_at_hand(autojump_clock: MockClock) -> None:
    """Reading it back would take several times the work of the attempt."""
    async with open_line() as line:
        (one,) = await line.add(due_in=-1, claimed_by=NODE)
        line.holdings.admit([(await line.delivery(one), BODY)])
        held = await taken(line)
        line.destinations.done(held, True, line.now())
        line.holdings.settle(held, held.delivery)
        assert (await taken(line)).body == BODY


async def test_close(autojump_clock: MockClock) -> None:
    """Nothing new is held, nothing is promised or kept; what is being sent settles."""
    async with scheduling() as line:
        waiting, sending = (*await line.add(due_in=20), *await line.add())
        await trio.sleep(6)
        held = await taken(line)
        assert held.delivery.id == sending
        line.holdings.close()
        assert line.holdings.node_for(destination("a")) is None
        soon = msgspec.structs.replace(held.delivery, due_at=line.now() + SECOND)
        assert not line.holdings.keeps(soon)
        line.destinations.done(held, False, line.now())
        line.holdings.settle(held, soon)
        assert not line.holdings.holds(sending)
        (late,) = await line.add(claimed_by=NODE)
        line.holdings.admit([(await line.delivery(late), None)])
        assert not line.holdings.holds(late)
        assert line.holdings.holds(waiting)
        released = await line.storage.write(lambda tx: tx.release(NODE, None))
        assert released in (2, 3)
        assert await line.claims() == {}


async def test_a_lost_lease_leaves_nothing_in_memory(autojump_clock: MockClock) -> None:
    """What was queued or waited is another node's now; this one claims afresh."""
    async with open_line(window_initial=1, window_max=1) as line, trio.open_nursery() as nursery:
        line.wire.answers["a"] = Answer(after=5)
        line.start(nursery)
        now = await line.submit(count=3)
        later = await line.add("b", count=3, due_in=20)
        await trio.sleep(6)
        assert len(line.holdings) == 5
        await line.storage.write(lambda tx: tx.release(NODE, None))
        line.lease.node_id = "node-1/2"
        line.holdings.renounce()
        assert len(line.holdings) == 1  # with a sender, whose record will find it lost
        await trio.sleep(60)
        assert await line.claims() == {}
        for one in (*now, *later):
            assert (await line.delivery(one)).status == "succeeded"
        assert line.wire.hosts().count("b") == 3
        assert len(line.holdings) == 0
        nursery.cancel_scope.cancel()


async def test_a_claim_under_a_lost_lease_is_not_taken_up(autojump_clock: MockClock) -> None:
    """It was committed after the lease was ended: another node may have freed it by now."""
    async with open_line() as line:
        (one,) = await line.add(claimed_by=NODE)
        delivery = await line.delivery(one)
        line.lease.node_id = "node-1/2"
        line.holdings.admit([(delivery, None)])
        assert not line.holdings.holds(one)


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
        line.holdings.renounce()
        await trio.sleep(30)
        # The first was lost: sent, and not on record.
        assert len(line.wire.sent) == 2
        assert [a.attempt_number for a in await line.attempts(one)] == [1]
        assert (await line.delivery(one)).status == "succeeded"
        await line.check_claims()
        nursery.cancel_scope.cancel()


async def test_letting_go_tells_what_no_sender_has(autojump_clock: MockClock) -> None:
    """A drain gives it back before it waits for the attempts under way."""
    async with open_line(window_initial=1, window_max=1) as line, trio.open_nursery() as nursery:
        line.wire.answers["a"] = HANGS
        line.start(nursery)
        sending, queued = await line.submit(count=2)
        waiting, surplus = await line.add("b", count=2, due_in=20)
        await trio.sleep(6)
        await line.intake.perform(lambda unit: cancel_delivery(unit, ORG, surplus))
        assert line.holdings.surplus == {surplus}  # its claim is still to be given back
        assert line.holdings.let_go() == {queued, waiting, surplus}
        assert line.holdings.holds(sending)
        assert len(line.holdings) == 1
        assert line.holdings.let_go() == set()
        nursery.cancel_scope.cancel()
