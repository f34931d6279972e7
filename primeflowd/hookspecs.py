"""The six hooks, and the contracts of what they register: Storage, Tx and Signer.

A leaf: it imports values and settings, never an implementation. Built-ins and third-party plugins
implement these alike; plugins.py calls them.

Storage in two sentences: a *transaction function* takes a `Tx` and does everything that one
operation does to storage, synchronously; `Storage.write` runs it together with whatever else is
queued, commits once, and only then returns. Operations (intake.py, redelivery.py and others) are
written once over `Tx`; a storage plugin supplies the small statements.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

import msgspec
import pluggy

from primeflowd.config import Config
from primeflowd.histogram import Histogram
from primeflowd.instants import Micros
from primeflowd.model import (
    ApiKey,
    Attempt,
    Batch,
    Delivery,
    DestinationPolicy,
    Item,
    Outcome,
    Recovery,
    RetryPolicy,
    SigningSecret,
    StoredAnswer,
    Verdict,
)

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

Fate: TypeAlias = Literal["recorded", "ended", "lost"]
"""What became of an attempt's record; see Tx.record_attempt."""


class Page(msgspec.Struct, frozen=True):
    """A stretch of a newest-first list: at most `limit` rows strictly older than `before`,
    the (`created_at`, `id`) of the last row already seen; None starts at the newest."""

    limit: int
    before: tuple[Micros, str] | None = None


class BatchFilter(msgspec.Struct, frozen=True):
    """Conditions that all must hold; None asks nothing. Times are exclusive bounds."""

    status: str | None = None
    plan_id: str | None = None
    created_after: Micros | None = None
    created_before: Micros | None = None


class DeliveryFilter(msgspec.Struct, frozen=True):
    """As BatchFilter. `ids` limits the answer to these deliveries."""

    status: str | None = None
    batch_id: str | None = None
    failure_reason: str | None = None
    destination: str | None = None
    created_after: Micros | None = None
    created_before: Micros | None = None
    ids: tuple[str, ...] | None = None


class Shape(msgspec.Struct, frozen=True):
    """How many deliveries wait, by destination and by when they are due.

    Attributes:
        largest: destinations with their counts, the one with most first: before the first edge,
            from each edge to the next, and from the last one on.
        total: the same of all destinations.
        destinations: how many there are in all.
    """

    largest: tuple[tuple[str, tuple[int, ...]], ...]
    total: tuple[int, ...]
    destinations: int


class Renewal(msgspec.Struct, frozen=True):
    """What a node learns when it renews its lease: the storage's clock, and whether it is the
    eldest of the living nodes, which does the chores that one node shall do for all."""

    now: Micros
    is_eldest: bool


BatchPosition: TypeAlias = tuple[str, Micros, str]
"""A place in the order of (`org_id`, `created_at`, `id`)."""


class Removed(msgspec.Struct, frozen=True):
    """How many rows are gone; `complete` is False if there were more than were asked for."""

    batches: int = 0
    items: int = 0
    deliveries: int = 0
    attempts: int = 0
    complete: bool = True


