"""Rules of destinations, from storage to the wire: limits, headers, and who is sent nothing."""

from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from typing import Any

import msgspec
import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from primeflowd import destination_policies as policies
from primeflowd.config import Config, from_mapping
from primeflowd.destination_policies import Turn
from primeflowd.durations import Duration
from primeflowd.errors import StorageUnavailable
from primeflowd.events import Event
from primeflowd.instants import SECOND
from primeflowd.keyring import Keyring
from primeflowd.model import DestinationPolicy
from primeflowd.rulebook import Rulebook
from primeflowd.unit import Unit
from tests import sending
from tests.network import pairs
from tests.sending import ILL, OK, Answer, Line, destination

KEEPS: ContextVar[bool] = ContextVar("KEEPS", default=False)
TWO_HOURS = Duration("2h")


@pytest.fixture(params=[False, True], ids=["in tasks", "over kept connections"], autouse=True)
def keeps(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Everything here holds for attempts in tasks and for those without one."""
    KEEPS.set(request.param)
    yield request.param
    KEEPS.set(False)


def open_line(**changes: Any) -> AbstractAsyncContextManager[Line]:
    return sending.open_line(keeps=KEEPS.get(), **changes)


async def change(line: Line, host: str = "a", **wanted: Any) -> None:
    """As the API does it; `wanted` are settings, `headers` and `disabled`."""
    headers = wanted.pop("headers", {})
    disabled = wanted.pop("disabled", msgspec.UNSET)
    done = policies.Change(settings=wanted, headers=headers, disabled=disabled)

    def operation(unit: Unit) -> Turn | None:
        return policies.change(unit, line.keyring, {}, destination(host), done)[1]

    turn = await line.intake.perform(operation)
    line.rulebook.changed(destination(host), turn)


async def policy(line: Line, host: str = "a") -> DestinationPolicy | None:
    return await line.storage.read(lambda tx: tx.destination_policy(destination(host)))


def start(line: Line, nursery: trio.Nursery) -> None:
    line.start(nursery)
    nursery.start_soon(line.rulebook.run)


async def test_concurrency_caps_the_window(autojump_clock: MockClock) -> None:
    """And that of no other destination."""
    async with open_line(window_initial=8) as line, trio.open_nursery() as nursery:
        line.wire.answers["a"] = line.wire.answers["b"] = Answer(after=1)
        await change(line, concurrency=2)
        await line.rulebook.load()
        await line.add("a", 20)
        await line.add("b", 8)
        start(line, nursery)
        await trio.sleep(0.5)
        assert (len(line.wire.times("a")), len(line.wire.times("b"))) == (2, 8)
        await trio.sleep(10)
        assert len(line.wire.times("a")) == 20
        assert line.destinations.statistics()[destination("a")].window == 2
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("rate", "burst"), [(2.0, 1), (0.5, 3), (50.0, 5), (1000.0, 1)])
async def test_rate(rate: float, burst: int, autojump_clock: MockClock) -> None:
    """In any stretch of time no more than the burst and the rate, and nearly as many."""
    async with open_line(window_initial=64) as line, trio.open_nursery() as nursery:
        await change(line, rate=rate, burst=burst)
        await line.rulebook.load()
        await line.add("a", 40)
        start(line, nursery)
        await trio.sleep(100)
        times = line.wire.times("a")
        assert len(times) == 40
        for first, begun in enumerate(times):
            for count, ended in enumerate(times[first:], 1):
                assert count <= burst + rate * (ended - begun) / SECOND + 0.01
        ideal = (40 - burst) / rate
        assert (times[-1] - times[0]) / SECOND <= ideal + max(0.1 * ideal, 0.1)
        nursery.cancel_scope.cancel()


async def test_a_rate_is_lifted_at_once(autojump_clock: MockClock) -> None:
    async with open_line(window_initial=64) as line, trio.open_nursery() as nursery:
        await change(line, rate=0.001)
        await line.rulebook.load()
        await line.add("a", 10)
        start(line, nursery)
        await trio.sleep(1)
        assert len(line.wire.sent) == 1
        await change(line, rate=None)
        await trio.sleep(0.1)
        assert len(line.wire.sent) == 10
        nursery.cancel_scope.cancel()


async def test_timeout_and_headers(autojump_clock: MockClock) -> None:
    """6.2, 6.4: what primeflowd and the signers set is not to be replaced."""
    async with open_line() as line, trio.open_nursery() as nursery:
        await line.secret()
        await change(line, timeout="3s", headers={"X-Token": "t0ken", "x-seal": "forged"})
        await line.rulebook.load()
        start(line, nursery)
        await line.add("b")
        await trio.sleep(0.1)
        await line.add("a")
        await trio.sleep(10)
        ours, others = (
            next(r for _, r in line.wire.sent if r.target.host == host) for host in ("a", "b")
        )
        assert (ours.timeout, others.timeout) == (Duration("3s"), None)
        assert pairs(ours.lines)[-1] == ("X-Token", "t0ken")
        names = [name for name, _ in pairs(ours.lines)]
        assert names == [*(name for name, _ in pairs(others.lines)), "X-Token"]
        assert "t0ken" not in repr(line.destinations._rules)
        nursery.cancel_scope.cancel()


async def test_disabled_deliveries_wait_in_storage(autojump_clock: MockClock) -> None:
    """5.6: nothing is lost, nobody claims it, and it goes once the destination is enabled."""
    async with open_line(window_initial=2) as line, trio.open_nursery() as nursery:
        line.wire.answers["a"] = Answer(after=1)
        start(line, nursery)
        due = await line.add("a", 20)
        later = await line.add("a", 1, due_in=20)
        await trio.sleep(0.5)
        sent = len(line.wire.times("a"))
        await change(line, disabled="moves")
        retried = await line.submit("a", 3)
        await line.add("b", 3)
        await trio.sleep(100)
        # Those under way ended as they began.
        assert len(line.wire.times("a")) == sent
        assert line.wire.hosts().count("b") == 3
        found = [await line.delivery(one) for one in (*due, *later, *retried)]
        assert [each.status for each in found].count("pending") == 24 - sent
        assert await line.claims() == {}
        assert len(line.holdings) == 0
        assert all(each.attempt_count == 0 for each in found if each.status == "pending")
        await change(line, disabled=None)
        await trio.sleep(60)
        found = await line.deliveries()
        assert {each.status for each in found} == {"succeeded"}
        assert {each.attempt_count for each in found} == {1}
        nursery.cancel_scope.cancel()


async def test_disabled_deliveries_fail_if_told_to(autojump_clock: MockClock) -> None:
    """5.3, 7: as a refused address does; no connection is made."""
    async with open_line() as line, trio.open_nursery() as nursery:
        await change(line, disabled="gone for good", while_disabled="fail", rate=0.1)
        await line.rulebook.load()
        start(line, nursery)
        ids = [*await line.add("a", 3), *await line.submit("a", 3)]
        await trio.sleep(1)
        assert line.wire.sent == []
        for one in ids:
            found = await line.delivery(one)
            assert (found.status, found.failure_reason) == ("failed", "url_not_allowed")
            assert found.failure_detail == "the destination is disabled: gone for good"
            (attempt,) = await line.attempts(one)
            assert (attempt.status_code, attempt.attempt_number) == (None, 1)
        nursery.cancel_scope.cancel()


async def test_another_node_sees_it_within_the_time(autojump_clock: MockClock) -> None:
    async with open_line() as line, trio.open_nursery() as nursery:
        start(line, nursery)
        await trio.sleep(1)
        other = Rulebook(line.storage, line.keyring, line.clock, Config(), lambda rules: None)
        line.rulebook, mine = other, line.rulebook
        await change(line, disabled="elsewhere")
        line.rulebook = mine
        await trio.sleep(5)
        await line.add("a")
        await trio.sleep(10)
        assert line.wire.sent == []
        nursery.cancel_scope.cancel()


async def test_the_file_says_it_unless_it_is_only_disabled(autojump_clock: MockClock) -> None:
    config = from_mapping(
        {"destinations": {"https://a": {"concurrency": 7, "headers": {"X": "y"}}}}
    )
    async with open_line() as line:
        found: list[Any] = []
        book = Rulebook(line.storage, line.keyring, line.clock, config, found.append)
        await book.load()
        rules = found[-1][destination("a")]
        assert (rules.concurrency, rules.headers, rules.disabled) == (7, (("X", "y"),), None)
        await change(line, disabled="now")
        await book.load()
        rules = found[-1][destination("a")]
        assert (rules.concurrency, rules.disabled, rules.shut) == (7, "now", True)
        book.reconfigure(Config())
        assert found[-1][destination("a")].concurrency == 0


async def test_headers_that_do_not_open_keep_everything_back(autojump_clock: MockClock) -> None:
    async with open_line() as line:
        await change(line, headers={"X-Token": "t"})
        found: list[Any] = []
        other_key = Keyring(b"x" * 32)
        book = Rulebook(line.storage, other_key, line.clock, Config(), found.append)
        with capture_logs() as logs:
            await book.load()
        assert found[-1][destination("a")].shut
        assert [each["event"] for each in logs] == ["destination_headers_unreadable"]


async def test_a_410_disables_only_where_it_is_told_to(autojump_clock: MockClock) -> None:
    """5.2: the delivery fails as gone in any case."""
    async with open_line() as line, trio.open_nursery() as nursery:
        told: list[Event] = []
        line.rulebook.on_event = told.append
        line.wire.answers["a"] = line.wire.answers["b"] = Answer(status=410)
        await change(line, "a", disable_when_gone=True)
        await line.rulebook.load()
        start(line, nursery)
        with capture_logs() as logs:
            (first,) = await line.add("a")
            await line.add("b")
            await trio.sleep(1)
        (second,) = await line.submit("a")
        await trio.sleep(30)
        assert (await line.delivery(first)).failure_reason == "gone"
        assert (await line.delivery(second)).status == "pending"
        assert await policy(line, "b") is None
        assert [(each.kind, each.data["reason"]) for each in told] == [
            ("destination.disabled", "it answered 410")
        ]
        [logged] = [each for each in logs if each["event"] == "destination_disabled"]
        assert (logged["destination"], logged["reason"]) == (destination("a"), "it answered 410")
        nursery.cancel_scope.cancel()


async def fail_for(line: Line, hours: float, *, every: float = 240.0) -> None:
    for _ in range(round(hours * 3600 / every)):
        await line.add("a", delays=(), max_retries=0)
        await trio.sleep(every)


@pytest.mark.parametrize("answer", [ILL, Answer(status=500), Answer(status=404)])
async def test_only_failures_for_so_long_disable(answer: Answer, autojump_clock: MockClock) -> None:
    """Whatever the failures are; a restart forgets nothing that has lasted an hour."""
    async with open_line(disable_after=TWO_HOURS, suspend_max=Duration("1s")) as line:
        line.wire.answers["a"] = answer
        async with trio.open_nursery() as nursery:
            start(line, nursery)
            await fail_for(line, 0.8)
            assert await policy(line) is None
            await fail_for(line, 0.4)
            found = await policy(line)
            assert found is not None
            assert found.failing_since is not None
            assert abs(found.failing_since - line.begun) < SECOND
            nursery.cancel_scope.cancel()
        line.another("node-2")
        told: list[Event] = []
        line.rulebook.on_event = told.append
        async with trio.open_nursery() as nursery:
            start(line, nursery)
            await fail_for(line, 0.6)
            assert told == []
            await fail_for(line, 0.4)
            assert [each.subject for each in told] == [destination("a")]
            found = await policy(line)
            assert found is not None
            assert found.disabled_reason == "every attempt has failed for 2h"
            assert (await line.deliveries())[-1].status == "pending"
            # Enabled, it has all the time again.
            await change(line, disabled=None)
            await fail_for(line, 1.8)
            assert [each.data["reason"] for each in told] == [found.disabled_reason]
            nursery.cancel_scope.cancel()


async def test_one_success_begins_anew(autojump_clock: MockClock) -> None:
    """And leaves nothing in storage."""
    async with open_line(disable_after=TWO_HOURS) as line, trio.open_nursery() as nursery:
        line.wire.answers["a"] = Answer(status=500)
        start(line, nursery)
        for _ in range(3):
            await fail_for(line, 1.5)
            found = await policy(line)
            assert found is not None
            assert found.failing_since is not None
            line.wire.answers["a"] = OK
            await fail_for(line, 0.2)
            assert await policy(line) is None
            line.wire.answers["a"] = Answer(status=500)
        nursery.cancel_scope.cancel()


async def test_what_another_node_saw_counts(autojump_clock: MockClock) -> None:
    """A success there, since: this node's own count is no reason to disable."""
    async with open_line(disable_after=TWO_HOURS) as line, trio.open_nursery() as nursery:
        line.wire.answers["a"] = Answer(status=500)
        start(line, nursery)
        await fail_for(line, 1.9)
        name, now = destination("a"), line.now()
        await line.storage.write(lambda tx: policies.note_failing(tx, name, None, now))
        await fail_for(line, 1.5)
        found = await policy(line)
        assert found is not None
        assert found.disabled_reason is None
        assert found.failing_since is not None
        assert found.failing_since >= now
        nursery.cancel_scope.cancel()


async def test_nothing_is_kept_where_nothing_is_to_be_disabled(autojump_clock: MockClock) -> None:
    async with open_line() as line, trio.open_nursery() as nursery:
        line.wire.answers["a"] = Answer(status=500)
        start(line, nursery)
        await fail_for(line, 5)
        assert destination("a") not in line.rulebook.failing
        assert await policy(line) is None
        nursery.cancel_scope.cancel()


async def test_storage_out_of_reach_delays_what_is_written_down(
    autojump_clock: MockClock,
) -> None:
    async with open_line() as line, trio.open_nursery() as nursery:
        await change(line, disable_when_gone=True)
        await line.rulebook.load()
        line.wire.answers["a"] = Answer(status=410, after=1)
        start(line, nursery)
        await line.add("a")
        await trio.sleep(0.5)
        line.storage.fail_with = StorageUnavailable("broken")
        await trio.sleep(10)
        assert len(line.wire.sent) == 1
        line.storage.fail_with = None
        await trio.sleep(10)
        found = await policy(line)
        assert found is not None
        assert found.disabled_reason == "it answered 410"
        nursery.cancel_scope.cancel()
