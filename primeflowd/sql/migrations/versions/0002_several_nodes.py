"""Several nodes on one storage: leases, orders, and the org in every row that is an org's."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "nodes",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("began_at", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "orders",
        sa.Column("node_id", sa.Text, primary_key=True),
        sa.Column("delivery_id", sa.Text, primary_key=True),
    )
    for table in ("items", "attempts"):
        op.add_column(table, sa.Column("org_id", sa.Text, nullable=False, server_default=""))
    op.execute(
        "UPDATE items SET org_id = (SELECT org_id FROM batches WHERE batches.id = items.batch_id)"
    )
    op.execute(
        "UPDATE attempts SET org_id ="
        " (SELECT org_id FROM deliveries WHERE deliveries.id = attempts.delivery_id)"
    )