class Tx(Protocol):
    """The statements of one transaction. Synchronous; runs in a thread of the storage's choice.

    Operations look first and write last. Where several nodes write at once, what a writing
    transaction reads of one batch, delivery, secret or recovery stays as it read it until it ends
    (row locks), or a constraint refuses the later of two.

    Reads see the writes made before in the same transaction. Every method may raise
    StorageUnavailable. Inserts may be deferred to the end of the transaction, so that a
    UniqueViolation can come late: storage then runs each function again alone (see Storage.write).
    """

    # Batches and items
    def batch(self, org_id: str, batch_id: str) -> Batch | None: ...
    def taken_batch_ids(self, batch_ids: Collection[str]) -> set[str]:
        """Which of these ids name a batch already, of any org."""
        ...

    def insert_batch(self, batch: Batch) -> None: ...
    def update_batch(self, batch: Batch) -> None:
        """Replace what may change: status, output, items_*, cancellation_reason, payload and
        the instants."""
        ...

    def batches(self, org_id: str, where: BatchFilter, page: Page) -> list[Batch]: ...
    def items(
        self, org_id: str, batch_id: str, after_index: int | None, limit: int | None
    ) -> list[Item]:
        """Items in the order of `sequence_index`, from the one after `after_index`."""
        ...

    def find_items(
        self, org_id: str, batch_id: str, indexes: Collection[int], client_refs: Collection[str]
    ) -> list[Item]:
        """The items that have one of these indexes or client references; in no order."""
        ...

    def put_items(self, items: Sequence[Item]) -> None:
        """Insert items, or replace those of the same batch and index."""
        ...

    # Deliveries
    def insert_delivery(self, delivery: Delivery) -> None:
        """UniqueViolation: the batch has a `pending` delivery already (contract 4.8)."""
        ...

    def delivery(self, org_id: str | None, delivery_id: str) -> Delivery | None:
        """`org_id` None asks for any org's: for the daemon itself."""
        ...

    def in_flight(self, org_id: str, batch_id: str) -> Delivery | None: ...
    def deliveries(self, org_id: str, where: DeliveryFilter, page: Page) -> list[Delivery]: ...
    def count_deliveries(self, org_id: str, where: DeliveryFilter) -> int: ...
    def update_delivery(self, delivery: Delivery) -> None:
        """Replace what may change, whoever holds the claim: for people's orders."""
        ...

    def attempts(self, delivery_ids: Collection[str]) -> dict[str, list[Attempt]]:
        """Attempts by delivery, each list ascending; a delivery without any is absent."""
        ...

    def payloads(
        self, deliveries: Collection[Delivery], within: int | None = None
    ) -> dict[str, bytes]:
        """The frozen bytes by delivery: of the first deliveries whose payloads make at most
        `within` bytes in all, without reading the others."""
        ...

    # The queue
    def claim(
        self, node_id: str, until: Micros, limit: int, share: int, held: dict[str, int]
    ) -> list[Delivery]:
        """Claim unclaimed deliveries due at or before `until` for a node, earliest first.

        At most `limit` in all, and per destination at most `share` less the number in `held`. A
        destination with millions of due rows must not make this slow or hide the others.
        The answer shows them claimed.
        """
        ...

    def shape(self, org_id: str | None, edges: Sequence[Micros], limit: int) -> Shape:
        """Count the `pending` deliveries of an org (None: of all), claimed ones too, with at most
        `limit` destinations by name, of equal ones the first by name. `edges` ascend. Millions of
        rows must not take more than seconds."""
        ...

    def release(self, node_id: str, delivery_ids: Collection[str] | None) -> int:
        """Give up the node's claims on these deliveries (None: on all); how many there were."""
        ...

    def claimed(self, node_id: str) -> set[str]:
        """The ids of all deliveries that the node has claimed, ended ones too."""
        ...

    def record_attempt(self, node_id: str, attempt: Attempt, after: Delivery) -> Fate:
        """Put an attempt on record and the delivery into its state after it, if still owned.

        `after.claimed_by` is the claim as it shall be: None releases it.

        Returns:
            `recorded`: done. `ended`: a person's order ended the delivery meanwhile; it keeps
            that end, the attempt is on record all the same, the claim is released. `lost`:
            `node_id` no longer holds the claim; nothing was written.
        """
        ...

    # Nodes: what each may do, and what they tell each other
    def now(self) -> Micros:
        """The storage's clock, by which leases end: the same for every node."""
        ...

    def begin_lease(self, node_id: str, ttl: Micros) -> None:
        """Give a node that has none a lease of `ttl` from now on."""
        ...

    def renew_lease(self, node_id: str, ttl: Micros) -> Renewal | None:
        """Let a lease last for `ttl` from now on; None: it has been ended, as it had expired."""
        ...

    def end_lease(self, node_id: str) -> int:
        """Give up a lease, if it is there, with the node's claims and orders; how many claims."""
        ...

    def release_lost(self) -> int:
        """End the leases that have expired, and free every claim of a node that has none; how
        many claims. Of several nodes that do it at once, one finds them."""
        ...

    def nodes(self) -> list[str]:
        """The nodes whose leases have not expired, the eldest first."""
        ...

    def put_order(self, node_id: str, delivery_id: str) -> None:
        """Have a node look again at a delivery that it has claimed: it was ended, or hastened."""
        ...

    def has_orders(self, node_id: str) -> bool: ...
    def take_orders(self, node_id: str) -> list[Delivery]:
        """The deliveries that orders to this node name, as they are now; the orders are gone."""
        ...

    # Retry policies
    def policy(self, org_id: str, plan_id: str) -> RetryPolicy | None: ...
    def policies(self, org_id: str) -> list[RetryPolicy]:
        """In the order of plan_id."""
        ...

    def put_policy(self, policy: RetryPolicy) -> None: ...
    def delete_policy(self, org_id: str, plan_id: str) -> bool: ...

    # Policies of destinations, of no org
    def destination_policy(self, destination: str) -> DestinationPolicy | None: ...
    def destination_policies(self) -> list[DestinationPolicy]:
        """In the order of their destinations."""
        ...

    def put_destination_policy(self, policy: DestinationPolicy) -> None: ...
    def delete_destination_policy(self, destination: str) -> bool: ...

    # Signing secrets and API keys
    def secret(self, org_id: str, secret_id: str) -> SigningSecret | None: ...
    def current_secret(self, org_id: str) -> SigningSecret | None: ...
    def secrets(self, org_id: str | None) -> list[SigningSecret]:
        """Newest first, disabled ones too; of every org if `org_id` is None."""
        ...

    def put_secret(self, secret: SigningSecret) -> None: ...
    def key_by_digest(self, digest: str) -> ApiKey | None: ...
    def keys(self, org_id: str | None) -> list[ApiKey]:
        """Newest first, revoked ones too; of every org if `org_id` is None."""
        ...

    def put_key(self, key: ApiKey) -> None: ...

    # Idempotency
    def answer(self, org_id: str, method: str, path: str, key: str) -> StoredAnswer | None: ...
    def put_answer(self, answer: StoredAnswer, replaces: StoredAnswer | None = None) -> None:
        """Insert, or replace the one that `answer` read before.

        UniqueViolation: another was put under this scope meanwhile.
        """
        ...

    def sealed_answers(self) -> list[StoredAnswer]: ...
    def delete_answers(self, created_before: Micros, limit: int) -> int: ...

    # Retention. Of each pair the first looks, and may do so on a reader's snapshot; the second
    # looks again, so that two nodes may do it at once and what came to life meanwhile stays.
    def expired_batches(
        self, before: Micros, after: BatchPosition | None, limit: int
    ) -> tuple[list[tuple[str, str]], BatchPosition | None]:
        """Of the next `limit` batches that were made before `before`, the (org, id) of those that
        ended and have not changed since; and where to go on, None at the end.

        What was made later must not make this slow, however much it is, nor may many orgs.
        """
        ...

    def remove_batches(
        self, batches: Sequence[tuple[str, str]], before: Micros, limit: int
    ) -> Removed:
        """Remove ended batches that nothing has happened to since `before`, each with its items,
        deliveries and attempts: about `limit` rows.

        One with a delivery that is in flight, claimed or younger stays. One of more rows than that
        is removed over several calls, itself last.
        """
        ...

    def old_bodies(self, before: Micros, after: str, limit: int) -> tuple[list[str], str | None]:
        """Of the next `limit` attempts, in the order of their deliveries' ids, the deliveries that
        have one with a response body from before `before`; and the id to go on from, None at the
        end. An attempt is younger than its delivery, whose id begins with the instant at which it
        was made: what comes later is not looked at."""
        ...

    def forget_bodies(self, delivery_ids: Collection[str], before: Micros) -> int:
        """Set the response bodies of these deliveries' attempts from before `before` to null."""
        ...

    def give_back(self, octets: int) -> int:
        """Give unused space back to the file system, about so much; how much is left to give. 0
        only asks, and may be asked of a reader. A storage that does it by itself, or keeps it for
        what is to come, has none."""
        ...

    # Bulk redelivery
    def recovery(self, org_id: str, recovery_id: str) -> Recovery | None: ...
    def running_recoveries(self) -> list[Recovery]: ...
    def put_recovery(self, recovery: Recovery) -> None: ...
    def failed_after(
        self, org_id: str, where: DeliveryFilter, position: str | None, limit: int
    ) -> list[Delivery]:
        """Failed deliveries that match, ascending by id, from the one after `position`."""
        ...

    # One-off values of the storage itself
    def note(self, name: str) -> str | None: ...
    def put_note(self, name: str, value: str) -> None: ...


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


class SigningRequest(msgspec.Struct, frozen=True):
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


class RecordedAttempt(msgspec.Struct, frozen=True):
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
