"""Waiting for sockets that stay open for long and are waited for often.

Trio registers a socket with the kernel anew for each wait, and resumes a task for it: two system
calls and some forty function calls, a quarter of what an exchange over a kept connection costs. A
ReadySet has an epoll set of its own, in which a socket stays as long as it is open, and one Trio
task that waits for the set and calls whoever waits for a socket. It also knows of a socket that
nobody waits for whether anything has happened to it.

The set is edge-triggered: it tells of what comes, once. So whoever waits must have read all there
was (got less than he asked for, say), or nothing since the last wait. What comes while nobody waits
is remembered.

Blocks in `run` and `wait_readable` only. Cancelled, a wait leaves nothing behind.
"""

import select
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

import trio

_END: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_AT_ONCE: Final = 32
"""Sockets seen to between two turns of other tasks."""


class Readiness(Protocol):
    """How a connection learns that there may be something to be read."""

    def add(self, descriptor: int) -> None:
        """Have an open socket in the set, until `remove`."""
        ...

    def remove(self, descriptor: int) -> None:
        """Before it is closed: its number may be another's right after."""
        ...

    async def wait_readable(self, descriptor: int) -> None:
        """Return when there may be something to be read, or the end; for one waiter at a time."""
        ...

    def has_news(self, descriptor: int) -> bool:
        """Something may have come that nobody has waited for yet."""
        ...


class TrioReadiness:
    """Trio's own, for sockets that are used once."""

    def add(self, descriptor: int) -> None:
        pass

    def remove(self, descriptor: int) -> None:
        pass

    async def wait_readable(self, descriptor: int) -> None:
        await trio.lowlevel.wait_readable(descriptor)

    def has_news(self, descriptor: int) -> bool:
        return True


class ReadySet:
    """For Trio tasks. `run` must be running for a wait to end. Close it with `close`."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._sockets = 0
        self._closing = False
        self._waiting: dict[int, Callable[[], object]] = {}
        self._news: set[int] = set()
        self._ended: set[int] = set()

    def add(self, descriptor: int) -> None:
        """See Readiness."""
        # What was told of a socket after it was closed is not this one's.
        self._news.discard(descriptor)
        self._ended.discard(descriptor)
        self._epoll.register(descriptor, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)
        self._sockets += 1

    def remove(self, descriptor: int) -> None:
        """See Readiness. Whoever waits for it is not called any more."""
        self._epoll.unregister(descriptor)
        self._waiting.pop(descriptor, None)
        self._news.discard(descriptor)
        self._ended.discard(descriptor)
        self._sockets -= 1
        if self._closing:
            self.close()

    def call_when_readable(self, descriptor: int, function: Callable[[], object]) -> None:
        """As wait_readable, without a task. `function` must not raise; it may be called here."""
        if (descriptor in self._news or descriptor in self._ended) and self.has_news(descriptor):
            function()
        else:
            self._waiting[descriptor] = function

    async def wait_readable(self, descriptor: int) -> None:
        """See Readiness. A checkpoint, unless something has come already."""
        if self.has_news(descriptor):
            return
        waiting = self._waiting
        waiting[descriptor] = partial(trio.lowlevel.reschedule, trio.lowlevel.current_task())

        def abort(_: object) -> trio.lowlevel.Abort:
            del waiting[descriptor]
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def has_news(self, descriptor: int) -> bool:
        """See Readiness; tells it once, but an end for ever."""
        if descriptor in self._news:
            self._news.remove(descriptor)
            return True
        return descriptor in self._ended

    async def run(self) -> None:
        """See to the sockets, until cancelled or closed."""
        poll, waiting = self._epoll.poll, self._waiting
        while True:
            try:
                await trio.lowlevel.wait_readable(self._epoll)
            except trio.ClosedResourceError:
                return
            for descriptor, events in poll(0, _AT_ONCE):
                function = waiting.pop(descriptor, None)
                if events & _END:
                    # For good: an end that came together with data is told together with it, and
                    # whoever has read the data must be told of the end when he waits for more.
                    self._ended.add(descriptor)
                if function is not None:
                    function()
                else:
                    self._news.add(descriptor)

    def close(self) -> None:
        """Close the set, once its last socket is removed."""
        self._closing = True
        if not self._sockets:
            trio.lowlevel.notify_closing(self._epoll)
            self._epoll.close()
