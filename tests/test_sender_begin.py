"""The sender pool where others gather what becomes due: begun at once, as far as it can be."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from primeflowd.exchange import CutShort, Unread
from primeflowd.instants import Micros
from primeflowd.model import Delivery, Outcome
from primeflowd.preparation import UnderWay
from tests.sending import BODY, HANGS, NODE, Answer, Line, Wire, open_line

# Everything here holds for attempts in tasks and for those without one.
pytestmark = pytest.mark.usefixtures("keeps")


class Steps(trio.abc.Instrument):
    """Counts the steps of the task that hands out what is due."""

    def __init__(self) -> None:
        self.taken = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.taken += task.name.endswith("Senders.run")


@asynccontextmanager
async def sending(line: Line) -> AsyncIterator[Steps]:
    """The senders at work, and what their task does from when it has nothing to do."""
    steps = Steps()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.senders.run)
        await wait_all_tasks_blocked()
        trio.lowlevel.add_instrument(steps)
        try:
            yield steps
        finally:
            trio.lowlevel.remove_instrument(steps)
        nursery.cancel_scope.cancel()


async def due(line: Line, *hosts: str, count: int = 1) -> list[Delivery]:
    """Deliveries of this node that are due, for each host; nobody knows of them yet."""
    # What is signed with is in memory: a sender that must ask for it needs a task.
    await line.signatures.sign((await _made(line, "x", 1))[0], "attempt", BODY)
    return [one for host in hosts for one in await _made(line, host, count)]


async def _made(line: Line, host: str, count: int) -> list[Delivery]:
    made = await line.add(host, count, due_in=-1, claimed_by=NODE)
    return [await line.delivery(delivery_id) for delivery_id in made]


def admit(line: Line, deliveries: list[Delivery]) -> None:
    line.holdings.admit([(delivery, BODY) for delivery in deliveries])


def gathered(line: Line, deliveries: list[Delivery]) -> int:
    """As what follows a commit does; how many are begun when it is over."""
    before = line.senders.busy
    line.senders.gather()
    admit(line, deliveries)
    assert line.senders.busy == before
    line.senders.begin()
    return line.senders.busy - before


async def statuses(line: Line, deliveries: list[Delivery]) -> list[str]:
    return [(await line.delivery(delivery.id)).status for delivery in deliveries]


async def test_what_was_gathered_is_begun_here_and_now(autojump_clock: MockClock) -> None:
    """No turn of the loop: the task that hands out is not even woken for it."""
    async with open_line() as line:
        deliveries = await due(line, "a", "b", "b")
        async with sending(line) as steps:
            assert gathered(line, deliveries) == 3
            assert set(line.senders.sending) == {delivery.id for delivery in deliveries}
            await trio.sleep(10)
            assert sorted(line.wire.hosts()) == ["a", "b", "b"]
            assert await statuses(line, deliveries) == ["succeeded"] * 3
            if line.wire.keeps:
                assert steps.taken == 0
            assert line.senders.busy == 0


async def test_the_wire_has_it_before_begin_returns(autojump_clock: MockClock) -> None:
    """So that a callback leaves in the same moment as the answer to who asked for it."""
    async with open_line(keeps=True) as line:
        had: list[str] = []

        class Eager(Wire):
            def begin(
                self,
                exchange: UnderWay,
                ended: Callable[[UnderWay, Outcome | Unread | CutShort], None],
                now: float,
                started_at: Micros,
            ) -> bool:
                had.append(exchange.request.target.host)
                return super().begin(exchange, ended, now, started_at)

        line.wire = Eager(line.clock, keeps=True)
        line.another(NODE)
        deliveries = await due(line, "a", "b")
        async with sending(line):
            gathered(line, deliveries)
            assert had == ["a", "b"]


async def test_begin_does_nothing_where_nothing_was_gathered(autojump_clock: MockClock) -> None:
    """What becomes due otherwise goes out by the task: many come to an end in one moment."""
    async with open_line() as line:
        first, second = await due(line, "a", "b")
        async with sending(line) as steps:
            line.senders.begin()
            admit(line, [first])
            line.senders.begin()
            assert (line.senders.busy, steps.taken) == (0, 0)
            await trio.sleep(10)
            assert steps.taken > 0
            # The second time, it was begun by the first; what comes later is for the task again.
            gathered(line, [])
            admit(line, [second])
            line.senders.begin()
            assert line.senders.busy == 0
            await trio.sleep(10)
            assert sorted(line.wire.hosts()) == ["a", "b"]


async def test_what_goes_beyond_the_concurrency_goes_out_in_its_turn(
    autojump_clock: MockClock,
) -> None:
    async with open_line(concurrency=2) as line:
        deliveries = await due(line, *"abcde")
        for host in "abcde":
            line.wire.answers[host] = Answer(after=1)
        async with sending(line):
            assert gathered(line, deliveries[:1]) == 1
            assert gathered(line, deliveries[1:4]) == 1
            # There is no room at all.
            assert gathered(line, deliveries[4:]) == 0
            await trio.sleep(60)
            assert line.wire.most_under_way == 2
            assert sorted(line.wire.hosts()) == list("abcde")
            assert await statuses(line, deliveries) == ["succeeded"] * 5


async def test_so_many_that_others_need_a_turn(autojump_clock: MockClock) -> None:
    """32 are begun in one go; the rest when those had theirs who are ready."""
    async with open_line(concurrency=1024, window_initial=256) as line:
        line.wire.answers["a"] = Answer(after=1)
        deliveries = await due(line, "a", count=70)
        async with sending(line):
            assert gathered(line, deliveries) == 32
            await wait_all_tasks_blocked()
            assert line.senders.busy == 70
            await trio.sleep(10)
            assert len(line.wire.sent) == 70


async def test_nothing_is_begun_while_too_many_are_to_be_recorded(
    autojump_clock: MockClock,
) -> None:
    """Slow storage slows sending, whoever begins it."""
    async with open_line(concurrency=2) as line:
        deliveries = await due(line, *"abcdef")
        async with sending(line):
            line.storage.hold()
            for pair in (deliveries[:2], deliveries[2:4]):
                assert gathered(line, pair) == 2
                await trio.sleep(1)
            # Of two at once twice as many may wait for the record.
            assert gathered(line, deliveries[4:]) == 0
            await trio.sleep(60)
            assert len(line.wire.sent) == 4
            line.storage.resume()
            await trio.sleep(1)
            assert sorted(line.wire.hosts()) == list("abcdef")
            assert await statuses(line, deliveries) == ["succeeded"] * 6


async def test_nothing_is_begun_before_the_pool_runs(autojump_clock: MockClock) -> None:
    """It goes out once it does."""
    async with open_line() as line:
        deliveries = await due(line, "a", "b")
        assert gathered(line, deliveries) == 0
        async with sending(line):
            await trio.sleep(1)
            assert sorted(line.wire.hosts()) == ["a", "b"]


async def test_nothing_is_begun_by_a_pool_that_is_closed(autojump_clock: MockClock) -> None:
    """Section 8: a drain waits for what is under way, and not for what comes in meanwhile."""
    async with open_line() as line:
        first, second = await due(line, "a", "b")
        line.wire.answers["a"] = Answer(after=20)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(line.senders.run)
            await wait_all_tasks_blocked()
            assert gathered(line, [first]) == 1
            line.destinations.close()
            await trio.sleep(1)
            assert gathered(line, [second]) == 0
        assert trio.current_time() == pytest.approx(20, abs=1)
        # And it is over now.
        assert gathered(line, await due(line, "c")) == 0
        assert line.wire.hosts() == ["a"]
        assert await statuses(line, [first, second]) == ["succeeded", "pending"]


async def test_what_was_begun_so_is_interrupted_by_a_cancellation(
    autojump_clock: MockClock,
) -> None:
    """5.6: on record, due again at once, as what the task began."""
    async with open_line() as line:
        deliveries = await due(line, "a", "b")
        line.wire.answers |= {"a": HANGS, "b": HANGS}
        async with sending(line):
            assert gathered(line, deliveries) == 2
            await trio.sleep(10)
        for delivery in deliveries:
            (attempt,) = await line.attempts(delivery.id)
            assert (attempt.failure_reason, attempt.response_time) == ("interrupted", 10_000)
            after = await line.delivery(delivery.id)
            assert (after.status, after.due_at) == ("pending", line.now())
            assert (after.interruptions, after.claimed_by) == (1, None)
        assert line.senders.busy == 0
        assert line.wire.under_way == 0


@pytest.mark.parametrize("others", [False, True], ids=["nothing else", "others under way"])
async def test_begun_while_a_cancelled_pool_comes_to_its_end(
    others: bool, autojump_clock: MockClock
) -> None:
    """5.6: a commit may come at any moment of that. What it made is left alone, or what was sent of
    it is on record; nothing in between, and it is no bug."""
    seen: set[str] = set()
    for checkpoints in range(8):
        async with open_line() as line:
            other, delivery = await due(line, "a", "b")
            line.wire.answers |= {"a": HANGS, "b": HANGS}
            async with trio.open_nursery() as nursery:
                nursery.start_soon(line.senders.run)
                await wait_all_tasks_blocked()
                if others:
                    assert gathered(line, [other]) == 1
                    await wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
                with trio.CancelScope(shield=True):
                    for _ in range(checkpoints):
                        await trio.lowlevel.checkpoint()
                gathered(line, [delivery])
            assert line.senders.busy == 0
            # It is where a bug was met, such as a task begun where there can be none any more.
            assert not line.destinations.closed
            attempts = await line.attempts(delivery.id)
            assert len(attempts) == line.wire.hosts().count("b") <= 1
            if attempts:
                assert attempts[0].failure_reason == "interrupted"
                seen.add("begun")
            else:
                seen.add("left alone")
    assert "left alone" in seen


class Broken(Wire):
    """Has a bug, which one receiver brings out."""

    def begin(
        self,
        exchange: UnderWay,
        ended: Callable[[UnderWay, Outcome | Unread | CutShort], None],
        now: float,
        started_at: Micros,
    ) -> bool:
        if exchange.request.target.host == "bug":
            raise RuntimeError("a bug")
        return super().begin(exchange, ended, now, started_at)


@pytest.mark.parametrize("by", ["begin", "task"])
async def test_a_bug_comes_out_of_the_task(by: str, autojump_clock: MockClock) -> None:
    """Not out of `begin`, whose caller has others to tell; and what is under way is interrupted and
    on record, whoever meets the bug."""
    async with open_line() as line:
        line.wire = Broken(line.clock, keeps=line.wire.keeps)
        line.another(NODE)
        (before,) = await due(line, "a")
        line.wire.answers |= dict.fromkeys("abc", HANGS)

        over = trio.Event()

        async def run() -> None:
            with pytest.RaisesGroup(
                pytest.RaisesExc(RuntimeError, match="a bug"), flatten_subgroups=True
            ):
                await line.senders.run()
            over.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await wait_all_tasks_blocked()
            gathered(line, [before])
            await trio.sleep(5)
            beside, bug, behind, late = await due(line, "b", "bug", "c", "d")
            if by == "begin":
                gathered(line, [beside, bug, behind])
                # What comes while it ends is not begun any more.
                assert gathered(line, [late]) == 0
            else:
                admit(line, [beside, bug, behind])
            with trio.fail_after(30):
                await over.wait()
        (attempt,) = await line.attempts(before.id)
        assert (attempt.failure_reason, attempt.response_time) == ("interrupted", 5_000)
        # Never begun: it is made after the restart.
        assert await line.attempts(bug.id) == await line.attempts(behind.id) == []
        assert [one.failure_reason for one in await line.attempts(beside.id)] in (
            [],
            ["interrupted"],
        )
        assert line.wire.under_way == 0
