"""Telling plugins of attempts: in order, some at a time, bounded, and to the last one."""

from collections.abc import Sequence

import trio
from structlog.testing import capture_logs
from trio.testing import wait_all_tasks_blocked

from primeflowd.announcer import Announcer
from primeflowd.model import Attempt
from primeflowd.testing.factories import make_attempt


class Told:
    """What a plugin was told."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def __call__(self, attempts: Sequence[Attempt]) -> None:
        self.batches.append([attempt.attempt_number for attempt in attempts])

    @property
    def numbers(self) -> list[int]:
        return [number for batch in self.batches for number in batch]


def tell(announcer: Announcer, numbers: range) -> None:
    for number in numbers:
        announcer.tell(make_attempt(attempt_number=number))


async def test_attempts_are_passed_on_in_order_and_in_batches() -> None:
    """What has gathered goes in one call, up to 500."""
    told = Told()
    announcer = Announcer(told)
    tell(announcer, range(1200))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(announcer.run)
        await wait_all_tasks_blocked()
        assert [len(batch) for batch in told.batches] == [500, 500, 200]
        # Also what comes while it waits, and without waiting for more.
        for number in (1200, 1201):
            tell(announcer, range(number, number + 1))
            await wait_all_tasks_blocked()
        assert told.batches[3:] == [[1200], [1201]]
        assert told.numbers == list(range(1202))
        nursery.cancel_scope.cancel()
    assert announcer.dropped == 0


async def test_telling_does_not_call_the_plugin() -> None:
    """A sender is never held up by a plugin: only the service calls it."""
    told = Told()
    announcer = Announcer(told)
    tell(announcer, range(3))
    await trio.lowlevel.checkpoint()
    assert told.batches == []


async def test_the_queue_is_bounded() -> None:
    """The newest are not announced; how many is counted, and said once."""
    told = Told()
    announcer = Announcer(told)
    with capture_logs() as logs:
        tell(announcer, range(10_007))
    assert announcer.dropped == 7
    assert [entry["event"] for entry in logs] == ["attempts_not_announced"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(announcer.run)
        await wait_all_tasks_blocked()
        # There is room again.
        tell(announcer, range(20_000, 20_001))
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert told.numbers == [*range(10_000), 20_000]
    assert announcer.dropped == 7


async def test_closing_passes_on_what_is_left() -> None:
    """Drain: `run` ends by itself once everything was announced."""
    for count in (0, 1, 499, 500, 501, 1000):
        told = Told()
        announcer = Announcer(told)
        tell(announcer, range(count))
        announcer.close()
        with trio.fail_after(5):
            await announcer.run()
        assert told.numbers == list(range(count))


async def test_closing_ends_a_service_that_waits() -> None:
    """Drain, with nothing left."""
    announcer = Announcer(Told())
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(announcer.run)
            await wait_all_tasks_blocked()
            announcer.close()
