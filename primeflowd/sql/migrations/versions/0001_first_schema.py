"""The first schema.

A migration states the schema as it was at its time: it does not import tables.py, which moves on.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

IN_FLIGHT = sa.text("status IN ('pending', 'delivering')")
DUE = sa.text("status = 'pending' AND claimed_by IS NULL")
CLAIMED = sa.text("claimed_by IS NOT NULL")
FAILED = sa.text("status = 'failed'")
CURRENT = sa.text("is_current")
NAMED = sa.text("client_ref IS NOT NULL")


def upgrade() -> None:
    _batches()
    _deliveries()
    _access()
    _jobs()


def _index(
    name: str, table: str, *columns: str, where: sa.TextClause | None = None, unique: bool = False
) -> None:
    op.create_index(
        name, table, list(columns), unique=unique, sqlite_where=where, postgresql_where=where
    )


def _batches() -> None:
    op.create_table(
        "batches",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("org_id", sa.Text, nullable=False),
        sa.Column("plan_id", sa.Text, nullable=False),
        sa.Column("callback_url", sa.Text),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("items_total", sa.BigInteger),
        sa.Column("items_succeeded", sa.BigInteger, nullable=False),
        sa.Column("items_failed", sa.BigInteger, nullable=False),
        sa.Column("items_cancelled", sa.BigInteger, nullable=False),
        sa.Column("cancellation_reason", sa.Text),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("started_at", sa.BigInteger),
        sa.Column("completed_at", sa.BigInteger),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.Column("metadata", sa.LargeBinary),
        sa.Column("output", sa.LargeBinary),
        sa.Column("payload", sa.LargeBinary),
    )
    _index("batches_by_org", "batches", "org_id", "created_at", "id")
    op.create_table(
        "items",
        sa.Column("batch_id", sa.Text, primary_key=True),
        sa.Column("sequence_index", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("client_ref", sa.Text),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.Column("input", sa.LargeBinary),
        sa.Column("output", sa.LargeBinary),
        sa.Column("error", sa.LargeBinary),
    )
    _index("items_by_client_ref", "items", "batch_id", "client_ref", where=NAMED, unique=True)


def _deliveries() -> None:
    op.create_table(
        "deliveries",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("batch_id", sa.Text, nullable=False),
        sa.Column("org_id", sa.Text, nullable=False),
        sa.Column("destination", sa.Text, nullable=False),
        sa.Column("is_automatic", sa.Boolean, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("attempt_count", sa.Integer, nullable=False),
        sa.Column("interruptions", sa.Integer, nullable=False),
        sa.Column("max_retries", sa.Integer, nullable=False),
        sa.Column("due_at", sa.BigInteger),
        sa.Column("claimed_by", sa.Text),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.Column("completed_at", sa.BigInteger),
        sa.Column("failure_reason", sa.Text),
        sa.Column("policy_source", sa.Text, nullable=False),
        sa.Column("policy_plan_id", sa.Text, nullable=False),
        sa.Column("signing_secret_id", sa.Text),
        sa.Column("callback_url", sa.Text, nullable=False),
        sa.Column("delays", sa.Text, nullable=False),
        sa.Column("failure_detail", sa.Text),
    )
    table = "deliveries"
    _index("deliveries_in_flight", table, "batch_id", where=IN_FLIGHT, unique=True)
    _index("deliveries_by_batch", table, "batch_id", "created_at")
    _index("deliveries_by_org", table, "org_id", "created_at", "id")
    _index("deliveries_due", table, "due_at", "id", "destination", where=DUE)
    _index("deliveries_due_by_destination", table, "destination", "due_at", "id", where=DUE)
    _index("deliveries_claimed", table, "claimed_by", where=CLAIMED)
    _index("deliveries_failed", table, "org_id", "id", where=FAILED)
    op.create_table(
        "attempts",
        sa.Column("delivery_id", sa.Text, primary_key=True),
        sa.Column("attempt_number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("status_code", sa.Integer),
        sa.Column("response_time", sa.BigInteger, nullable=False),
        sa.Column("failure_reason", sa.Text),
        sa.Column("signing_secret_id", sa.Text),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("error_message", sa.Text),
        sa.Column("response_body", sa.Text),
        sqlite_with_rowid=False,
    )


def _access() -> None:
    op.create_table(
        "policies",
        sa.Column("org_id", sa.Text, primary_key=True),
        sa.Column("plan_id", sa.Text, primary_key=True),
        sa.Column("delays", sa.Text, nullable=False),
        sa.Column("max_retries", sa.Integer, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "secrets",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("org_id", sa.Text, nullable=False),
        sa.Column("key_prefix", sa.Text, nullable=False),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
        sa.Column("is_current", sa.Boolean, nullable=False),
        sa.Column("label", sa.Text),
        sa.Column("disabled_at", sa.BigInteger),
        sa.Column("last_used_at", sa.BigInteger),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
    )
    _index("secrets_by_org", "secrets", "org_id", "created_at", "id")
    _index("secrets_current", "secrets", "org_id", where=CURRENT, unique=True)
    op.create_table(
        "keys",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("org_id", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("key_prefix", sa.Text, nullable=False),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("label", sa.Text),
        sa.Column("revoked_at", sa.BigInteger),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    _index("keys_by_org", "keys", "org_id", "created_at", "id")
    _index("keys_by_digest", "keys", "digest", unique=True)


def _jobs() -> None:
    op.create_table(
        "answers",
        sa.Column("org_id", sa.Text, primary_key=True),
        sa.Column("method", sa.Text, primary_key=True),
        sa.Column("path", sa.Text, primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("body_digest", sa.Text, nullable=False),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("sealed", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
    )
    _index("answers_by_age", "answers", "created_at")
    op.create_table(
        "recoveries",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("org_id", sa.Text, nullable=False),
        sa.Column("since", sa.BigInteger, nullable=False),
        sa.Column("until", sa.BigInteger, nullable=False),
        sa.Column("destination", sa.Text),
        sa.Column("failure_reason", sa.Text),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("matched", sa.Integer, nullable=False),
        sa.Column("redelivered", sa.Integer, nullable=False),
        sa.Column("skipped", sa.Integer, nullable=False),
        sa.Column("position", sa.Text),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("completed_at", sa.BigInteger),
    )
    op.create_table(
        "notes",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("value", sa.Text, nullable=False),
    )
