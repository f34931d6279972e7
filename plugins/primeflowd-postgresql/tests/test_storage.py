"""Storage in a PostgreSQL database: the conformance suite."""

from contextlib import AbstractAsyncContextManager

import pytest
from test_schema import partition

from primeflowd.hookspecs import Storage
from primeflowd.testing.storage_conformance import SharedStorageConformance
from primeflowd_postgresql.connections import WRITING, Address
from primeflowd_postgresql.storage import open_postgresql


class TestPostgresqlStorage(SharedStorageConformance):
    @pytest.fixture(autouse=True)
    def _place(self, url: str) -> None:
        self.url = url

    def open(self) -> AbstractAsyncContextManager[Storage]:
        return open_postgresql(self.url, "node-1")

    def open_again(self) -> AbstractAsyncContextManager[Storage]:
        return open_postgresql(self.url, "node-2")


class TestPartitionedByOrg(TestPostgresqlStorage):
    """The same on tables that are hash-partitioned by org: no query and no key is in the way."""

    @pytest.fixture(autouse=True)
    def _place(self, url: str) -> None:
        self.url = url
        engine = Address(url).engine(WRITING, None)
        partition(engine)
        engine.dispose()
