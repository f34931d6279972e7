"""Tx: the statements that a storage offers to transaction functions.

Third parties import it from hookspecs.py, which says how it is run.
"""

from collections.abc import Collection, Sequence
from typing import Any, Protocol

from primeflowd.instants import Micros
from primeflowd.model import (
    ApiKey,
    Attempt,
    Batch,
    Delivery,
    DestinationPolicy,
    Item,
    Recovery,
    RetryPolicy,
    SigningSecret,
    StoredAnswer,
)
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


class Tx(Protocol):
    """The statements of one transaction. Synchronous; runs in a thread of the storage's choice.

    Operations look first and write last. Where several nodes write at once, what a writing
    transaction reads of one batch, delivery, secret or recovery stays as it read it until it ends
    (row locks), or a constraint refuses the later of two.

    Reads see the writes made before in the same transaction. Every method may raise
    StorageUnavailable. Inserts may be deferred to the end of the transaction, so that a
    UniqueViolation can come late: storage then runs each function again alone (see Storage.write).

    Attributes:
        memo: what functions keep for those that run after them in the same transaction. Empty when
            it begins, and again when a retry policy or a signing secret is changed.
    """

    memo: dict[Any, Any]

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
        """Let a lease last for `ttl` from now on; None: as it had expired, it has been ended, or
        another node is just doing so."""
        ...

    def end_lease(self, node_id: str) -> int:
        """Give up a lease, if it is there, with the node's claims and orders; how many claims. What
        another transaction keeps locked is not waited for, but left to release_lost()."""
        ...

    def release_lost(self) -> int:
        """End the leases that have expired, and free every claim of a node that has none; how
        many claims. Of several nodes that do it at once, one finds them. What another transaction
        keeps locked is not waited for, but left for a later call."""
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
        only asks, and may be asked of a reader, which also sees to it that what was given back
        before leaves the file. A storage that does it by itself, or keeps it for what is to come,
        has none."""
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
