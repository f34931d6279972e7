"""A plugin for `--stages`: notes when the daemon has understood a callback, and when it is durable.

`stamped+sqlite:///PATH` is the storage that `sqlite:///PATH` is, but for two looks at the clock:
when it is handed a batch, and when it says that the batch is committed. Both are written
into the file that `[plugins.stamping] file` names, which has a place for every number (that in the
callback's URL) and is laid out as the stamps of ledger.py are. It is mapped into memory: a callback
costs 2 µs more. Writes of any other kind are passed on.
"""

import contextlib
import mmap
import struct
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final, TypeVar

import outcome
from msgspec.structs import replace

from primeflowd.config import Config
from primeflowd.hookspecs import Storage, Tx, hookimpl
from primeflowd.model import Batch
from primeflowd.plugins import Plugins

T = TypeVar("T")

NAME: Final = "stamping"
PREFIX: Final = "stamped+"

_STAMP: Final = struct.Struct("=QQ")
_DIGITS: Final = 10
"""Of the number that a callback's URL ends in; see producer.Settings.url."""


class Stamping:
    """What the entry point names."""

    HOOK_API: Final = 1

    def __init__(self) -> None:
        self._file = Path()

    @hookimpl
    def configure(self, settings: Mapping[str, Any]) -> None:
        self._file = Path(settings["file"])

    @hookimpl
    def open_storage(
        self, config: Config, node_id: str | None
    ) -> AbstractAsyncContextManager[Storage] | None:
        url = config.storage_url
        if not url.startswith(PREFIX):
            return None
        plain = replace(config.storage, url=url.removeprefix(PREFIX))
        return _opened(replace(config, storage=plain), node_id, self._file)


plugin: Final = Stamping()


class Stamped:
    """A storage that notes when it was asked for callbacks, and when it had them on the disk."""

    def __init__(self, storage: Storage, stamps: mmap.mmap) -> None:
        self._storage = storage
        self._stamps = stamps
        # No detour for what is not measured.
        self.read = storage.read
        self.wait_for_others = storage.wait_for_others
        self.statistics = storage.statistics

    async def write(
        self, function: Callable[[Tx], T], on_commit: Callable[[T], None] | None = None
    ) -> T:
        if on_commit is None:
            return await self._storage.write(function)
        return await self._storage.write(function, self._noting(on_commit))

    def submit(
        self,
        function: Callable[[Tx], T],
        on_commit: Callable[[T], None],
        on_end: Callable[[outcome.Maybe[T]], None],
    ) -> None:
        self._storage.submit(function, self._noting(on_commit), on_end)

    def _noting(self, on_commit: Callable[[T], None]) -> Callable[[T], None]:
        taken_in = time.monotonic_ns()

        def committed(result: T) -> None:
            durable = time.monotonic_ns()
            # First: what follows from the commit shall not wait for our notes.
            on_commit(result)
            self._note(result, taken_in, durable)

        return committed

    def _note(self, result: object, taken_in: int, durable: int) -> None:
        """Of a batch that ended when it was handed in, as the producer's do."""
        if isinstance(result, Batch) and result.callback_url is not None:
            number = int(result.callback_url[-_DIGITS:])
            _STAMP.pack_into(self._stamps, number * _STAMP.size, taken_in, durable)


@contextlib.asynccontextmanager
async def _opened(config: Config, node_id: str | None, file: Path) -> AsyncIterator[Storage]:
    # A built-in comes in by the plugin door, here as elsewhere.
    with file.open("r+b") as stamps, mmap.mmap(stamps.fileno(), 0) as mapped:
        async with Plugins(Config()).open_storage(config, node_id) as storage:
            yield Stamped(storage, mapped)
