"""The tables: what is stored where, and which index serves which question.

Columns bear the names of the fields of model.py (rows.py depends on it). Ids and enumerations are
TEXT, instants BIGINT microseconds, client's JSON and payloads bytes exactly as given, tuples JSON
text. Narrow columns come first, so that a query over them does not walk the overflow pages of a
wide one. There are no foreign keys: rows are only ever added together, in one transaction.

Nothing here belongs to one database: predicates are given to SQLite and PostgreSQL alike. A change
of this module needs a migration; a test compares the two.
"""

from typing import Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    text,
)
from sqlalchemy.sql.elements import TextClause

IN_FLIGHT: Final = text("status IN ('pending', 'delivering')")
DUE: Final = text("status = 'pending' AND claimed_by IS NULL")
CLAIMED: Final = text("claimed_by IS NOT NULL")
FAILED: Final = text("status = 'failed'")
FINISHED: Final = text("status IN ('succeeded', 'failed')")
CURRENT: Final = text("is_current")
"""Predicates of partial indexes. Queries repeat them as they stand: a planner uses a partial index
only where it can see that the predicate holds, which it cannot through a bound parameter."""

metadata: Final = MetaData()


def _partial(name: str, *columns: str, where: TextClause, unique: bool = False) -> Index:
    return Index(name, *columns, unique=unique, sqlite_where=where, postgresql_where=where)


batches: Final = Table(
    "batches",
    metadata,
    Column("id", Text, primary_key=True),
    Column("org_id", Text, nullable=False),
    Column("plan_id", Text, nullable=False),
    Column("callback_url", Text),
    Column("status", Text, nullable=False),
    Column("items_total", BigInteger),
    Column("items_succeeded", BigInteger, nullable=False),
    Column("items_failed", BigInteger, nullable=False),
    Column("items_cancelled", BigInteger, nullable=False),
    Column("cancellation_reason", Text),
    Column("created_at", BigInteger, nullable=False),
    Column("started_at", BigInteger),
    Column("completed_at", BigInteger),
    Column("updated_at", BigInteger, nullable=False),
    # NULL, too, where the payload has them in it: see rows.BatchRows.
    Column("metadata", LargeBinary),
    Column("output", LargeBinary),
    Column("payload", LargeBinary),
    # Newest-first lists of an org, and their cursors.
    Index("batches_by_org", "org_id", "created_at", "id"),
)

