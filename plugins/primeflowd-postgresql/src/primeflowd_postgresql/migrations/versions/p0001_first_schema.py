"""The first schema.

A migration states the schema as it was at its time: it does not import tables.py, which moves on.
"""

from alembic import op

revision = "p0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    _batches()
    _deliveries()
    _access()
    _jobs()


def _batches() -> None:
    op.execute(
        """
        CREATE TABLE batches (
            id TEXT COLLATE "C" NOT NULL,
            org_id TEXT COLLATE "C" NOT NULL,
            plan_id TEXT COLLATE "C" NOT NULL,
            callback_url TEXT COLLATE "C",
            status TEXT COLLATE "C" NOT NULL,
            items_total BIGINT,
            items_succeeded BIGINT NOT NULL,
            items_failed BIGINT NOT NULL,
            items_cancelled BIGINT NOT NULL,
            cancellation_reason TEXT COLLATE "C",
            created_at BIGINT NOT NULL,
            started_at BIGINT,
            completed_at BIGINT,
            updated_at BIGINT NOT NULL,
            metadata BYTEA,
            output BYTEA,
            payload BYTEA,
            CONSTRAINT batches_pkey PRIMARY KEY (id, org_id)
        ) WITH (
            autovacuum_vacuum_scale_factor = 0.02,
            autovacuum_vacuum_insert_scale_factor = 0.05,
            autovacuum_analyze_scale_factor = 0.02,
            autovacuum_vacuum_cost_limit = 2000,
            toast.autovacuum_vacuum_scale_factor = 0.02,
            toast.autovacuum_vacuum_cost_limit = 2000
        )
        """
    )
    op.execute("CREATE INDEX batches_by_org ON batches (org_id, created_at, id)")
    op.execute(
        """
        CREATE TABLE items (
            batch_id TEXT COLLATE "C" NOT NULL,
            sequence_index INTEGER NOT NULL,
            client_ref TEXT COLLATE "C",
            status TEXT COLLATE "C" NOT NULL,
            updated_at BIGINT NOT NULL,
            input BYTEA,
            output BYTEA,
            error BYTEA,
            org_id TEXT COLLATE "C" NOT NULL,
            CONSTRAINT items_pkey PRIMARY KEY (batch_id, sequence_index, org_id)
        ) WITH (
            autovacuum_vacuum_scale_factor = 0.02,
            autovacuum_vacuum_insert_scale_factor = 0.05,
            autovacuum_analyze_scale_factor = 0.02,
            autovacuum_vacuum_cost_limit = 2000
        )
        """
    )
    op.execute(
        "CREATE UNIQUE INDEX items_by_client_ref"
        " ON items (batch_id, client_ref, org_id) WHERE client_ref IS NOT NULL"
    )


def _deliveries() -> None:
    op.execute(
        """
        CREATE TABLE deliveries (
            id TEXT COLLATE "C" NOT NULL,
            batch_id TEXT COLLATE "C" NOT NULL,
            org_id TEXT COLLATE "C" NOT NULL,
            destination TEXT COLLATE "C" NOT NULL,
            is_automatic BOOLEAN NOT NULL,
            status TEXT COLLATE "C" NOT NULL,
            attempt_count INTEGER NOT NULL,
            interruptions INTEGER NOT NULL,
            max_retries INTEGER NOT NULL,
            due_at BIGINT,
            claimed_by TEXT COLLATE "C",
            created_at BIGINT NOT NULL,
            updated_at BIGINT NOT NULL,
            completed_at BIGINT,
            failure_reason TEXT COLLATE "C",
            policy_source TEXT COLLATE "C" NOT NULL,
            policy_plan_id TEXT COLLATE "C" NOT NULL,
            signing_secret_id TEXT COLLATE "C",
            callback_url TEXT COLLATE "C" NOT NULL,
            delays TEXT COLLATE "C" NOT NULL,
            failure_detail TEXT COLLATE "C",
            CONSTRAINT deliveries_pkey PRIMARY KEY (id, org_id)
        ) WITH (
            autovacuum_vacuum_scale_factor = 0.02,
            autovacuum_vacuum_insert_scale_factor = 0.05,
            autovacuum_analyze_scale_factor = 0.02,
            autovacuum_vacuum_cost_limit = 2000
        )
        """
    )
    op.execute("CREATE INDEX deliveries_by_batch ON deliveries (batch_id, created_at)")
    op.execute("CREATE INDEX deliveries_by_org ON deliveries (org_id, created_at, id)")
    op.execute(
        "CREATE INDEX deliveries_claimed ON deliveries (claimed_by) WHERE claimed_by IS NOT NULL"
    )
    op.execute(
        "CREATE INDEX deliveries_due"
        " ON deliveries (due_at, id, destination)"
        " WHERE status = 'pending' AND claimed_by IS NULL"
    )
    op.execute(
        "CREATE INDEX deliveries_due_by_destination"
        " ON deliveries (destination, due_at, id)"
        " WHERE status = 'pending' AND claimed_by IS NULL"
    )
    op.execute("CREATE INDEX deliveries_failed ON deliveries (org_id, id) WHERE status = 'failed'")
    op.execute(
        "CREATE UNIQUE INDEX deliveries_in_flight"
        " ON deliveries (batch_id, org_id)"
        " WHERE status IN ('pending', 'delivering')"
    )
    op.execute(
        """
        CREATE TABLE attempts (
            delivery_id TEXT COLLATE "C" NOT NULL,
            attempt_number INTEGER NOT NULL,
            id TEXT COLLATE "C" NOT NULL,
            status_code INTEGER,
            response_time BIGINT NOT NULL,
            failure_reason TEXT COLLATE "C",
            signing_secret_id TEXT COLLATE "C",
            created_at BIGINT NOT NULL,
            error_message TEXT COLLATE "C",
            response_body TEXT COLLATE "C",
            org_id TEXT COLLATE "C" NOT NULL,
            CONSTRAINT attempts_pkey PRIMARY KEY (delivery_id, attempt_number, org_id)
        ) WITH (
            autovacuum_vacuum_scale_factor = 0.02,
            autovacuum_vacuum_insert_scale_factor = 0.05,
            autovacuum_analyze_scale_factor = 0.02,
            autovacuum_vacuum_cost_limit = 2000
        )
        """
    )


