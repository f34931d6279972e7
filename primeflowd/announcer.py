"""Tells plugins of recorded attempts, apart from the path of a callback.

Each plugin has a bounded queue and a thread of its own, so that a slow or hanging one delays
neither deliveries nor the other plugins. When a plugin is slower than the senders, the newest
attempts are not announced to it; they are on record all the same. That is counted and logged.

Senders hand attempts over without waiting; `run` passes them on, some at a time. A plugin that
still works when `run` is cancelled is left behind in its thread, which ends with the process.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias

import structlog
import trio

from primeflowd.hookspecs import RecordedAttempt

log = structlog.get_logger()

Recorder: TypeAlias = Callable[[Sequence[RecordedAttempt]], None]
"""Tells one plugin. May block; must not raise. Called in a worker thread."""

_LIMIT: Final = 10_000
_AT_ONCE: Final = 500
_LOG_INTERVAL: Final = 60.0  # seconds


class Announcer:
    """The queues and their service; one for each of `recorders`, which are named by plugin."""

    def __init__(self, recorders: Mapping[str, Recorder]) -> None:
        self._lines = [_Line(plugin, recorder) for plugin, recorder in recorders.items()]

    @property
    def not_announced(self) -> int:
        """How many attempts were dropped, counted once for each plugin that missed one."""
        return sum(line.dropped for line in self._lines)

    def tell(self, records: Sequence[RecordedAttempt]) -> None:
        """Announce attempts soon; never blocks. For the Trio thread."""
        for line in self._lines:
            for record in records:
                line.tell(record)

    def close(self) -> None:
        """No more attempts will be told; `run` ends once all are passed on."""
        for line in self._lines:
            line.close()

    async def run(self) -> None:
        """Pass attempts on until closed or cancelled; a cancellation waits for no plugin."""
        async with trio.open_nursery() as nursery:
            for line in self._lines:
                nursery.start_soon(line.run)


class _Line:
    """The queue of one plugin."""

    def __init__(self, plugin: str, recorder: Recorder) -> None:
        self._plugin = plugin
        self._recorder = recorder
        self._put, self._taken = trio.open_memory_channel[RecordedAttempt](_LIMIT)
        # Not the threads that storage and name lookups share: a plugin that hangs keeps its own.
        self._limiter = trio.CapacityLimiter(1)
        self._warned = -_LOG_INTERVAL
        self.dropped = 0

    def tell(self, record: RecordedAttempt) -> None:
        try:
            self._put.send_nowait(record)
        except trio.WouldBlock:
            self.dropped += 1
            now = trio.current_time()
            if now - self._warned >= _LOG_INTERVAL:
                self._warned = now
                log.warning(
                    "attempts_not_announced",
                    plugin=self._plugin,
                    so_far=self.dropped,
                    hint="its attempts_recorded is too slow",
                )

    def close(self) -> None:
        self._put.close()

    async def run(self) -> None:
        async for record in self._taken:
            batch = [record, *self._more(_AT_ONCE - 1)]
            try:
                await trio.to_thread.run_sync(
                    self._recorder,
                    tuple(batch),
                    thread_name=f"plugin {self._plugin}",
                    abandon_on_cancel=True,
                    limiter=self._limiter,
                )
            except trio.Cancelled:
                left = len(batch) + self._taken.statistics().current_buffer_used
                self.dropped += left
                log.warning(
                    "plugin_left_behind",
                    plugin=self._plugin,
                    attempts=left,
                    hint="its attempts_recorded did not return in time",
                )
                raise

    def _more(self, limit: int) -> list[RecordedAttempt]:
        """What waits besides, at most `limit`."""
        found: list[RecordedAttempt] = []
        while len(found) < limit:
            try:
                found.append(self._taken.receive_nowait())
            except (trio.WouldBlock, trio.EndOfChannel):
                # At the end, what was received before it is still to be passed on.
                break
        return found
