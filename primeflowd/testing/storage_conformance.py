"""The conformance suite of storages: every promise of hookspecs.Storage and Tx, as tests.

A storage plugin subclasses it in its own tests, with pytest and pytest-trio::

    class TestMyStorage(StorageConformance):
        @pytest.fixture(autouse=True)
        def _place(self, tmp_path: Path) -> None:
            self.path = tmp_path / "storage"

        def open(self) -> AbstractAsyncContextManager[Storage]:
            return open_my_storage(self.path, node_id="node-1")

What the environment can do to a storage (a full disk, a lost connection, two processes) differs
with each and is for its own tests.
"""

from primeflowd.testing.conformance.access import AccessPromises
from primeflowd.testing.conformance.batches import BatchPromises
from primeflowd.testing.conformance.callers import CallerPromises
from primeflowd.testing.conformance.deliveries import DeliveryPromises
from primeflowd.testing.conformance.queue import QueuePromises
from primeflowd.testing.conformance.writes import WritePromises


class StorageConformance(
    WritePromises, CallerPromises, BatchPromises, DeliveryPromises, QueuePromises, AccessPromises
):
    """Subclass it, give it open(), and set `durable` to False if nothing outlives a close."""
