"""Migrations of the schema, run by schema.py through Alembic when a storage is opened."""
