"""CPU time per write by group size, of the client and of the server: `python tests/measure.py`.

Not a test: figures of a noisy machine mean something only beside others of the same run. A write
here is what one callback costs: a batch and its delivery inserted, its attempt recorded. Groups
are formed as the writer forms them, without Trio.
"""

import sys
import time
from collections.abc import Iterator

import psutil
from msgspec.structs import replace
from server import Server

from primeflowd.model import Batch, Delivery
from primeflowd.sql import schema
from primeflowd.sql.statements import Statements
from primeflowd.sql.tx import SqlTx
from primeflowd.testing.factories import make_attempt, make_batch, make_delivery
from primeflowd_postgresql.connections import WRITING, Address
from primeflowd_postgresql.storage import MIGRATIONS
from primeflowd_postgresql.watchdog import Watchdog

NODE = "node-1"
SIZES = (1, 10, 100, 500)
CALLBACKS = 2_000
ROUNDS = 3


def server_seconds(server: Server) -> float:
    """CPU time of all of the server's processes."""
    postmaster = psutil.Process(server.pid)
    return sum(
        sum(process.cpu_times()[:2])
        for process in [postmaster, *postmaster.children(recursive=True)]
    )


def callbacks() -> Iterator[tuple[Batch, Delivery]]:
    for _ in range(CALLBACKS):
        batch = make_batch(payload=b"x" * 500)
        yield batch, make_delivery(batch_id=batch.id, claimed_by=NODE)


def measure(server: Server, size: int) -> tuple[float, float, float]:
    """Microseconds per callback: of the client's CPU, of the server's, and of time."""
    database = server.create_database()
    watchdog = Watchdog(10)
    engine = Address(server.url(database)).engine(WRITING, watchdog)
    schema.bring_up_to_date(engine, database, MIGRATIONS)
    statements = Statements(engine.dialect)
    made = list(callbacks())
    groups = [made[at : at + size] for at in range(0, len(made), size)]
    with engine.connect() as connection:
        before = time.process_time(), server_seconds(server), time.perf_counter()
        for group in groups:
            with connection.begin():
                tx = SqlTx(connection, statements, writes=True, presuming=True)
                for batch, delivery in group:
                    tx.begin_function()
                    tx.insert_batch(batch)
                    tx.insert_delivery(delivery)
                tx.flush()
            with connection.begin():
                tx = SqlTx(connection, statements, writes=True, presuming=True)
                for _, delivery in group:
                    tx.begin_function()
                    ended = replace(
                        delivery, status="succeeded", attempt_count=1, due_at=None, claimed_by=None
                    )
                    tx.record_attempt(NODE, make_attempt(delivery_id=delivery.id), ended)
                tx.flush()
        after = time.process_time(), server_seconds(server), time.perf_counter()
    engine.dispose()
    watchdog.close()
    server.drop_database(database)
    client, of_server, elapsed = (
        (end - begin) / CALLBACKS * 1e6 for begin, end in zip(before, after, strict=True)
    )
    return client, of_server, elapsed


def main() -> None:
    options = {"fsync": "on", "full_page_writes": "on"} if "--fsync" in sys.argv else {}
    with Server(**options) as server:
        for _ in range(ROUNDS):
            for size in SIZES:
                client, of_server, elapsed = measure(server, size)
                sys.stdout.write(
                    f"groups of {size:>3}: {client:6.0f} us client + {of_server:6.0f} us server"
                    f" a callback; {1e6 / elapsed:6.0f} callbacks/s one group after the other\n"
                )


if __name__ == "__main__":
    main()
