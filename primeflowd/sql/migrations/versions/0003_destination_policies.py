"""What operators set for destinations, and which of them are disabled."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "destination_policies",
        sa.Column("destination", sa.Text, primary_key=True),
        sa.Column("settings", sa.Text),
        sa.Column("disabled_reason", sa.Text),
        sa.Column("disabled_at", sa.BigInteger),
        sa.Column("failing_since", sa.BigInteger),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.BigInteger, nullable=False),
        sa.Column("sealed_headers", sa.LargeBinary),
    )
