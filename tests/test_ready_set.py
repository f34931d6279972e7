"""ready_set.py: whoever waits for a socket is told once, and nobody else."""

import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from functools import partial

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from primeflowd.ready_set import MOST_HELD, ReadySet
from tests.network import open_files


class Pairs:
    """Socket pairs, of which our end is non-blocking."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def make(self) -> tuple[socket.socket, socket.socket]:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._stack.callback(ours.close)
        return ours, self._stack.enter_context(theirs)


@pytest.fixture
def pairs() -> Iterator[Pairs]:
    with ExitStack() as stack:
        yield Pairs(stack)


async def test_a_task_that_waits_is_resumed(pairs: Pairs, nursery: trio.Nursery) -> None:
    """By data, and by the end; each of several by its own."""
    ready = ReadySet()
    nursery.start_soon(ready.run)
    resumed: list[str] = []

    async def wait(name: str, descriptor: int) -> None:
        await ready.wait_readable(descriptor)
        resumed.append(name)

    (a, other_a), (b, other_b), (c, _) = pairs.make(), pairs.make(), pairs.make()
    async with trio.open_nursery() as waiters:
        for name, ours in (("a", a), ("b", b), ("c", c)):
            ready.add(ours.fileno())
            waiters.start_soon(wait, name, ours.fileno())
        await wait_all_tasks_blocked()
        assert resumed == []
        other_a.send(b"x")
        await wait_all_tasks_blocked()
        assert resumed == ["a"]
        other_b.close()
        await wait_all_tasks_blocked()
        assert resumed == ["a", "b"]
        waiters.cancel_scope.cancel()
    for ours in (a, b, c):
        ready.remove(ours.fileno())
    ready.close()


async def test_a_function_is_called_once(pairs: Pairs, nursery: trio.Nursery) -> None:
    ready = ReadySet()
    nursery.start_soon(ready.run)
    ours, theirs = pairs.make()
    calls: list[bytes] = []
    ready.add(ours.fileno())
    ready.call_when_readable(ours.fileno(), lambda: calls.append(ours.recv(10)))
    theirs.send(b"one")
    await wait_all_tasks_blocked()
    assert calls == [b"one"]
    # What comes now is remembered, and told when somebody asks.
    theirs.send(b"two")
    await wait_all_tasks_blocked()
    assert calls == [b"one"]
    ready.call_when_readable(ours.fileno(), lambda: calls.append(ours.recv(10)))
    assert calls == [b"one", b"two"]
    assert not ready.has_news(ours.fileno())
    ready.remove(ours.fileno())
    ready.close()


async def test_news_of_a_socket_that_nobody_waits_for(pairs: Pairs, nursery: trio.Nursery) -> None:
    ready = ReadySet()
    nursery.start_soon(ready.run)
    ours, theirs = pairs.make()
    ready.add(ours.fileno())
    await wait_all_tasks_blocked()
    assert not ready.has_news(ours.fileno())
    theirs.send(b"x")
    await wait_all_tasks_blocked()
    assert ready.has_news(ours.fileno())
    assert not ready.has_news(ours.fileno())
    ready.remove(ours.fileno())
    ready.close()


async def test_an_end_is_told_again(pairs: Pairs, nursery: trio.Nursery) -> None:
    """It came together with data: who has read that, and waits for more, must not wait for ever."""
    ready = ReadySet()
    nursery.start_soon(ready.run)
    ours, theirs = pairs.make()
    ready.add(ours.fileno())
    theirs.send(b"x")
    theirs.close()
    await wait_all_tasks_blocked()
    with trio.fail_after(5):
        await ready.wait_readable(ours.fileno())
        assert ours.recv(10) == b"x"
        await ready.wait_readable(ours.fileno())
        assert ours.recv(10) == b""
    assert ready.has_news(ours.fileno())
    ready.remove(ours.fileno())
    ready.close()


async def test_what_came_before_the_wait_ends_it(pairs: Pairs, nursery: trio.Nursery) -> None:
    """An edge that was told to nobody is not lost."""
    ready = ReadySet()
    nursery.start_soon(ready.run)
    ours, theirs = pairs.make()
    ready.add(ours.fileno())
    theirs.send(b"x")
    await wait_all_tasks_blocked()
    with trio.fail_after(5):
        await ready.wait_readable(ours.fileno())
    ready.remove(ours.fileno())
    ready.close()


@pytest.mark.parametrize("ended", [False, True])
async def test_who_asks_to_be_called_late_is_called_at_once(
    pairs: Pairs, nursery: trio.Nursery, ended: bool
) -> None:
    """The edge has been: there will not be another. An end is told to everybody who asks."""
    ready = ReadySet()
    nursery.start_soon(ready.run)
    ours, theirs = pairs.make()
    ready.add(ours.fileno())
    if ended:
        theirs.close()
    else:
        theirs.send(b"x")
    await wait_all_tasks_blocked()
    calls: list[str] = []
    for name in ("first", "second"):
        ready.call_when_readable(ours.fileno(), partial(calls.append, name))
    assert calls == (["first", "second"] if ended else ["first"])
    ready.remove(ours.fileno())
    ready.close()


async def test_a_cancelled_wait_leaves_nothing(pairs: Pairs, nursery: trio.Nursery) -> None:
    ready = ReadySet()
    nursery.start_soon(ready.run)
    ours, theirs = pairs.make()
    ready.add(ours.fileno())
    with trio.move_on_after(0.01) as scope:
        await ready.wait_readable(ours.fileno())
    assert scope.cancelled_caught
    theirs.send(b"x")
    await wait_all_tasks_blocked()
    assert ready.has_news(ours.fileno())
    ready.remove(ours.fileno())
    ready.close()


async def test_a_removed_socket_is_nobodys(pairs: Pairs, nursery: trio.Nursery) -> None:
    """Who waited for it is not called for the next one of the same number."""
    ready = ReadySet()
    nursery.start_soon(ready.run)
    ours, _ = pairs.make()
    calls: list[str] = []
    descriptor = ours.fileno()
    ready.add(descriptor)
    ready.call_when_readable(descriptor, lambda: calls.append("first"))
    ready.remove(descriptor)
    ours.close()
    again, theirs = pairs.make()
    if again.fileno() != descriptor:
        again = socket.fromfd(again.fileno(), socket.AF_UNIX, socket.SOCK_STREAM)
    ready.add(again.fileno())
    ready.call_when_readable(again.fileno(), lambda: calls.append("second"))
    theirs.send(b"x")
    await wait_all_tasks_blocked()
    assert calls == ["second"]
    ready.remove(again.fileno())
    again.close()
    ready.close()


async def test_one_that_closes_another_of_the_same_turn(
    pairs: Pairs, nursery: trio.Nursery
) -> None:
    """Both were told together; the one that is closed by then is not called."""
    ready = ReadySet()
    ends = [pairs.make() for _ in range(2)]
    calls: list[int] = []

    def call(number: int) -> None:
        calls.append(number)
        ready.remove(ends[1 - number][0].fileno())

    for number, (ours, theirs) in enumerate(ends):
        ready.add(ours.fileno())
        ready.call_when_readable(ours.fileno(), partial(call, number))
        theirs.send(b"x")
    nursery.start_soon(ready.run)
    await wait_all_tasks_blocked()
    assert len(calls) == 1
    ready.remove(ends[calls[0]][0].fileno())
    ready.close()


async def test_what_follows_comes_after_all_have_read(pairs: Pairs, nursery: trio.Nursery) -> None:
    ready = ReadySet()
    ends = [pairs.make() for _ in range(2)]
    calls: list[str] = []

    def read(number: int) -> Callable[[], None]:
        calls.append(f"read {number}")
        return partial(calls.append, f"follow {number}")

    for number, (ours, theirs) in enumerate(ends):
        ready.add(ours.fileno())
        ready.call_when_readable(ours.fileno(), partial(read, number))
        theirs.send(b"x")
    nursery.start_soon(ready.run)
    await wait_all_tasks_blocked()
    assert [call.split()[0] for call in calls] == ["read", "read", "follow", "follow"]
    # What has come already is read, and followed up, at once.
    ends[0][1].send(b"y")
    await wait_all_tasks_blocked()
    ready.call_when_readable(ends[0][0].fileno(), partial(read, 2))
    assert calls[4:] == ["read 2", "follow 2"]
    for ours, _ in ends:
        ready.remove(ours.fileno())
    ready.close()


async def test_closed_with_its_last_socket(pairs: Pairs) -> None:
    before = open_files()
    ready = ReadySet()
    ours, _ = pairs.make()
    ready.add(ours.fileno())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ready.run)
        await wait_all_tasks_blocked()
        ready.close()
        await wait_all_tasks_blocked()
        assert open_files() == before + 3
        ready.remove(ours.fileno())
        # `run` ends by itself.
    assert open_files() == before + 2


# Held


class Mailbox:
    """A socket of a set that is waited for again and again, and what was read from it."""

    def __init__(
        self, ready: ReadySet, pairs: Pairs, then: Callable[[], None] | None = None
    ) -> None:
        """`then` is called by whoever has read."""
        self._ready = ready
        self._then = then
        self._ours, self.theirs = pairs.make()
        self.read: list[bytes] = []
        ready.add(self._ours.fileno())
        self._wait()

    def close(self) -> None:
        self._ready.remove(self._ours.fileno())

    def _wait(self) -> None:
        self._ready.call_when_readable(self._ours.fileno(), self._receive)

    def _receive(self) -> Callable[[], None] | None:
        self.read.append(self._ours.recv(10))
        self._wait()
        return self._then


class Steps(trio.abc.Instrument):
    """Counts how often the task of a set was run."""

    def __init__(self) -> None:
        self.taken = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self.taken += task.name.endswith("ReadySet.run")


@pytest.fixture
async def held(mock_clock: MockClock, nursery: trio.Nursery) -> AsyncIterator[ReadySet]:
    """A set that runs, and is held. It is what came first that holds it; no time passes."""
    ready = ReadySet()
    nursery.start_soon(ready.run)
    with ExitStack() as stack:
        first = Mailbox(ready, Pairs(stack), ready.hold)
        first.theirs.send(b"x")
        await wait_all_tasks_blocked()
        yield ready
        first.close()
        ready.close()
        nursery.cancel_scope.cancel()


async def test_what_comes_while_it_is_held_is_seen_to_by_the_release(
    held: ReadySet, pairs: Pairs
) -> None:
    """There and then, by whoever releases; and only by the last who does."""
    held.hold()
    mailbox = Mailbox(held, pairs)
    mailbox.theirs.send(b"one")
    await wait_all_tasks_blocked()
    held.release()
    assert mailbox.read == []
    held.release()
    assert mailbox.read == [b"one"]
    # And then as ever.
    await wait_all_tasks_blocked()
    mailbox.theirs.send(b"two")
    await wait_all_tasks_blocked()
    assert mailbox.read == [b"one", b"two"]
    mailbox.close()


async def test_it_is_not_held_for_long(mock_clock: MockClock, held: ReadySet, pairs: Pairs) -> None:
    """A commit that hangs must not keep others waiting; not the first time, nor the next."""
    mailbox = Mailbox(held, pairs)
    for count in (1, 3, 5):
        mailbox.theirs.send(b"x")
        await wait_all_tasks_blocked()
        mock_clock.jump(MOST_HELD * 0.9)
        await wait_all_tasks_blocked()
        assert len(mailbox.read) == count - 1
        mock_clock.jump(MOST_HELD * 0.2)
        await wait_all_tasks_blocked()
        assert len(mailbox.read) == count
        # After that what comes is seen to, and only what follows it shortly is left alone.
        mailbox.theirs.send(b"x")
        await wait_all_tasks_blocked()
        assert len(mailbox.read) == count + 1
    held.release()
    mailbox.close()


async def test_a_set_that_is_held_for_ever_looks_at_nothing_in_vain(
    mock_clock: MockClock, held: ReadySet
) -> None:
    """Storage that hangs must not cost a busy loop, however slow."""
    steps = Steps()
    trio.lowlevel.add_instrument(steps)
    for _ in range(100):
        mock_clock.jump(MOST_HELD * 1.1)
        await wait_all_tasks_blocked()
    assert steps.taken == 1
    trio.lowlevel.remove_instrument(steps)
    held.release()


async def test_a_release_after_which_it_is_held_again_wakes_no_task(
    held: ReadySet, pairs: Pairs
) -> None:
    """One commit after the other: each release sees to what came during its own."""
    mailbox = Mailbox(held, pairs, held.hold)
    await wait_all_tasks_blocked()
    steps = Steps()
    trio.lowlevel.add_instrument(steps)
    for count in range(1, 6):
        mailbox.theirs.send(b"x")
        await wait_all_tasks_blocked()
        held.release()
        assert mailbox.read == [b"x"] * count
    assert steps.taken == 0
    trio.lowlevel.remove_instrument(steps)
    held.release()
    mailbox.close()


async def test_where_many_hold_nothing_is_left_alone(
    mock_clock: MockClock, nursery: trio.Nursery, pairs: Pairs
) -> None:
    """Each look finds enough to do by then."""
    ready = ReadySet()
    nursery.start_soon(ready.run)
    mailbox = Mailbox(ready, pairs)
    for _ in range(100):
        ready.hold()
    for count in (1, 2):
        mailbox.theirs.send(b"x")
        await wait_all_tasks_blocked()
        assert mailbox.read == [b"x"] * count
    mailbox.close()
    ready.close()


async def test_all_that_came_is_seen_to_after_a_release(
    mock_clock: MockClock, held: ReadySet, pairs: Pairs
) -> None:
    """More than are seen to in one go, and though the first of them hold it again."""
    mailboxes = [Mailbox(held, pairs, held.hold) for _ in range(100)]
    for mailbox in mailboxes:
        mailbox.theirs.send(b"x")
    await wait_all_tasks_blocked()
    held.release()
    assert 0 < sum(len(mailbox.read) for mailbox in mailboxes) < 100
    await wait_all_tasks_blocked()
    assert [mailbox.read for mailbox in mailboxes] == [[b"x"]] * 100
    for mailbox in mailboxes:
        held.release()
        mailbox.close()


async def test_a_set_that_is_closed_while_held(nursery: trio.Nursery, pairs: Pairs) -> None:
    """Whoever releases then finds nothing, and its task ends."""
    ready = ReadySet()
    done = trio.Event()

    async def run() -> None:
        await ready.run()
        done.set()

    nursery.start_soon(run)
    mailbox = Mailbox(ready, pairs, ready.hold)
    mailbox.theirs.send(b"x")
    await wait_all_tasks_blocked()
    mailbox.close()
    ready.close()
    ready.release()
    with trio.fail_after(5):
        await done.wait()
