"""deadlines.py: every exchange ends, by its own time."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice

import msgspec
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from primeflowd.connection import Connection
from primeflowd.deadlines import CUT_SHORT, TOO_LATE, Deadlines
from primeflowd.durations import Duration
from primeflowd.http_response import ResponseReader
from primeflowd.model import Outcome
from primeflowd.testing.receiver import Answer, open_receiver
from tests.network import (
    begin,
    both,
    loaded,
    request,
    transport,
)


@pytest.fixture
def connections() -> Iterator[Iterator[Connection]]:
    """As many as are asked for."""
    with ExitStack() as stack:

        def make() -> Connection:
            ours, _ = (stack.enter_context(each) for each in socket.socketpair())
            ours.setblocking(False)
            return Connection(ours, "192.0.2.1:80", ResponseReader(1024, 1024))

        yield iter(make, None)


def nothing_else(_: float) -> None:
    """For Deadlines.run."""


async def test_each_ends_by_its_own_time(
    nursery: trio.Nursery, connections: Iterator[Connection], autojump_clock: MockClock
) -> None:
    """7: in whatever order they began, those that are over and those of other settings included."""
    deadlines = Deadlines()
    nursery.start_soon(deadlines.run, nothing_else)
    await trio.testing.wait_all_tasks_blocked()
    began = trio.current_time()
    usual, over, own, later = islice(connections, 4)
    deadlines.watch(usual, began + 30, False)
    deadlines.watch(over, began + 31, False)
    deadlines.watch(own, began + 40, True)
    await trio.sleep(1)
    deadlines.part()
    deadlines.watch(later, began + 10, False)
    assert deadlines.unwatch(over) == began + 31
    ends: dict[Connection, float] = {}
    while len(ends) < 3:
        await trio.sleep(0.1)
        for connection in (usual, over, own, later):
            if connection.ended_by is not None and connection not in ends:
                assert connection.ended_by == TOO_LATE
                ends[connection] = trio.current_time() - began
    assert ends == {
        later: pytest.approx(10.1, abs=0.11),
        usual: pytest.approx(30.1, abs=0.11),
        own: pytest.approx(40.1, abs=0.11),
    }
    assert len(deadlines) == 3
    assert [deadlines.unwatch(one) - began for one in (usual, own, later)] == [30, 40, 10]
    assert len(deadlines) == 0


async def test_all_are_ended_at_once(connections: Iterator[Connection]) -> None:
    """Whatever time they have."""
    deadlines = Deadlines()
    usual, own = islice(connections, 2)
    deadlines.watch(usual, 30, False)
    deadlines.watch(own, 20, True)
    deadlines.cut_short()
    assert [usual.ended_by, own.ended_by] == [CUT_SHORT, CUT_SHORT]


async def test_none_is_kept_that_was_in_use(connections: Iterator[Connection]) -> None:
    """8: nor is the exchange itself disturbed."""
    deadlines = Deadlines()
    usual, own = islice(connections, 2)
    for connection in (usual, own):
        connection.response.keep_alive = True
    deadlines.watch(usual, 30, False)
    deadlines.watch(own, 20, True)
    assert (usual.reusable, own.reusable) == (True, True)
    deadlines.retire()
    assert (usual.reusable, own.reusable) == (False, False)
    assert (usual.ended_by, own.ended_by) == (None, None)


async def test_others_are_looked_after(
    nursery: trio.Nursery, connections: Iterator[Connection], autojump_clock: MockClock
) -> None:
    """At their times; that of an exchange may come before."""
    deadlines = Deadlines()
    looks: list[float] = []

    def others(now: float) -> float | None:
        looks.append(now - began)
        return began + 20 if now < began + 20 else None

    began = trio.current_time()
    nursery.start_soon(deadlines.run, others)
    await trio.testing.wait_all_tasks_blocked()
    connection = next(connections)
    deadlines.watch(connection, began + 5, False)
    await trio.sleep(10)
    assert connection.ended_by == TOO_LATE
    deadlines.unwatch(connection)
    await trio.sleep(100)
    assert looks[-1] == pytest.approx(20, abs=0.1)


async def test_a_deadline_after_a_while_without_attempts(nursery: trio.Nursery) -> None:
    """7: kept connections are all that is looked after in between."""
    async with open_receiver(nursery, [Answer(), Answer(hang=True)]) as receiver:
        transport_ = transport(timeout="200ms")
        nursery.start_soon(transport_.run)
        await transport_.send(request(receiver.url()))
        await trio.sleep(0.5)
        with trio.fail_after(5):
            outcome = await transport_.send(request(receiver.url()))
        assert outcome.failure == "timeout"


@pytest.mark.parametrize("size", [2, 5_000_000])
async def test_a_begun_attempt_has_a_deadline(nursery: trio.Nursery, size: int) -> None:
    """7: as every attempt."""
    async with open_receiver(nursery, [Answer(), Answer(hang=True)]) as receiver:
        transport_ = transport(timeout="200ms")
        nursery.start_soon(transport_.run)
        await transport_.send(request(receiver.url()))
        _, told = begin(transport_, request(receiver.url(), bytes(size)))
        outcome = await told.result()
        assert isinstance(outcome, Outcome)
        assert outcome.failure == "timeout"
        assert 200_000 <= outcome.ended_at - outcome.started_at < 2_000_000
        assert transport_.statistics().open == 0


@pytest.mark.parametrize("direct", [False, True])
async def test_a_deadline_holds_where_only_idle_connections_were_watched(
    nursery: trio.Nursery, direct: bool
) -> None:
    """7: the next to expire may be a minute off when the attempt is begun."""
    async with open_receiver(nursery, [Answer(), Answer(hang=True)]) as receiver:
        transport_ = transport(timeout="200ms")
        nursery.start_soon(transport_.run)
        await transport_.send(request(receiver.url()))
        await trio.sleep(0.4)
        with trio.fail_after(2):
            if direct:
                _, told = begin(transport_, request(receiver.url()))
                outcome = await told.result()
            else:
                outcome = await transport_.send(request(receiver.url()))
        assert isinstance(outcome, Outcome)
        assert outcome.failure == "timeout"


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("own", ["150ms", "900ms"])
async def test_a_timeout_of_its_own(nursery: trio.Nursery, own: str, direct: bool) -> None:
    """7: shorter or longer than that of the others, which are under way at the same time."""
    async with open_receiver(nursery, [Answer()] * 2 + [Answer(hang=True)]) as receiver:
        transport_ = transport(timeout="400ms")
        nursery.start_soon(transport_.run)
        await both(transport_, request(receiver.url()), request(receiver.url()))
        ours = msgspec.structs.replace(request(receiver.url()), timeout=Duration(own))
        if direct:
            tolds = [begin(transport_, each)[1] for each in (request(receiver.url()), ours)]
            outcomes = [await told.result() for told in tolds]
        else:
            outcomes = list(await both(transport_, request(receiver.url()), ours))
        for outcome, limit in zip(outcomes, ("400ms", own), strict=True):
            assert isinstance(outcome, Outcome)
            assert outcome.failure == "timeout"
            assert outcome.error_message == f"no answer within {limit}"
            took, least = outcome.ended_at - outcome.started_at, Duration(limit).micros
            assert least <= took < least + 240_000
        assert transport_.statistics().open == 0


async def test_deadlines_of_before_and_after(nursery: trio.Nursery, mock_clock: MockClock) -> None:
    """8: each attempt has the time that it began with; none waits for another's."""
    script = [Answer(), Answer(), Answer(hang=True)]
    async with open_receiver(nursery, script) as receiver:
        transport_ = transport(timeout="50s")
        nursery.start_soon(transport_.run)
        ends: dict[str, float] = {}

        async def one(name: str) -> None:
            assert (await transport_.send(request(receiver.url()))).failure == "timeout"
            ends[name] = trio.current_time()

        async with trio.open_nursery() as first:
            for _ in range(2):
                first.start_soon(transport_.send, request(receiver.url()))

        async def begin(name: str) -> None:
            arrived = len(receiver.requests)
            nursery.start_soon(one, name)
            while len(receiver.requests) == arrived:
                await trio.lowlevel.checkpoint()

        async def jump(seconds: int) -> None:
            for _ in range(seconds):
                mock_clock.jump(1)
                await trio.testing.wait_all_tasks_blocked(0.01)

        # Two over kept connections, the others over new ones.
        await begin("long")
        transport_.reconfigure(loaded(timeout="5s"))
        await begin("short")
        transport_.reconfigure(loaded(timeout="1s"))
        await begin("shortest")
        await jump(10)
        await begin("later")
        await jump(10)
        transport_.reconfigure(loaded(timeout="60s"))
        await begin("longest")
        await jump(65)
        times = {"shortest": 1, "short": 5, "later": 11, "long": 50, "longest": 80}
        # A tick after the deadline, by jumps of a second.
        assert {name: 0 <= ends[name] - time <= 1 for name, time in times.items()} == (
            dict.fromkeys(times, True)
        )
        await transport_.aclose()
