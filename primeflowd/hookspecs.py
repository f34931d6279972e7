"""The six hooks, and the contracts of what they register: Storage, Tx and Signer.

A leaf: it imports values and settings, never an implementation. Built-ins and third-party plugins
implement these alike and import all they need from here; plugins.py calls them. What a `Tx` offers
is in tx.py, what it takes and returns in tx_values.py and model.py.

Storage in two sentences: a *transaction function* takes a `Tx` and does everything that one
operation does to storage, synchronously; `Storage.write` runs it together with whatever else is
queued, commits once, and only then returns. Operations (intake.py, redelivery.py and others) are
written once over `Tx`; a storage plugin supplies the small statements.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Protocol, TypeVar, runtime_checkable

import msgspec
import outcome
import pluggy

from primeflowd.config import Config
from primeflowd.histogram import Histogram
from primeflowd.model import Attempt, Delivery, Outcome, Verdict
from primeflowd.tx import Tx
from primeflowd.tx_values import (
    BatchFilter,
    BatchPosition,
    DeliveryFilter,
    Fate,
    Page,
    Removed,
    Renewal,
    Shape,
)

__all__ = [
    "HOOK_API",
    "PROJECT",
    "BatchFilter",
    "BatchPosition",
    "DeliveryFilter",
    "Fate",
    "Page",
    "RecordedAttempt",
    "Removed",
    "Renewal",
    "SchemaState",
    "Shape",
    "Signer",
    "SigningRequest",
    "Storage",
    "StorageStatistics",
    "Tx",
    "attempts_recorded",
    "classify_outcome",
    "configure",
    "hookimpl",
    "hookspec",
    "migrate_storage",
    "open_storage",
    "register_signers",
]

PROJECT: Final = "primeflowd"

HOOK_API: Final = 1
"""The version of the hooks, and of all that they take, return and register.

A third-party plugin has an attribute of this name, with the version that it was written for. One
that has none, or another number, is refused at start: a plugin that half works is worse.