items: Final = Table(
    "items",
    metadata,
    Column("batch_id", Text, primary_key=True),
    Column("sequence_index", Integer, primary_key=True, autoincrement=False),
    Column("client_ref", Text),
    Column("status", Text, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("input", LargeBinary),
    Column("output", LargeBinary),
    Column("error", LargeBinary),
    Column("org_id", Text, nullable=False, server_default=""),
    # Reports that name an item by its client_ref; no two items of a batch share one.
    _partial(
        "items_by_client_ref",
        "batch_id",
        "client_ref",
        where=text("client_ref IS NOT NULL"),
        unique=True,
    ),
)

# The hot table: a callback that succeeds at once is inserted here and updated once. Its row is
# inserted claimed, so it never enters an index whose predicate asks for unclaimed rows.
deliveries: Final = Table(
    "deliveries",
    metadata,
    Column("id", Text, primary_key=True),
    Column("batch_id", Text, nullable=False),
    Column("org_id", Text, nullable=False),
    Column("destination", Text, nullable=False),
    Column("is_automatic", Boolean, nullable=False),
    Column("status", Text, nullable=False),
    Column("attempt_count", Integer, nullable=False),
    Column("interruptions", Integer, nullable=False),
    Column("max_retries", Integer, nullable=False),
    Column("due_at", BigInteger),
    Column("claimed_by", Text),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("completed_at", BigInteger),
    Column("failure_reason", Text),
    Column("policy_source", Text, nullable=False),
    Column("policy_plan_id", Text, nullable=False),
    Column("signing_secret_id", Text),
    Column("callback_url", Text, nullable=False),
    Column("delays", Text, nullable=False),
    Column("failure_detail", Text),
    # Contract 4.8: at most one delivery of a batch is in flight. Stored rows are never
    # `delivering`, but the rule is written as the contract has it.
    _partial("deliveries_in_flight", "batch_id", where=IN_FLIGHT, unique=True),
    # A batch's callback history.
    Index("deliveries_by_batch", "batch_id", "created_at"),
    # Newest-first lists of an org, and their cursors.
    Index("deliveries_by_org", "org_id", "created_at", "id"),
    # claim(): the head of the queue, read from the index alone.
    _partial("deliveries_due", "due_at", "id", "destination", where=DUE),
    # claim(), when one destination crowds the head of the queue: what is due, destination by
    # destination. The org is for shape(), which counts what an org has waiting from this index
    # alone: looking up a million rows for it takes seconds.
    _partial("deliveries_due_by_destination", "destination", "due_at", "id", "org_id", where=DUE),
    # release(), end_lease() and release_lost(): as many entries as nodes hold deliveries in memory.
    _partial("deliveries_claimed", "claimed_by", where=CLAIMED),
    # Bulk redelivery walks an org's failed deliveries by id, resuming where it stopped.
    _partial("deliveries_failed", "org_id", "id", where=FAILED),
)

attempts: Final = Table(
    "attempts",
    metadata,
    Column("delivery_id", Text, primary_key=True),
    Column("attempt_number", Integer, primary_key=True, autoincrement=False),
    Column("id", Text, nullable=False),
    Column("status_code", Integer),
    Column("response_time", BigInteger, nullable=False),
    Column("failure_reason", Text),
    Column("signing_secret_id", Text),
    Column("created_at", BigInteger, nullable=False),
    Column("error_message", Text),
    Column("response_body", Text),
    Column("org_id", Text, nullable=False, server_default=""),
    # Only ever found by delivery: one b-tree instead of two.
    sqlite_with_rowid=False,
)

policies: Final = Table(
    "policies",
    metadata,
    Column("org_id", Text, primary_key=True),
    Column("plan_id", Text, primary_key=True),
    Column("delays", Text, nullable=False),
    Column("max_retries", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
)

# A few rows: destinations with a policy of their own, or about to be disabled.
destination_policies: Final = Table(
    "destination_policies",
    metadata,
    Column("destination", Text, primary_key=True),
    Column("settings", Text),
    Column("disabled_reason", Text),
    Column("disabled_at", BigInteger),
    Column("failing_since", BigInteger),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("sealed_headers", LargeBinary),
)

secrets: Final = Table(
    "secrets",
    metadata,
    Column("id", Text, primary_key=True),
    Column("org_id", Text, nullable=False),
    Column("key_prefix", Text, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Column("is_current", Boolean, nullable=False),
    Column("label", Text),
    Column("disabled_at", BigInteger),
    Column("last_used_at", BigInteger),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Index("secrets_by_org", "org_id", "created_at", "id"),
    # Contract 6.1: exactly one secret of an org is current; the lookup of every new delivery.
    _partial("secrets_current", "org_id", where=CURRENT, unique=True),
)

keys: Final = Table(
    "keys",
    metadata,
    Column("id", Text, primary_key=True),
    Column("org_id", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("key_prefix", Text, nullable=False),
    Column("scopes", Text, nullable=False),
    Column("label", Text),
    Column("revoked_at", BigInteger),
    Column("created_at", BigInteger, nullable=False),
    Index("keys_by_org", "org_id", "created_at", "id"),
    # Authentication, once per key that is not in memory.
    Index("keys_by_digest", "digest", unique=True),
)

answers: Final = Table(
    "answers",
    metadata,
    Column("org_id", Text, primary_key=True),
    Column("method", Text, primary_key=True),
    Column("path", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("body_digest", Text, nullable=False),
    Column("status", Integer, nullable=False),
    Column("sealed", Boolean, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("body", LargeBinary, nullable=False),
    # Removal of what has expired, oldest first.
    Index("answers_by_age", "created_at"),
)

recoveries: Final = Table(
    "recoveries",
    metadata,
    Column("id", Text, primary_key=True),
    Column("org_id", Text, nullable=False),
    Column("since", BigInteger, nullable=False),
    Column("until", BigInteger, nullable=False),
    Column("destination", Text),
    Column("failure_reason", Text),
    Column("status", Text, nullable=False),
    Column("matched", Integer, nullable=False),
    Column("redelivered", Integer, nullable=False),
    Column("skipped", Integer, nullable=False),
    Column("position", Text),
    Column("created_at", BigInteger, nullable=False),
    Column("completed_at", BigInteger),
)

# One row per living node: its claims stand for as long as its lease does.
nodes: Final = Table(
    "nodes",
    metadata,
    Column("id", Text, primary_key=True),
    Column("began_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
)

# What one node has to tell another of the deliveries that the other holds; a handful of rows.
orders: Final = Table(
    "orders",
    metadata,
    Column("node_id", Text, primary_key=True),
    Column("delivery_id", Text, primary_key=True),
)

notes: Final = Table(
    "notes",
    metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)
