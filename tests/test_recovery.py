"""Bulk redelivery: what a job matches, how fast it goes, and that it is done once (5.4)."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from primeflowd.clock import TrioClock
from primeflowd.config import Config, DeliverySettings
from primeflowd.errors import Overloaded, PrimeflowdError, StorageUnavailable
from primeflowd.hookspecs import Storage
from primeflowd.instants import HOUR, SECOND, Micros
from primeflowd.intake import Intake
from primeflowd.model import Batch, Delivery, Recovery
from primeflowd.recovery import Recoveries, start_recovery
from primeflowd.redelivery import cancel_delivery, redeliver
from primeflowd.unit import Unit
from tests.node import ACME, GLOBEX, START, HandClock, Node, Record, open_node

T = TypeVar("T")


def rate(per_second: float) -> Config:
    return Config(delivery=DeliverySettings(recovery_rate=per_second))


def service(node: Node, storage: Storage | None = None) -> Recoveries:
    return Recoveries(storage or node.storage, node.intake, node.config.delivery)


async def failed(node: Node, org_id: str = ACME, url: str = "https://example.com/hook") -> Batch:
    """A batch whose automatic delivery has failed."""
    batch = await node.ended(org_id, url)
    [delivery] = await node.deliveries(batch.id, org_id)
    await node.settle(delivery.id)
    return batch


async def asked(
    node: Node, since: Micros = 0, until: Micros | None = None, org_id: str = ACME
) -> Recovery:
    return await node.perform(start_recovery, org_id, since, until, None, None)


async def progress(node: Node, job: Recovery) -> Recovery:
    stored = await node.read(lambda tx: tx.recovery(job.org_id, job.id))
    assert stored is not None
    return stored


async def completed(node: Node, job: Recovery, running: Recoveries | None = None) -> Recovery:
    """What the job is when it is done; the service runs until then."""
    with trio.fail_after(1000):
        return await _completed(node, job, running)


async def _completed(node: Node, job: Recovery, running: Recoveries | None) -> Recovery:
    async with trio.open_nursery() as nursery:
        nursery.start_soon((running or service(node)).run)
        while (stored := await progress(node, job)).status == "running":  # noqa: ASYNC110 - it is told to nobody
            await trio.sleep(0.05)
        nursery.cancel_scope.cancel()
    return stored


def redelivered(node: Node) -> list[Delivery]:
    return [delivery for delivery, _ in node.schedule.admitted if not delivery.is_automatic]


# What a job matches


async def test_the_window_s_bounds_are_inclusive(autojump_clock: MockClock) -> None:
    """5.4: of five deliveries made a microsecond apart, the middle three."""
    clock = HandClock()
    async with open_node(clock=clock) as node:
        batches = []
        for k in range(5):
            clock.instant = START + k
            batches.append(await failed(node))
        clock.instant = START + HOUR
        job = await asked(node, START + 1, START + 3)
        assert (job.status, job.matched, job.redelivered, job.skipped) == ("running", 3, 0, 0)
        assert (job.since, job.until, job.created_at) == (START + 1, START + 3, START + HOUR)
        assert await progress(node, job) == job
        done = await completed(node, job)
        assert [d.batch_id for d in redelivered(node)] == [b.id for b in batches[1:4]]
        assert (done.matched, done.redelivered, done.skipped) == (3, 3, 0)
        assert done.completed_at == START + HOUR


@pytest.mark.parametrize("until", [None, START + HOUR])
async def test_a_window_ends_now_at_the_latest(
    until: Micros | None, autojump_clock: MockClock
) -> None:
    """5.4: what fails later than the order is none of its business, nor are its own failures."""
    clock = HandClock()
    async with open_node(clock=clock) as node:
        early = await failed(node)
        late = await node.ended()
        clock.instant += SECOND
        job = await asked(node, START, until)
        assert (job.until, job.matched) == (START + SECOND, 1)
        clock.instant += SECOND
        # Made within the window, but still on its way when the job was asked for.
        await node.settle((await node.deliveries(late.id))[0].id)
        await failed(node)
        done = await completed(node, job)
        assert [d.batch_id for d in redelivered(node)] == [early.id]
        assert (done.redelivered, done.skipped) == (1, 0)


async def test_what_failed_in_the_same_instant_is_matched(autojump_clock: MockClock) -> None:
    """5.4: the window reaches up to now, now included."""
    async with open_node() as node:
        await failed(node)
        done = await completed(node, await asked(node))
        assert (done.matched, done.redelivered) == (1, 1)


async def test_other_orgs_are_left_alone(autojump_clock: MockClock) -> None:
    """5.4, 2.2"""
    async with open_node() as node:
        mine, theirs = await failed(node), await failed(node, GLOBEX)
        job = await asked(node)
        assert job.matched == 1
        await completed(node, job)
        assert [d.batch_id for d in redelivered(node)] == [mine.id]
        assert len(await node.deliveries(theirs.id, GLOBEX)) == 1
        assert await node.read(lambda tx: tx.recovery(GLOBEX, job.id)) is None


async def test_only_failed_deliveries_are_matched(autojump_clock: MockClock) -> None:
    """5.4: neither what is on its way nor what got through."""
    async with open_node() as node:
        await node.ended()
        [good] = await node.deliveries((await node.ended()).id)
        await node.settle(good.id, None)
        done = await completed(node, await asked(node))
        assert (done.matched, done.redelivered, done.skipped) == (0, 0, 0)
        assert redelivered(node) == []


async def test_filters_narrow_the_window(autojump_clock: MockClock) -> None:
    """5.4: `destination` and `failure_reason_code`."""
    async with open_node() as node:
        here = await failed(node)
        there = await failed(node, url="https://other.example/hook")
        gone = await node.ended(url="https://other.example/hook")
        await node.settle((await node.deliveries(gone.id))[0].id, "gone")
        for destination, reason, expected in [
            ("https://example.com:443", None, here),
            ("https://other.example:443", "timeout", there),
            (None, "gone", gone),
        ]:
            before = len(redelivered(node))
            job = await node.perform(start_recovery, ACME, 0, None, destination, reason)
            done = await completed(node, job)
            assert (done.matched, done.redelivered) == (1, 1)
            [made] = redelivered(node)[before:]
            assert made.batch_id == expected.id
            # Ended otherwise, so that the next job matches it no more.
            await node.settle(made.id, None)


# What becomes of what it matched


async def test_a_batch_is_redelivered_once(autojump_clock: MockClock) -> None:
    """5.4: however many of its deliveries failed, in one page or in several."""
    async with open_node(config=rate(1)) as node:
        batch = await failed(node)
        again = await node.perform(redeliver, ACME, batch.id)
        await node.settle(again.id)
        other = await failed(node)
        node.schedule.admitted.clear()
        job = await asked(node)
        assert job.matched == 3
        done = await completed(node, job)
        assert [d.batch_id for d in redelivered(node)] == [batch.id, other.id]
        assert (done.redelivered, done.skipped) == (2, 1)


async def test_a_job_does_not_redeliver_its_own_failures(autojump_clock: MockClock) -> None:
    """5.4: the batch has two failed deliveries, and what it makes of the first fails at once."""
    clock = HandClock()
    async with open_node(clock=clock, config=rate(1)) as node:
        batch = await failed(node)
        again = await node.perform(redeliver, ACME, batch.id)
        await node.settle(again.id)
        node.schedule.admitted.clear()
        job = await asked(node)
        clock.instant += SECOND
        async with trio.open_nursery() as nursery:
            nursery.start_soon(service(node).run)
            await trio.sleep(0.5)
            [made] = redelivered(node)
            await node.settle(made.id)
            await trio.sleep(10)
            nursery.cancel_scope.cancel()
        assert redelivered(node) == [made]
        done = await progress(node, job)
        assert (done.status, done.redelivered, done.skipped) == ("completed", 1, 1)


@pytest.mark.parametrize("since", ["in flight", "got through", "cancelled"])
async def test_what_was_redelivered_since_is_skipped(since: str, autojump_clock: MockClock) -> None:
    """5.4: by a person, since the job was asked for, whatever became of it."""
    clock = HandClock()
    async with open_node(clock=clock) as node:
        batch = await failed(node)
        job = await asked(node)
        clock.instant += SECOND
        again = await node.perform(redeliver, ACME, batch.id)
        if since == "got through":
            await node.settle(again.id, None)
        node.schedule.admitted.clear()
        if since == "cancelled":
            await node.perform(cancel_delivery, ACME, again.id)
        done = await completed(node, job)
        assert redelivered(node) == []
        assert (done.matched, done.redelivered, done.skipped) == (1, 0, 1)


# Pace and persistence


async def test_a_job_keeps_its_pace(autojump_clock: MockClock) -> None:
    """5.4: `delivery.recovery_rate` a second, never more than a second's worth at once."""
    async with open_node(clock=TrioClock(), config=rate(10)) as node:
        batches = [await failed(node) for _ in range(35)]
        job = await asked(node)
        done = await completed(node, job)
        made = redelivered(node)
        assert Counter(d.batch_id for d in made) == Counter(b.id for b in batches)
        seconds = Counter((d.created_at - job.created_at) // SECOND for d in made)
        assert seconds == {0: 10, 1: 10, 2: 10, 3: 5}
        assert (done.redelivered, done.skipped) == (35, 0)


async def test_a_slow_pace_is_kept_too(autojump_clock: MockClock) -> None:
    """5.4: less than one a second."""
    async with open_node(clock=TrioClock(), config=rate(0.5)) as node:
        for _ in range(3):
            await failed(node)
        job = await asked(node)
        await completed(node, job)
        assert [(d.created_at - job.created_at) // SECOND for d in redelivered(node)] == [0, 2, 4]


async def test_what_is_skipped_takes_no_time(autojump_clock: MockClock) -> None:
    """5.4: the pace is that of redeliveries."""
    async with open_node(clock=TrioClock(), config=rate(1)) as node:
        for _ in range(20):
            await node.perform(redeliver, ACME, (await failed(node)).id)
        before = trio.current_time()
        done = await completed(node, await asked(node))
        assert done.skipped == 20
        assert trio.current_time() - before < 1


async def test_jobs_take_turns(autojump_clock: MockClock) -> None:
    """5.4: a long job of one org does not hold up a short one of another; together they keep
    the pace."""
    async with open_node(clock=TrioClock(), config=rate(10)) as node:
        for _ in range(100):
            await failed(node)
        for _ in range(10):
            await failed(node, GLOBEX)
        long, short = await asked(node), await asked(node, org_id=GLOBEX)
        await completed(node, short)
        # Two pages each until the short one is done, and one more until the test sees it.
        assert (await progress(node, long)).redelivered <= 30
        made = redelivered(node)
        elapsed = (made[-1].created_at - made[0].created_at) / SECOND
        assert len(made) <= 10 * elapsed + 10


async def test_progress_shows_while_it_runs(autojump_clock: MockClock) -> None:
    """5.4: readable at any time."""
    async with open_node(clock=TrioClock(), config=rate(10)) as node:
        for _ in range(30):
            await failed(node)
        job = await asked(node)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(service(node).run)
            await trio.sleep(1.5)
            half_way = await progress(node, job)
            nursery.cancel_scope.cancel()
        assert (half_way.status, half_way.matched, half_way.redelivered) == ("running", 30, 20)
        assert half_way.completed_at is None


class CancelAfter(Record):
    """A schedule that cancels a scope with the commit of the nth redelivery."""

    def __init__(self, count: int, scope: trio.CancelScope) -> None:
        super().__init__()
        self._count = count
        self._scope = scope

    def admit(self, made: Iterable[tuple[Delivery, bytes | None]]) -> None:
        super().admit(made)
        if len(self.admitted) >= self._count:
            self._scope.cancel()


async def test_a_job_resumes_after_a_restart(tmp_path: Path) -> None:
    """5.4, 5.6: stopped in the middle of a page's commit; nothing is left out or done twice."""
    url = f"sqlite:///{tmp_path / 'p.db'}"
    config = rate(1_000_000)
    async with open_node(url, config=config) as node:
        batches = [await failed(node) for _ in range(120)]
        job = await asked(node)
        scope = trio.CancelScope()
        stopping = CancelAfter(30, scope)
        intake = Intake(node.storage, stopping, node.clock, node.config)
        with scope:
            await Recoveries(node.storage, intake, config.delivery).run()
        half_way = await progress(node, job)
        assert half_way.status == "running"
        assert half_way.redelivered == len(stopping.admitted) == 50
    async with open_node(url, config=config) as node:
        done = await completed(node, job)
        assert (done.matched, done.redelivered, done.skipped) == (120, 120, 0)
        made = [*stopping.admitted, *node.schedule.admitted]
        assert Counter(d.batch_id for d, _ in made) == Counter(b.id for b in batches)


async def test_two_nodes_share_a_job(autojump_clock: MockClock) -> None:
    """5.4: the position is read in the transaction that moves it on."""
    async with open_node(clock=TrioClock(), config=rate(10)) as node:
        batches = [await failed(node) for _ in range(45)]
        job = await asked(node)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(service(node).run)
            done = await completed(node, job)
            nursery.cancel_scope.cancel()
        assert Counter(d.batch_id for d in redelivered(node)) == Counter(b.id for b in batches)
        assert (done.redelivered, done.skipped) == (45, 0)


class Late(Intake):
    """An intake that waits before it does anything."""

    def __init__(self, node: Node) -> None:
        super().__init__(node.storage, node.schedule, node.clock, node.config)
        self.go = trio.Event()

    async def perform(self, operation: Callable[[Unit], T]) -> T:
        await self.go.wait()
        return await super().perform(operation)


async def test_a_job_is_completed_once(autojump_clock: MockClock) -> None:
    """5.4: a node that found it running, and comes when another has done it, changes nothing."""
    clock = HandClock()
    async with open_node(clock=clock) as node:
        await failed(node)
        job = await asked(node)
        late = Late(node)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Recoveries(node.storage, late, node.config.delivery).run)
            await wait_all_tasks_blocked()
            done = await completed(node, job)
            clock.instant += SECOND
            late.go.set()
            await trio.sleep(10)
            nursery.cancel_scope.cancel()
        assert await progress(node, job) == done


class Ailing(Intake):
    """An intake that fails a few times before it works."""

    failures: Sequence[PrimeflowdError] = ()

    async def perform(self, operation: Callable[[Unit], T]) -> T:
        if self.failures:
            failure, *self.failures = self.failures
            raise failure
        return await super().perform(operation)


async def test_a_job_waits_while_storage_fails(autojump_clock: MockClock) -> None:
    """5.4: and for room in the backlog."""
    async with open_node(clock=TrioClock()) as node:
        await failed(node)
        job = await asked(node)
        intake = Ailing(node.storage, node.schedule, node.clock, node.config)
        intake.failures = [StorageUnavailable("disk full"), Overloaded("too many writes")]
        before = trio.current_time()
        done = await completed(node, job, Recoveries(node.storage, intake, node.config.delivery))
        assert done.redelivered == 1
        assert 1 < trio.current_time() - before < 30


async def test_a_new_job_starts_at_once(autojump_clock: MockClock) -> None:
    """5.4: when this node was told of it; within seconds when another was."""
    async with open_node(clock=TrioClock()) as node:
        recoveries = service(node)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(recoveries.run)
            await trio.sleep(1)
            for told, most in [(True, 0.1), (False, 5.1)]:
                await failed(node)
                job = await asked(node)
                if told:
                    recoveries.rouse()
                asked_at = trio.current_time()
                while (await progress(node, job)).status == "running":  # noqa: ASYNC110 - as above
                    await trio.sleep(0.05)
                assert trio.current_time() - asked_at < most
                # What this job made is out of the next one's way.
                [made] = redelivered(node)
                await node.settle(made.id, None)
                node.schedule.admitted.clear()
                await trio.sleep(1)
            nursery.cancel_scope.cancel()


async def test_of_several_nodes_only_the_eldest_works(autojump_clock: MockClock) -> None:
    """5.4: paced; each node at the pace would be too fast for all of them together."""
    async with open_node(clock=TrioClock()) as node, trio.open_nursery() as nursery:
        await failed(node)
        job = await asked(node)
        eldest = False
        running = Recoveries(node.storage, node.intake, node.config.delivery, lambda: eldest)
        nursery.start_soon(running.run)
        await trio.sleep(600)
        assert (await progress(node, job)).redelivered == 0
        eldest = True  # the other one has died
        await trio.sleep(6)
        assert (await progress(node, job)).redelivered == 1
        nursery.cancel_scope.cancel()
