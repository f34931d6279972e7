"""Keeps primeflowd's storage in PostgreSQL: the plugin `postgresql`.

It opens `[storage] url = "postgresql://..."`. What is promised is in storage.py, what connections
do in connections.py, how nodes tell each other in listener.py, the schema in tables.py.
"""

from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

import structlog

from primeflowd.config import Config
from primeflowd.hookspecs import SchemaState, Storage, hookimpl
from primeflowd_postgresql.connections import SCHEMES
from primeflowd_postgresql.settings import Settings, read
from primeflowd_postgresql.storage import migrate, open_postgresql

log = structlog.get_logger()


class Postgresql:
    """The plugin; `HOOK_API` is the version of primeflowd's hooks that it was written for."""

    HOOK_API: Final = 1

    def __init__(self) -> None:
        self._settings = Settings()

    @hookimpl
    def configure(self, settings: Mapping[str, Any]) -> None:
        """Take the `[plugins.postgresql]` table. Connects to nothing.

        Raises:
            ConfigError: something in it is unknown or not allowed.
        """
        self._settings = read(settings)

    @hookimpl
    def open_storage(
        self, config: Config, node_id: str | None
    ) -> AbstractAsyncContextManager[Storage] | None:
        if not config.storage_url.startswith(SCHEMES):
            return None
        timeout, lease = self._settings.timeout, config.storage.lease_ttl
        # No reason not to start: others only wait longer for what a node leaves that stands still.
        if node_id is not None and self._settings.outlasts(lease):
            log.warning(
                "postgresql_timeout_too_long",
                timeout=timeout.text,
                lease_ttl=lease.text,
                hint="let plugins.postgresql.timeout be at most two thirds of storage.lease_ttl",
            )
        return open_postgresql(config.storage_url, node_id, self._settings)

    @hookimpl
    def migrate_storage(self, config: Config, check: bool) -> SchemaState | None:
        if not config.storage_url.startswith(SCHEMES):
            return None
        return migrate(config.storage_url, check)


plugin: Final = Postgresql()
"""What the entry point names."""
