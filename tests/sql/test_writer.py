"""Group commit: what shares a commit, what a group does to its members, and what ends it."""

import re
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from operator import methodcaller
from pathlib import Path

import outcome
import pytest
import structlog
import trio
from sqlalchemy import Engine, event
from trio.testing import wait_all_tasks_blocked

from primeflowd.errors import StorageUnavailable, UniqueViolation
from primeflowd.hookspecs import Tx
from primeflowd.sql import gathering
from primeflowd.sql import writer as module
from primeflowd.sql.given_rows import SIZES
from primeflowd.sql.statements import Statements
from primeflowd.sql.writer import Writer
from primeflowd.testing.factories import ORG, make_batch, make_delivery
from tests.sql.database import Breakable, make_database


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    Breakable.reset()
    yield make_database(tmp_path / "storage.db")
    Breakable.reset()


@pytest.fixture
async def writer(engine: Engine) -> AsyncIterator[Writer]:
    Breakable.opened = 0
    writer = Writer(engine, Statements(engine.dialect))
    yield writer
    Breakable.reset()
    await writer.aclose()


class Gate:
    """A function that keeps the writer busy, so that what comes after it queues up."""

    def __init__(self) -> None:
        self.reached = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        self._go = threading.Event()

    def __call__(self, tx: Tx) -> None:
        self._token.run_sync_soon(self.reached.set)
        self._go.wait()

    def open(self) -> None:
        self._go.set()


@asynccontextmanager
async def one_group(writer: Writer) -> AsyncIterator[trio.Nursery]:
    """What is started in this nursery is one group, after the one of a gate."""
    gate = Gate()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.write, gate)
        await gate.reached.wait()
        try:
            yield nursery
            await wait_all_tasks_blocked()
        finally:
            gate.open()


async def refuse(
    writer: Writer, function: Callable[[Tx], None], error: type[BaseException]
) -> None:
    with pytest.raises(error):
        await writer.write(function)


def notes(writer: Writer) -> dict[str, str]:
    """What is stored, told by a connection of our own."""
    with writer.engine.connect() as connection:
        return dict(connection.exec_driver_sql("SELECT name, value FROM notes").fetchall())


def traced(engine: Engine) -> list[str]:
    """What SQLite runs on the connections that are opened from now on, row by row."""
    seen: list[str] = []

    @event.listens_for(engine, "connect")
    def connect(connection: sqlite3.Connection, _: object) -> None:
        connection.set_trace_callback(seen.append)

    return seen


async def test_what_queued_meanwhile_shares_a_commit(writer: Writer) -> None:
    async with one_group(writer) as nursery:
        for index in range(50):
            nursery.start_soon(writer.write, lambda tx, i=index: tx.put_note(str(i), ""))
        await wait_all_tasks_blocked()
        assert writer.statistics().backlog == 50
    after = writer.statistics()
    assert (after.commits, after.operations, after.backlog) == (2, 51, 0)
    assert after.commit_times is not None
    assert sum(after.commit_times.counts) == 2
    assert after.commit_times.total > 0
    assert len(notes(writer)) == 50


async def test_what_comes_together_shares_a_commit(writer: Writer) -> None:
    """The first of them does not wake the thread by itself, however long the others take."""

    async def arrive() -> None:
        # A thread that was woken would have all the time that it needs.
        time.sleep(0.01)  # noqa: ASYNC251 -- it is the loop that shall be held up
        await writer.write(lambda tx: None)

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(arrive)
    assert writer.statistics().commits == 1


