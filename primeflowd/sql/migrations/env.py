"""What Alembic runs to migrate: our connection, in our transaction.

Alembic imports this by path. schema.py hands over a connection that is inside a transaction, so
that a migration that fails leaves the schema as it was.
"""

from alembic import context

from primeflowd.sql.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
context.run_migrations()