It is raised when a plugin that was right could be wrong: a hook, an argument or a field goes or
comes to mean something else, or a storage or a signer has to offer more. It stays for a new hook,
for a new argument (a plugin names those that it wants), for a new field of what a plugin is given,
and for a new field with a default of what it returns.
"""

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

T = TypeVar("T")


class StorageStatistics(msgspec.Struct, frozen=True):
    """What a storage tells of itself, for /v1/stats and metrics.

    `backlog` is how many writes wait for the next commit; `commits`, `operations` and `failures`
    (commits that failed, and may have happened all the same) count since the start; `healthy` is
    False from a failed commit until the next one that succeeds. `commit_times` is how long
    transactions took from their begin until they were durable, one value for each commit that
    succeeded; None if the storage does not say. `last_failure` is what the latest of `failures`
    met, in words; None if there was none, or the storage does not say.
    """

    healthy: bool
    backlog: int
    commits: int
    operations: int
    failures: int
    commit_times: Histogram | None = None
    last_failure: str | None = None


@runtime_checkable
class Storage(Protocol):
    """Where everything is kept. Must pass `primeflowd.testing.storage_conformance`."""

    async def write(
        self, function: Callable[[Tx], T], on_commit: Callable[[T], None] | None = None
    ) -> T:
        """Run `function` in a transaction, make it durable, and return its result.

        Several callers' functions share one commit. A function that raises changes nothing, and
        what it raised is raised here; the others are not affected. A function may be run more
        than once (the effects of earlier runs are undone), so it must have none but on its `Tx`.
        On a UniqueViolation it is run once more before that is raised.

        `on_commit(result)` is called in the Trio thread right after the commit, before any caller
        wakes, and also if the caller was cancelled meanwhile: work that must follow a commit
        belongs there. The calls come in the order in which the functions ran. It must not raise.

        Cancelling the caller either withdraws the function or lets it run to the end.

        Raises:
            StorageUnavailable: nothing of `function` is stored.
        """
        ...

    def submit(
        self,
        function: Callable[[Tx], T],
        on_commit: Callable[[T], None],
        on_end: Callable[[outcome.Maybe[T]], None],
    ) -> None:
        """As `write`, for whoever has no task that waits: called in the Trio thread.

        `on_end` is called there once, later than this returns, with what `write` would return or
        raise; what shares a commit is told after every `on_commit` of it. It must not raise. The
        function cannot be withdrawn. Several happen in the order in which they were submitted.

        Raises:
            StorageUnavailable: it was not taken, and nobody will be told.
        """
        ...

    async def read(self, function: Callable[[Tx], T]) -> T:
        """Run `function`, which only reads, on a snapshot no older than the call.

        Raises:
            StorageUnavailable: the storage is out of reach.
        """
        ...

    async def wait_for_others(self) -> None:
        """Wait until another node may have left something for this one: claims that were given
        up, deliveries that it had no room for, orders.

        A hint, to be quicker than by asking now and then: it may return for nothing, and where
        nodes cannot tell each other it never returns.
        """
        ...

    def statistics(self) -> StorageStatistics: ...


class SigningRequest(msgspec.Struct, frozen=True, gc=False):
    """What a signer may put its name to.

    Attributes:
        batch_id, delivery_id, attempt_id: UUIDs as text.
        timestamp: of this attempt, whole seconds since the epoch.
        body: the exact bytes that will be sent.
        secrets: plain secrets, the one that the delivery is pinned to first; never empty.
        url: the callback URL as the client gave it; the method is always POST.
    """

    batch_id: str
    delivery_id: str
    attempt_id: str
    timestamp: int
    body: bytes
    secrets: tuple[str, ...]
    url: str


class RecordedAttempt(msgspec.Struct, frozen=True, gc=False):
    """An attempt that is on record, and what its commit made of its delivery.

    Attributes:
        attempt: what happened. It ended at `created_at` plus `response_time` (milliseconds).
        delivery: its delivery right after it, with org, batch, URL and destination. Status
            `pending` means that it is due again at `due_at`. An order of a person that ended the
            delivery while the attempt was under way stands: then it is ended as ordered.
    """

    attempt: Attempt
    delivery: Delivery


class Signer(Protocol):
    """Adds headers to a callback. Pure: no I/O, no waiting; the body is never changed."""

    @property
    def name(self) -> str:
        """What `[signing] signers` calls it."""
        ...

    def sign(self, request: SigningRequest) -> Iterable[tuple[str, str]]:
        """The headers to add, as (name, value) of printable ASCII.

        Whatever it raises makes a failed attempt with `internal_error`.
        """
        ...


@hookspec
def configure(settings: Mapping[str, Any]) -> None:
    """Check and keep the plugin's own settings: its `[plugins.NAME]` table, empty if it has none.

    Called once, before any other hook of the plugin; by commands such as `check-config` too, so
    it opens, starts and writes nothing. A plugin without this hook takes no settings: a table for
    it is a ConfigError.

    Raises:
        ConfigError: a setting is unknown or not allowed. The message names the key and what is
            allowed; `plugins.NAME: ` is put before it.
    """


@hookspec(firstresult=True)
def open_storage(
    config: Config, node_id: str | None
) -> AbstractAsyncContextManager[Storage] | None:
    """Open the storage that `config.storage.url` names, or return None if it is not yours.

    Entering brings the schema up to date. `node_id` names the daemon's node; None is a visit by a
    command line beside a running daemon, which claims nothing.
    Entering raises OperatorError for what the operator must mend.
    """


@hookspec
def register_signers(config: Config) -> Iterable[Signer]:  # type: ignore[empty-body]  # a specification has none
    """Signers that `[signing] signers` can name.

    Called at start, and anew with each configuration that is reloaded; attempts under way go on
    with the signers of before.
    """


@hookspec(firstresult=True)
def classify_outcome(outcome: Outcome, delivery: Delivery) -> Verdict | None:
    """What `outcome` means for `delivery`; None leaves it to others and at last to the default.

    Called once per attempt, on the hot path: pure, and quick.
    """


@hookspec
def attempts_recorded(records: Sequence[RecordedAttempt]) -> None:
    """Told of attempts after the commit that put them on record, in that order, some at a time.

    Called in a thread apart from the daemon's (one call at a time, not always the same thread),
    so it may block. It delays nobody else, but attempts that it cannot keep up with are not told
    of (the newest first), nor are those that it has not taken in the last seconds of a drain or
    when the process dies: it is for observing, not for what must not be missed.
    """


class SchemaState(msgspec.Struct, frozen=True):
    """The revision of a storage's schema as it was found, None where there was none yet, and the
    one that this plugin needs."""

    found: str | None
    needed: str


@hookspec(firstresult=True)
def migrate_storage(config: Config, check: bool) -> SchemaState | None:
    """Bring the schema of the storage that `config.storage.url` names up to date; with `check`,
    change nothing and make nothing. None if it is not yours, or has no schema.

    Several may do it at once, and open_storage does the same by itself.
    Raises OperatorError for what the operator must mend, SchemaTooNew among that.
    """
