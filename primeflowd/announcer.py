"""Tells plugins of recorded attempts, apart from the path of a callback.

Senders hand attempts over without waiting; a service passes them on some at a time. The queue is
bounded: when plugins are slower than the senders, the newest attempts are not announced (they are
on record all the same), and that is logged.
"""

from collections.abc import Callable, Sequence

import structlog
import trio

from primeflowd.model import Attempt

log = structlog.get_logger()

_LIMIT = 10_000
_AT_ONCE = 500


class Announcer:
    """The queue and its service. `recorded` must not raise; it is called in the Trio thread."""

    def __init__(self, recorded: Callable[[Sequence[Attempt]], None]) -> None:
        self._recorded = recorded
        self._put, self._taken = trio.open_memory_channel[Attempt](_LIMIT)
        self.dropped = 0

    def tell(self, attempt: Attempt) -> None:
        """Announce an attempt soon; never blocks."""
        try:
            self._put.send_nowait(attempt)
        except trio.WouldBlock:
            if not self.dropped:
                log.warning("attempts_not_announced", hint="a plugin of attempts_recorded is slow")
            self.dropped += 1

    def close(self) -> None:
        """No more attempts will be told; `run` ends once all are passed on."""
        self._put.close()

    async def run(self) -> None:
        """Pass attempts on until closed or cancelled."""
        async for attempt in self._taken:
            batch = [attempt]
            while len(batch) < _AT_ONCE:
                try:
                    batch.append(self._taken.receive_nowait())
                except (trio.WouldBlock, trio.EndOfChannel):
                    # At the end, what was received before it is still to be passed on.
                    break
            self._recorded(batch)
