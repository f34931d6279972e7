"""The org in the index of what waits by destination, to count an org's from it alone."""

from alembic import op

revision = "p0003"
down_revision = "p0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("DROP INDEX deliveries_due_by_destination")
    op.execute(
        "CREATE INDEX deliveries_due_by_destination"
        " ON deliveries (destination, due_at, id, org_id)"
        " WHERE status = 'pending' AND claimed_by IS NULL"
    )
