"""What operators set for destinations, and which of them are disabled."""

from alembic import op

revision = "p0002"
down_revision = "p0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE destination_policies (
            destination TEXT COLLATE "C" NOT NULL,
            settings TEXT COLLATE "C",
            disabled_reason TEXT COLLATE "C",
            disabled_at BIGINT,
            failing_since BIGINT,
            created_at BIGINT NOT NULL,
            updated_at BIGINT NOT NULL,
            sealed_headers BYTEA,
            CONSTRAINT destination_policies_pkey PRIMARY KEY (destination)
        )
        """
    )
