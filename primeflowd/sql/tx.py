"""SqlTx: the Tx protocol over one SQLAlchemy connection, put together from its parts."""

from primeflowd.sql.tx_access import AccessStatements
from primeflowd.sql.tx_batches import BatchStatements
from primeflowd.sql.tx_deliveries import DeliveryStatements
from primeflowd.sql.tx_nodes import NodeStatements
from primeflowd.sql.tx_queue import QueueStatements
from primeflowd.sql.tx_retention import RetentionStatements
from primeflowd.sql.tx_shape import ShapeStatements


class SqlTx(
    BatchStatements,
    DeliveryStatements,
    QueueStatements,
    ShapeStatements,
    NodeStatements,
    AccessStatements,
    RetentionStatements,
):
    """One transaction; see session.py for how it defers, undoes and fails."""
