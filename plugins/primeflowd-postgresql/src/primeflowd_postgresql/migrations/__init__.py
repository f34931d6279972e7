"""Migrations of the schema, run by primeflowd.sql.schema through Alembic when a storage is opened.

Their revisions have a `p` before the number: they are not those of SQLite's schema.
"""