def _access() -> None:
    op.execute(
        """
        CREATE TABLE policies (
            org_id TEXT COLLATE "C" NOT NULL,
            plan_id TEXT COLLATE "C" NOT NULL,
            delays TEXT COLLATE "C" NOT NULL,
            max_retries INTEGER NOT NULL,
            created_at BIGINT NOT NULL,
            updated_at BIGINT NOT NULL,
            CONSTRAINT policies_pkey PRIMARY KEY (org_id, plan_id)
        )
        """
    )
    op.execute(
        """
        CREATE TABLE secrets (
            id TEXT COLLATE "C" NOT NULL,
            org_id TEXT COLLATE "C" NOT NULL,
            key_prefix TEXT COLLATE "C" NOT NULL,
            sealed BYTEA NOT NULL,
            is_current BOOLEAN NOT NULL,
            label TEXT COLLATE "C",
            disabled_at BIGINT,
            last_used_at BIGINT,
            created_at BIGINT NOT NULL,
            updated_at BIGINT NOT NULL,
            CONSTRAINT secrets_pkey PRIMARY KEY (id, org_id)
        )
        """
    )
    op.execute("CREATE INDEX secrets_by_org ON secrets (org_id, created_at, id)")
    op.execute("CREATE UNIQUE INDEX secrets_current ON secrets (org_id) WHERE is_current")
    op.execute(
        """
        CREATE TABLE keys (
            id TEXT COLLATE "C" NOT NULL,
            org_id TEXT COLLATE "C" NOT NULL,
            digest TEXT COLLATE "C" NOT NULL,
            key_prefix TEXT COLLATE "C" NOT NULL,
            scopes TEXT COLLATE "C" NOT NULL,
            label TEXT COLLATE "C",
            revoked_at BIGINT,
            created_at BIGINT NOT NULL,
            CONSTRAINT keys_pkey PRIMARY KEY (id, org_id)
        )
        """
    )
    op.execute("CREATE UNIQUE INDEX keys_by_digest ON keys (digest, org_id)")
    op.execute("CREATE INDEX keys_by_org ON keys (org_id, created_at, id)")


def _jobs() -> None:
    op.execute(
        """
        CREATE TABLE answers (
            org_id TEXT COLLATE "C" NOT NULL,
            method TEXT COLLATE "C" NOT NULL,
            path TEXT COLLATE "C" NOT NULL,
            key TEXT COLLATE "C" NOT NULL,
            body_digest TEXT COLLATE "C" NOT NULL,
            status INTEGER NOT NULL,
            sealed BOOLEAN NOT NULL,
            created_at BIGINT NOT NULL,
            body BYTEA NOT NULL,
            CONSTRAINT answers_pkey PRIMARY KEY (org_id, method, path, key)
        ) WITH (
            autovacuum_vacuum_scale_factor = 0.02,
            autovacuum_vacuum_insert_scale_factor = 0.05,
            autovacuum_analyze_scale_factor = 0.02,
            autovacuum_vacuum_cost_limit = 2000
        )
        """
    )
    op.execute("CREATE INDEX answers_by_age ON answers (created_at)")
    op.execute(
        """
        CREATE TABLE recoveries (
            id TEXT COLLATE "C" NOT NULL,
            org_id TEXT COLLATE "C" NOT NULL,
            since BIGINT NOT NULL,
            until BIGINT NOT NULL,
            destination TEXT COLLATE "C",
            failure_reason TEXT COLLATE "C",
            status TEXT COLLATE "C" NOT NULL,
            matched INTEGER NOT NULL,
            redelivered INTEGER NOT NULL,
            skipped INTEGER NOT NULL,
            position TEXT COLLATE "C",
            created_at BIGINT NOT NULL,
            completed_at BIGINT,
            CONSTRAINT recoveries_pkey PRIMARY KEY (id, org_id)
        )
        """
    )
    op.execute(
        """
        CREATE TABLE nodes (
            id TEXT COLLATE "C" NOT NULL,
            began_at BIGINT NOT NULL,
            expires_at BIGINT NOT NULL,
            CONSTRAINT nodes_pkey PRIMARY KEY (id)
        ) WITH (
            autovacuum_vacuum_scale_factor = 0.0,
            autovacuum_vacuum_threshold = 200,
            fillfactor = 50
        )
        """
    )
    op.execute(
        """
        CREATE TABLE orders (
            node_id TEXT COLLATE "C" NOT NULL,
            delivery_id TEXT COLLATE "C" NOT NULL,
            CONSTRAINT orders_pkey PRIMARY KEY (node_id, delivery_id)
        ) WITH (
            autovacuum_vacuum_scale_factor = 0.0,
            autovacuum_vacuum_threshold = 200
        )
        """
    )
    op.execute(
        """
        CREATE TABLE notes (
            name TEXT COLLATE "C" NOT NULL,
            value TEXT COLLATE "C" NOT NULL,
            CONSTRAINT notes_pkey PRIMARY KEY (name)
        )
        """
    )