async def test_what_comes_soon_after_a_bulk_shares_a_commit(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After many rows of one operation the thread waits a while before it looks what there is."""
    # However slow the machine is, the next operation is there before it is over.
    monkeypatch.setattr(gathering, "PAUSE", 600.0)
    pauses: list[float] = []
    pausing, go_on = trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        token.run_sync_soon(pausing.set)
        go_on.wait()

    def bulk(tx: Tx) -> None:
        for _ in range(gathering.MANY):
            tx.insert_batch(make_batch())

    writer = Writer(engine, Statements(engine.dialect), sleep=pause)
    await writer.write(bulk)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.write, lambda tx: tx.put_note("a", ""))
        await pausing.wait()
        nursery.start_soon(writer.write, lambda tx: tx.put_note("b", ""))
        await wait_all_tasks_blocked()
        assert writer.statistics().commits == 1
        go_on.set()
    # Nothing waits for what comes after those.
    await writer.write(lambda tx: tx.put_note("c", ""))
    await writer.aclose()
    assert notes(writer).keys() == {"a", "b", "c"}
    assert writer.statistics().commits == 3
    assert len(pauses) == 1
    assert 0 < pauses[0] <= 600


async def test_a_busy_thread_is_told_without_a_turn_of_the_loop(writer: Writer) -> None:
    """Rousing it is for one that would begin too early."""

    class Turns(trio.abc.Instrument):
        taken = 0

        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            self.taken += task.name.endswith("Writer._rouse")

    turns = Turns()
    async with one_group(writer) as nursery:
        trio.lowlevel.add_instrument(turns)
        for index in range(20):
            nursery.start_soon(writer.write, lambda tx, i=index: tx.put_note(str(i), ""))
            await wait_all_tasks_blocked()
        trio.lowlevel.remove_instrument(turns)
        assert turns.taken == 0
    assert writer.statistics().commits == 2
    assert len(notes(writer)) == 20


async def test_it_can_be_closed_again(writer: Writer) -> None:
    await writer.write(lambda tx: None)
    await writer.aclose()
    await writer.aclose()
    with pytest.raises(StorageUnavailable):
        await writer.write(lambda tx: None)


async def test_group_is_bounded(writer: Writer) -> None:
    async with one_group(writer) as nursery:
        for _ in range(module.MAX_GROUP + 1):
            nursery.start_soon(writer.write, lambda tx: None)
    assert writer.statistics().commits == 3


async def test_inserts_of_a_group_are_written_together(engine: Engine, writer: Writer) -> None:
    """A thousand new batches of one org: two questions and two inserts."""

    def function(tx: Tx) -> None:
        batch = make_batch()
        assert tx.policy(ORG, "") is None
        assert tx.current_secret(ORG) is None
        assert tx.taken_batch_ids([]) == set()
        tx.insert_batch(batch)
        tx.insert_delivery(make_delivery(batch_id=batch.id))

    statements = traced(engine)
    async with one_group(writer) as nursery:
        for _ in range(20):
            nursery.start_soon(writer.write, function)
    # Without the gate's group.
    kinds = [re.sub("^INSERT (OR FAIL )?", "", statement) for statement in statements][2:]
    kinds = [" ".join(kind.split()[:2]) for kind in kinds]
    assert [kind.split()[0] for kind in kinds[:3]] == ["BEGIN", "SELECT", "SELECT"]
    runs, left = 0, 20
    for size in SIZES:
        runs, left = runs + left // size, left % size
    inserts = ["INTO batches"] * runs + ["INTO deliveries"] * runs
    assert kinds[3:] == [*inserts, "COMMIT"]


async def test_every_on_commit_comes_before_any_task_wakes(writer: Writer) -> None:
    events: list[str] = []

    async def write(name: str) -> None:
        await writer.write(lambda tx: name, lambda told: events.append(f"commit {told}"))
        events.append("woke")

    async with one_group(writer) as nursery:
        for name in "abc":
            nursery.start_soon(write, name)
            await wait_all_tasks_blocked()
    assert events == ["commit a", "commit b", "commit c", "woke", "woke", "woke"]


async def test_functions_run_in_the_order_they_were_queued(writer: Writer) -> None:
    ran: list[int] = []
    async with one_group(writer) as nursery:
        for index in range(20):
            nursery.start_soon(writer.write, lambda tx, i=index: ran.append(i))
            await wait_all_tasks_blocked()
    assert ran == list(range(20))


async def test_refusal_does_not_spoil_its_group(writer: Writer) -> None:
    """Not even after a read, for which the rows of the others had to be written."""
    batch = make_batch()

    def refused(tx: Tx) -> None:
        tx.in_flight(ORG, batch.id)
        tx.insert_batch(make_batch(id="not kept"))
        raise LookupError

    async with one_group(writer) as nursery:
        nursery.start_soon(writer.write, lambda tx: tx.insert_batch(batch))
        nursery.start_soon(writer.write, lambda tx: tx.insert_delivery(make_delivery()))
        nursery.start_soon(refuse, writer, refused, LookupError)
        nursery.start_soon(writer.write, lambda tx: tx.put_note("a", "1"))
    assert writer.statistics().commits == 2
    taken = await writer.write(lambda tx: tx.taken_batch_ids([batch.id, "not kept"]))
    assert taken == {batch.id}
    assert notes(writer) == {"a": "1"}


async def test_raising_after_a_write_makes_each_run_alone(writer: Writer) -> None:
    def raises(tx: Tx) -> None:
        tx.put_note("b", "1")
        raise LookupError

    async with one_group(writer) as nursery:
        nursery.start_soon(writer.write, lambda tx: tx.put_note("a", "1"))
        nursery.start_soon(refuse, writer, raises, LookupError)
        nursery.start_soon(writer.write, lambda tx: tx.put_note("c", "1"))
    assert notes(writer) == {"a": "1", "c": "1"}
    assert writer.statistics().commits == 3


async def test_raising_after_its_rows_were_written_for_a_read(writer: Writer) -> None:
    def raises(tx: Tx) -> None:
        tx.insert_delivery(make_delivery(batch_id="b"))
        assert tx.in_flight(ORG, "b") is not None
        raise LookupError

    async with one_group(writer) as nursery:
        nursery.start_soon(refuse, writer, raises, LookupError)
        nursery.start_soon(writer.write, lambda tx: tx.put_note("a", "1"))
    assert await writer.write(lambda tx: tx.in_flight(ORG, "b")) is None
    assert notes(writer) == {"a": "1"}


async def test_late_violation_hurts_only_the_later_one(writer: Writer) -> None:
    runs = {"first": 0, "second": 0}
    batch = make_batch()

    async def insert(name: str) -> None:
        def function(tx: Tx) -> None:
            runs[name] += 1
            tx.insert_delivery(make_delivery(batch_id=batch.id))

        await writer.write(function)

    async def second() -> None:
        with pytest.raises(UniqueViolation):
            await insert("second")

    async with one_group(writer) as nursery:
        nursery.start_soon(insert, "first")
        await wait_all_tasks_blocked()
        nursery.start_soon(second)
        nursery.start_soon(writer.write, lambda tx: tx.put_note("a", "1"))
    # Once with the group, once alone, and the loser once more.
    assert runs == {"first": 2, "second": 3}
    assert notes(writer) == {"a": "1"}


async def test_late_violation_among_many_hurts_only_the_later_one(writer: Writer) -> None:
    """Their rows were written by one statement, which ends in the middle."""
    deliveries = [make_delivery(id=f"d{k:02}", batch_id=f"b{k}") for k in range(SIZES[0])]
    taken = make_delivery(id="taken", batch_id="b20")
    async with one_group(writer) as nursery:
        for delivery in deliveries[:40]:
            nursery.start_soon(writer.write, methodcaller("insert_delivery", delivery))
        await wait_all_tasks_blocked()
        insert = methodcaller("insert_delivery", taken)
        nursery.start_soon(refuse, writer, insert, UniqueViolation)
        await wait_all_tasks_blocked()
        for delivery in deliveries[40:]:
            nursery.start_soon(writer.write, methodcaller("insert_delivery", delivery))
    with writer.engine.connect() as connection:
        found = connection.exec_driver_sql("SELECT id FROM deliveries ORDER BY id").scalars().all()
    assert list(found) == [delivery.id for delivery in deliveries]
    assert writer.statistics().healthy


async def test_violation_that_a_function_swallows_is_raised_all_the_same(writer: Writer) -> None:
    """The transaction holds a part of a statement by then: not to be committed."""

    def swallows(tx: Tx) -> None:
        try:
            tx.insert_delivery(make_delivery(batch_id="b"))
            tx.insert_delivery(make_delivery(batch_id="b"))
            tx.in_flight(ORG, "b")
        except UniqueViolation:
            tx.put_note("swallowed", "1")

    async with one_group(writer) as nursery:
        nursery.start_soon(refuse, writer, swallows, UniqueViolation)
        nursery.start_soon(writer.write, lambda tx: tx.put_note("a", "1"))
    assert notes(writer) == {"a": "1"}
    assert await writer.write(lambda tx: tx.in_flight(ORG, "b")) is None


async def test_a_function_writes_nothing_where_the_transaction_is_gone(
    engine: Engine, writer: Writer
) -> None:
    """A full disk has SQLite end the whole transaction: what ran after it would be committed by
    itself."""

    @event.listens_for(engine, "connect")
    def connect(connection: sqlite3.Connection, _: object) -> None:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages + 10}")

    def swallows(tx: Tx) -> None:
        with suppress(StorageUnavailable):
            tx.put_note("too much", "x" * 1_000_000)
        tx.put_note("swallowed", "1")

    await refuse(writer, swallows, StorageUnavailable)
    assert notes(writer) == {}
    await writer.write(lambda tx: tx.put_note("a", "1"))
    assert notes(writer) == {"a": "1"}


async def test_unstorable_value_does_not_touch_the_others(writer: Writer) -> None:
    poison = make_delivery(failure_detail="\ud800")
    async with one_group(writer) as nursery:
        nursery.start_soon(
            refuse, writer, lambda tx: tx.insert_delivery(poison), UnicodeEncodeError
        )
        nursery.start_soon(writer.write, lambda tx: tx.insert_delivery(make_delivery(id="good")))
    assert await writer.write(lambda tx: tx.delivery(None, "good")) is not None
    assert writer.statistics().healthy


async def test_cancelled_in_its_group_is_committed_and_told(writer: Writer) -> None:
    told: list[None] = []
    async with one_group(writer) as nursery:
        with trio.CancelScope() as scope:
            nursery.start_soon(cancel_when_blocked, scope)
            await writer.write(lambda tx: tx.put_note("a", "1"), told.append)
        assert scope.cancelled_caught
        assert told == []
    await writer.write(lambda tx: None)  # which comes after it
    assert told == [None]
    assert notes(writer) == {"a": "1"}


async def cancel_when_blocked(scope: trio.CancelScope) -> None:
    await wait_all_tasks_blocked()
    scope.cancel()


async def test_cancelled_beforehand_is_withdrawn(writer: Writer) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await writer.write(lambda tx: tx.put_note("a", "1"))
    assert scope.cancelled_caught
    await writer.write(lambda tx: None)
    assert notes(writer) == {}


async def test_raising_on_commit_is_logged(writer: Writer) -> None:
    def broken(_: None) -> None:
        raise RuntimeError("a bug")

    with structlog.testing.capture_logs() as logs:
        await writer.write(lambda tx: tx.put_note("a", "1"), broken)
    assert [(log["log_level"], log["event"]) for log in logs] == [
        ("error", "a callback raised after its commit")
    ]
    assert notes(writer) == {"a": "1"}


async def test_closing_commits_what_is_queued(engine: Engine) -> None:
    writer = Writer(engine, Statements(engine.dialect))
    async with one_group(writer) as nursery:
        for index in range(10):
            nursery.start_soon(writer.write, lambda tx, i=index: tx.put_note(str(i), ""))
        await wait_all_tasks_blocked()
        nursery.start_soon(writer.aclose)
        await wait_all_tasks_blocked()
        with pytest.raises(StorageUnavailable, match="closed"):
            await writer.write(lambda tx: None)
    assert len(notes(writer)) == 10
    assert not writer._thread.is_alive()


# Without a task that waits


def ignore(_: object) -> None:
    """For those who need not be told."""


async def test_submitted_and_written_share_a_commit(writer: Writer) -> None:
    """Every `on_commit` comes before anybody is told the result, in whichever way."""
    events: list[str] = []

    async def write(name: str) -> None:
        await writer.write(lambda tx: name, lambda told: events.append(f"commit {told}"))
        events.append("woke")

    def submit(name: str) -> None:
        writer.submit(
            lambda tx: name,
            lambda told: events.append(f"commit {told}"),
            lambda result: events.append(f"end {name} {result.unwrap()}"),
        )

    async with one_group(writer) as nursery:
        submit("a")
        nursery.start_soon(write, "b")
        await wait_all_tasks_blocked()
        submit("c")
        assert writer.statistics().backlog == 3
    assert events == ["commit a", "commit b", "commit c", "end a a", "end c c", "woke"]
    assert writer.statistics().commits == 2


async def test_what_is_submitted_together_shares_a_commit(writer: Writer) -> None:
    """An idle thread is not woken by the first of them."""
    told: list[int] = []
    done = trio.Event()
    for number in range(5):
        # A thread that was woken would have all the time that it needs.
        time.sleep(0.01)  # noqa: ASYNC251 -- it is the loop that shall be held up
        writer.submit(lambda tx, i=number: i, told.append, lambda _: done.set())  # type: ignore[misc]
    await done.wait()
    assert told == [*range(5)]
    assert writer.statistics().commits == 1


async def test_raising_on_end_strands_nobody(writer: Writer) -> None:
    ended: list[outcome.Maybe[None]] = []
    woke: list[str] = []

    def broken(_: object) -> None:
        raise RuntimeError("a bug")

    async def write() -> None:
        await writer.write(lambda tx: tx.put_note("c", "1"))
        woke.append("c")

    with structlog.testing.capture_logs() as logs:
        async with one_group(writer) as nursery:
            writer.submit(lambda tx: tx.put_note("a", "1"), ignore, broken)
            writer.submit(lambda tx: tx.put_note("b", "1"), ignore, ended.append)
            nursery.start_soon(write)
    assert ended == [outcome.Value(None)]
    assert woke == ["c"]
    assert [(log["log_level"], log["event"]) for log in logs] == [
        ("error", "a callback raised at the end of an operation")
    ]
    assert notes(writer) == {"a": "1", "b": "1", "c": "1"}
    # Nor is the thread, or whoever comes next.
    await writer.write(lambda tx: tx.put_note("d", "1"))


async def test_a_writer_that_is_cancelled_takes_nobody_with_it(writer: Writer) -> None:
    """Who is cancelled in a group is not told; those who submitted are."""
    ended: list[outcome.Maybe[None]] = []
    async with one_group(writer):
        writer.submit(lambda tx: tx.put_note("a", "1"), ignore, ended.append)
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancel_when_blocked, scope)
                await writer.write(lambda tx: tx.put_note("b", "1"))
        assert scope.cancelled_caught
        writer.submit(lambda tx: tx.put_note("c", "1"), ignore, ended.append)
    await writer.write(lambda tx: None)  # which comes after them
    assert ended == [outcome.Value(None)] * 2
    assert notes(writer) == {"a": "1", "b": "1", "c": "1"}


async def test_closing_tells_of_what_was_submitted(engine: Engine) -> None:
    """Before it is done: nobody can be told once the run is over."""
    writer = Writer(engine, Statements(engine.dialect))
    committed: list[None] = []
    ended: list[outcome.Maybe[None]] = []
    for _ in range(3):
        writer.submit(lambda tx: tx.put_note("a", "1"), committed.append, ended.append)
    await writer.aclose()
    assert committed == [None] * 3
    assert ended == [outcome.Value(None)] * 3
    assert notes(writer) == {"a": "1"}
    with pytest.raises(StorageUnavailable, match="closed"):
        writer.submit(lambda tx: tx.put_note("b", "1"), committed.append, ended.append)
    assert writer.statistics().backlog == 0


# A failing environment


async def test_failing_commit_is_told_to_who_submitted(writer: Writer) -> None:
    """With a failure of its own each: whoever raises it does so with a traceback of his own."""
    committed: list[None] = []
    ended: list[outcome.Maybe[None]] = []

    def breaks(tx: Tx) -> None:
        Breakable.on_commit = sqlite3.OperationalError("disk I/O error")

    async with one_group(writer) as nursery:
        for name in "ab":
            writer.submit(
                lambda tx, n=name: tx.put_note(n, "1"),  # type: ignore[misc]
                committed.append,
                ended.append,
            )
        writer.submit(breaks, committed.append, ended.append)
        nursery.start_soon(refuse, writer, lambda tx: None, StorageUnavailable)
    Breakable.on_commit = None
    await writer.write(lambda tx: tx.put_note("c", "1"))
    found = [result.error for result in ended if isinstance(result, outcome.Error)]
    assert [(type(error), str(error)) for error in found] == [
        (StorageUnavailable, "disk I/O error")
    ] * 3
    assert len({id(error) for error in found}) == 3
    assert committed == []
    assert notes(writer) == {"c": "1"}


async def test_failing_commit_fails_its_group_and_no_other(writer: Writer) -> None:
    def breaks(tx: Tx) -> None:
        Breakable.on_commit = sqlite3.OperationalError("disk I/O error")

    async with one_group(writer) as nursery:
        for name in "ab":
            nursery.start_soon(
                refuse, writer, lambda tx, n=name: tx.put_note(n, "1"), StorageUnavailable
            )
        nursery.start_soon(refuse, writer, breaks, StorageUnavailable)
    assert not writer.statistics().healthy
    assert notes(writer) == {}
    Breakable.on_commit = None
    await writer.write(lambda tx: tx.put_note("c", "1"))
    assert writer.statistics().healthy
    assert notes(writer) == {"c": "1"}


async def test_connection_that_cannot_roll_back_is_replaced(writer: Writer) -> None:
    await writer.write(lambda tx: tx.put_note("a", "1"))
    assert Breakable.opened == 1
    Breakable.on_commit = sqlite3.OperationalError("disk I/O error")
    Breakable.on_rollback = sqlite3.OperationalError("disk I/O error")
    with pytest.raises(StorageUnavailable, match="disk I/O error"):
        await writer.write(lambda tx: tx.put_note("b", "1"))
    Breakable.on_commit = Breakable.on_rollback = None
    await writer.write(lambda tx: tx.put_note("c", "1"))
    assert Breakable.opened == 2
    assert notes(writer) == {"a": "1", "c": "1"}


async def test_commit_that_fails_half_way_through_a_group(writer: Writer) -> None:
    """What was committed alone by then stays so, and its callers learn it."""

    def spoils(tx: Tx) -> None:
        tx.put_note("spoils", "1")
        raise LookupError

    def breaks(tx: Tx) -> None:
        tx.put_note("breaks", "1")
        Breakable.on_commit = sqlite3.OperationalError("disk full")

    ran: list[str] = []
    async with one_group(writer) as nursery:
        nursery.start_soon(writer.write, lambda tx: tx.put_note("before", "1"))
        await wait_all_tasks_blocked()
        nursery.start_soon(refuse, writer, spoils, LookupError)
        await wait_all_tasks_blocked()
        nursery.start_soon(refuse, writer, breaks, StorageUnavailable)
        await wait_all_tasks_blocked()
        nursery.start_soon(refuse, writer, lambda tx: ran.append("after"), StorageUnavailable)
    assert notes(writer) == {"before": "1"}
    assert ran == []


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), MemoryError()])
async def test_thread_outlives_whatever_a_function_raises(
    writer: Writer, error: BaseException
) -> None:
    def function(tx: Tx) -> None:
        tx.put_note("a", "1")
        raise error

    with pytest.raises(type(error)):
        await writer.write(function)
    await writer.write(lambda tx: tx.put_note("b", "1"))
    assert notes(writer) == {"b": "1"}


async def test_thread_outlives_a_bug_of_its_own(writer: Writer) -> None:
    Breakable.on_commit = RuntimeError("nobody thought of this")
    with (
        structlog.testing.capture_logs() as logs,
        pytest.raises(StorageUnavailable, match="nobody thought"),
    ):
        await writer.write(lambda tx: tx.put_note("a", "1"))
    assert logs[0]["event"] == "the storage writer met a bug"
    Breakable.reset()
    await writer.write(lambda tx: tx.put_note("b", "1"))
    assert notes(writer) == {"b": "1"}
