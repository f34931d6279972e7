"""The conformance suite of storages: every promise of hookspecs.Storage and Tx, as tests.

A storage plugin subclasses it in its own tests, with pytest and pytest-trio::

    class TestMyStorage(StorageConformance):
        @pytest.fixture(autouse=True)
        def _place(self, tmp_path: Path) -> None:
            self.path = tmp_path / "storage"

        def open(self) -> AbstractAsyncContextManager[Storage]:
            return open_my_storage(self.path, node_id="node-1")

A storage that several nodes can share subclasses SharedStorageConformance instead, and has::

        def open_again(self) -> AbstractAsyncContextManager[Storage]:
            return open_my_storage(self.path, node_id="node-2")

Of values: bytes are any bytes, text is any Unicode but NUL and lone surrogates, integers fit into
64 bits.

What the environment can do to a storage (a full disk, a lost connection, a process that dies)
differs with each and is for its own tests.
"""

from primeflowd.testing.conformance.access import AccessPromises
from primeflowd.testing.conformance.batches import BatchPromises
from primeflowd.testing.conformance.callers import CallerPromises
from primeflowd.testing.conformance.deliveries import DeliveryPromises
from primeflowd.testing.conformance.nodes import NodePromises
from primeflowd.testing.conformance.queue import QueuePromises
from primeflowd.testing.conformance.retention import RetentionPromises
from primeflowd.testing.conformance.sharing import SharingPromises
from primeflowd.testing.conformance.submissions import SubmissionPromises
from primeflowd.testing.conformance.writes import WritePromises


class StorageConformance(
    WritePromises,
    CallerPromises,
    SubmissionPromises,
    BatchPromises,
    DeliveryPromises,
    QueuePromises,
    NodePromises,
    AccessPromises,
    RetentionPromises,
):
    """Subclass it, give it open(), and set `durable` to False if nothing outlives a close."""


class SharedStorageConformance(StorageConformance, SharingPromises):
    """As StorageConformance, and two nodes have it open at once; give it open_again() as well."""
