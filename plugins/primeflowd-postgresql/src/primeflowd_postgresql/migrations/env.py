"""What Alembic runs to migrate: our connection, in our transaction.

Alembic imports this by path. primeflowd.sql.schema hands over a connection that is inside a
transaction, so that a migration that fails leaves the schema as it was.
"""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
