"""Telling plugins of attempts: in order, some at a time, bounded, apart from each other."""

import threading
from collections.abc import Sequence

import trio
import trio.testing
from structlog.testing import capture_logs

from primeflowd.announcer import Announcer
from primeflowd.hookspecs import RecordedAttempt
from primeflowd.testing.factories import make_attempt, make_delivery

DELIVERY = make_delivery()


class Told:
    """A plugin and what it was told; while `gate` is clear it hangs."""

    def __init__(self, *, open_gate: bool = True) -> None:
        self.batches: list[list[int]] = []
        self.threads: set[threading.Thread] = set()
        self.first: Sequence[RecordedAttempt] = ()
        self._told = threading.Condition()
        self.entered = threading.Event()
        self.gate = threading.Event()
        if open_gate:
            self.gate.set()

    def __call__(self, records: Sequence[RecordedAttempt]) -> None:
        self.first = self.first or records
        self.entered.set()
        self.gate.wait(30)
        self.threads.add(threading.current_thread())
        with self._told:
            self.batches.append([record.attempt.attempt_number for record in records])
            self._told.notify()

    @property
    def numbers(self) -> list[int]:
        return [number for batch in self.batches for number in batch]

    async def wait_told(self, count: int) -> None:
        def wait() -> bool:
            with self._told:
                return self._told.wait_for(lambda: len(self.numbers) >= count, 10)

        assert await trio.to_thread.run_sync(wait)

    async def wait_entered(self) -> None:
        with trio.fail_after(10):
            await trio.to_thread.run_sync(self.entered.wait, abandon_on_cancel=True)


def tell(announcer: Announcer, numbers: range) -> None:
    for number in numbers:
        announcer.tell([RecordedAttempt(make_attempt(attempt_number=number), DELIVERY)])


async def close_and_run(announcer: Announcer) -> None:
    announcer.close()
    with trio.fail_after(10):
        await announcer.run()


async def test_attempts_are_passed_on_in_order_and_in_batches() -> None:
    """What has gathered goes in one call, up to 500; not in the Trio thread."""
    told = Told()
    announcer = Announcer({"acme": told})
    tell(announcer, range(1200))
    await close_and_run(announcer)
    assert [len(batch) for batch in told.batches] == [500, 500, 200]
    assert told.numbers == list(range(1200))
    assert threading.current_thread() not in told.threads
    assert announcer.not_announced == 0


async def test_what_comes_meanwhile_goes_next() -> None:
    """One call at a time, and none waits for more than there is."""
    told = Told(open_gate=False)
    announcer = Announcer({"acme": told})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(announcer.run)
        tell(announcer, range(2))
        await told.wait_entered()
        tell(announcer, range(2, 5))
        told.gate.set()
        announcer.close()
    assert told.batches == [[0, 1], [2, 3, 4]]


async def test_telling_does_not_call_the_plugin() -> None:
    """A sender is never held up by a plugin: only the service calls it."""
    told = Told()
    announcer = Announcer({"acme": told})
    tell(announcer, range(3))
    await trio.lowlevel.checkpoint()
    assert told.batches == []


async def test_the_queue_is_bounded() -> None:
    """The newest are not announced; how many is counted, and said with the plugin's name."""
    told = Told(open_gate=False)
    announcer = Announcer({"acme": told})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(announcer.run)
        tell(announcer, range(1))
        await told.wait_entered()
        with capture_logs() as logs:
            tell(announcer, range(1, 10_008))
        assert announcer.not_announced == 7
        [line] = logs
        assert (line["event"], line["plugin"]) == ("attempts_not_announced", "acme")
        told.gate.set()
        announcer.close()
    assert told.numbers == [*range(10_001)]
    assert announcer.not_announced == 7


async def test_a_plugin_that_hangs_keeps_nothing_from_the_others() -> None:
    stuck, told = Told(open_gate=False), Told()
    announcer = Announcer({"stuck": stuck, "acme": told})
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(announcer.run)
            for start in range(0, 11_000, 500):
                tell(announcer, range(start, start + 500))
                await told.wait_told(start + 500)
            # It has one batch in hand and a full queue.
            assert announcer.not_announced == 11_000 - 10_000 - len(stuck.first)
            stuck.gate.set()
            announcer.close()
    assert told.numbers == list(range(11_000))


async def test_closing_passes_on_what_is_left() -> None:
    """Drain: `run` ends by itself once everything was announced."""
    for count in (0, 1, 499, 500, 501, 1000):
        told = Told()
        announcer = Announcer({"acme": told})
        tell(announcer, range(count))
        await close_and_run(announcer)
        assert told.numbers == list(range(count))


async def test_without_plugins_there_is_nothing_to_do() -> None:
    announcer = Announcer({})
    tell(announcer, range(3))
    await close_and_run(announcer)
    assert announcer.not_announced == 0


async def test_closing_ends_a_service_that_waits() -> None:
    """Drain, with nothing left."""
    announcer = Announcer({"acme": Told()})
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(announcer.run)
            await trio.testing.wait_all_tasks_blocked()
            announcer.close()


async def test_a_plugin_that_hangs_does_not_hold_up_the_end() -> None:
    """Drain, out of time: it is left behind in its thread, with what it did not take."""
    told = Told(open_gate=False)
    announcer = Announcer({"acme": told})
    with capture_logs() as logs, trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(announcer.run)
            tell(announcer, range(600))
            await told.wait_entered()
            announcer.close()
            nursery.cancel_scope.cancel()
    assert announcer.not_announced == 600
    [line] = logs
    assert (line["event"], line["plugin"], line["attempts"]) == ("plugin_left_behind", "acme", 600)
    told.gate.set()
