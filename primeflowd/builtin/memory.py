"""Storage in memory, for `memory://`: a fake that passes the same conformance suite as SQLite.

For tests and demonstrations; all is lost at exit. It uses no threads, so it works under Trio's
autojump clock. Each write is a transaction of its own, run in the caller's task; a function that
raises is undone by a journal of what it replaced. Queries scan; only what every callback asks is
looked up.

A test may break it (`fail_with`), or keep commits waiting (`hold()` and `resume()`).
"""

from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final, TypeVar

import msgspec
import outcome
import structlog
import trio

from primeflowd.config import Config
from primeflowd.errors import StorageUnavailable, UniqueViolation
from primeflowd.hookspecs import (
    BatchFilter,
    DeliveryFilter,
    Page,
    Storage,
    StorageStatistics,
    Tx,
    hookimpl,
)
from primeflowd.instants import Micros
from primeflowd.model import (
    TERMINAL_DELIVERY,
    ApiKey,
    Attempt,
    Batch,
    Delivery,
    Item,
    Recovery,
    RetryPolicy,
    SigningSecret,
    StoredAnswer,
)

T = TypeVar("T")
L = TypeVar("L", Batch, Delivery, SigningSecret, ApiKey)

URL: Final = "memory://"

_log = structlog.get_logger(__name__)


@hookimpl
def open_storage(
    config: Config, node_id: str | None
) -> AbstractAsyncContextManager[Storage] | None:
    return open_memory() if config.storage_url == URL else None


@asynccontextmanager
async def open_memory() -> AsyncIterator["MemoryStorage"]:
    storage = MemoryStorage()
    yield storage
    storage.fail_with = StorageUnavailable("the storage is closed")


class MemoryTx:
    """Tx over dicts, one per kind, whose values are never changed in place."""

    def __init__(self) -> None:
        self._batches: dict[str, Batch] = {}
        self._items: dict[tuple[str, int], Item] = {}
        self._items_of: dict[str, tuple[int, ...]] = {}
        self._deliveries: dict[str, Delivery] = {}
        self._in_flight: dict[str, str] = {}
        self._unclaimed: dict[str, None] = {}
        self._attempts: dict[str, tuple[Attempt, ...]] = {}
        self._policies: dict[tuple[str, str], RetryPolicy] = {}
        self._secrets: dict[str, SigningSecret] = {}
        self._current: dict[str, str] = {}
        self._keys: dict[str, ApiKey] = {}
        self._digests: dict[str, str] = {}
        self._answers: dict[tuple[str, str, str, str], StoredAnswer] = {}
        self._recoveries: dict[str, Recovery] = {}
        self._notes: dict[str, str] = {}
        self._journal: list[tuple[dict[Any, Any], Any, Any]] = []

    # The journal: every change goes through _put() or _remove()

    def begin(self) -> None:
        self._journal.clear()

    def undo(self) -> None:
        """Take back everything since begin()."""
        for table, key, before in reversed(self._journal):
            if before is None:
                del table[key]
            else:
                table[key] = before
        self._journal.clear()
