"""The heartbeat: what keeps the watchdog fed, and what does not. On Trio's clock."""

import math
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import outcome
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from primeflowd.builtin.memory import MemoryStorage, open_memory
from primeflowd.clock import TrioClock
from primeflowd.errors import StorageUnavailable
from primeflowd.heartbeat import STATUS_EVERY, Heartbeat, Witness
from primeflowd.hookspecs import Storage
from primeflowd.service_manager import ServiceManager
from primeflowd.sql.storage import open_sql_storage
from tests.sql.database import make_database, make_engine

LIMIT = 30.0


class Patient:
    """A heartbeat, a scheduler that asks storage each second, and who listens to both."""

    def __init__(self, directory: Path, watchdog: float | None) -> None:
        clock = TrioClock()
        self.storage = MemoryStorage(clock)
        self.leased = True
        self.scheduler_stuck = False
        self.attempts = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        path = str(directory / "notify")
        self._socket.bind(path)
        self.heartbeat = Heartbeat(
            ServiceManager(path, watchdog),
            self.storage,
            clock,
            self,
            status=lambda: "ready",
            attempts=lambda: self.attempts,
        )

    def holds(self) -> bool:
        return self.leased

    async def schedule(self) -> None:
        while True:
            await trio.sleep(1)
            if self.leased and not self.scheduler_stuck:
                try:
                    await self.heartbeat.scheduling.read(lambda tx: tx.note("x"))
                except StorageUnavailable:
                    continue

    async def watch(self, *, seconds: float) -> list[str]:
        """What the service manager is told within this time."""
        messages = []
        until = trio.current_time() + seconds
        while trio.current_time() < until:
            # No more than that fits into the queue of a socket.
            await trio.sleep(1)
            messages += self._received()
        return messages

    def _received(self) -> list[str]:
        messages = []
        while True:
            try:
                messages.append(self._socket.recv(1000).decode())
            except BlockingIOError:
                return messages

    async def beats(self, *, seconds: float) -> int:
        return (await self.watch(seconds=seconds)).count("WATCHDOG=1")

    def close(self) -> None:
        self._socket.close()


@asynccontextmanager
async def patient(directory: Path, watchdog: float | None = LIMIT) -> AsyncIterator[Patient]:
    async with trio.open_nursery() as nursery:
        patient = Patient(directory, watchdog)
        nursery.start_soon(patient.schedule)
        nursery.start_soon(patient.heartbeat.run)
        await wait_all_tasks_blocked()
        try:
            yield patient
        finally:
            patient.close()
        nursery.cancel_scope.cancel()


async def test_watchdog_is_fed_at_half_its_time(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with patient(tmp_path) as one:
        assert await one.beats(seconds=10 * LIMIT - 1) == 20


async def test_without_a_watchdog_nothing_is_written(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Status only."""
    async with patient(tmp_path, None) as one:
        messages = await one.watch(seconds=60)
        assert set(messages) == {"STATUS=ready, 0.0 attempts/s"}
        assert one.storage.statistics().commits == 0


@pytest.mark.parametrize("culprit", ["scheduler", "writer"])
async def test_what_hangs_is_noticed(
    culprit: str, tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Within twice the watchdog's time, of which the second half is systemd's to wait; and one
    that comes round again is forgiven."""
    async with patient(tmp_path) as one:
        assert await one.beats(seconds=LIMIT) > 0
        one.scheduler_stuck = culprit == "scheduler"
        if culprit == "writer":
            one.storage.hold()
        assert await one.beats(seconds=LIMIT + 1) > 0
        assert await one.beats(seconds=5 * LIMIT) == 0
        one.scheduler_stuck = False
        one.storage.resume()
        assert await one.beats(seconds=LIMIT) > 0


async def test_a_storage_that_fails_has_answered(tmp_path: Path, autojump_clock: MockClock) -> None:
    """An outage is not mended by a restart: it would only lose what is in memory."""
    async with patient(tmp_path) as one:
        one.storage.fail_with = StorageUnavailable("disk full")
        assert await one.beats(seconds=10 * LIMIT - 1) == 20


async def test_a_scheduler_without_a_lease_has_nothing_to_ask(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with patient(tmp_path) as one:
        one.leased = False
        assert await one.beats(seconds=10 * LIMIT - 1) == 20
        one.leased = True
        assert await one.beats(seconds=2 * LIMIT) == 4


async def test_a_scheduler_that_is_stopped_for_a_drain_is_not_missed(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with patient(tmp_path) as one:
        one.scheduler_stuck = one.heartbeat.draining = True
        assert await one.beats(seconds=10 * LIMIT - 1) == 20


async def test_a_full_disk_does_not_look_well_again(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    """Section 8: the beat changes something, since a transaction that changes nothing would
    succeed and turn /readyz green."""
    async with patient(tmp_path) as one:
        await trio.sleep(1)
        first = await one.storage.read(lambda tx: tx.note("last_heartbeat"))
        await trio.sleep(LIMIT)
        assert first not in (None, await one.storage.read(lambda tx: tx.note("last_heartbeat")))


async def test_status_tells_the_rate_since_the_last_one(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with patient(tmp_path, None) as one:
        one.attempts = 60
        messages = await one.watch(seconds=math.ceil(2 * STATUS_EVERY) + 1)
        assert messages == ["STATUS=ready, 20.0 attempts/s", "STATUS=ready, 0.0 attempts/s"]


async def test_a_witness_is_told_of_what_was_submitted(autojump_clock: MockClock) -> None:
    """When it ends, in whichever way; not when it is submitted."""
    async with open_memory() as storage:
        witness: Storage = Witness(storage)
        assert isinstance(witness, Witness)
        began = witness.answered_at
        committed: list[str] = []
        ended: list[outcome.Maybe[str]] = []
        answered: list[float] = []

        def on_end(result: outcome.Maybe[str]) -> None:
            ended.append(result)
            answered.append(witness.answered_at)

        for fails in (False, True):
            storage.hold()
            await trio.sleep(5)
            witness.submit(lambda tx: "done", committed.append, on_end)
            await trio.sleep(5)
            assert witness.answered_at == began
            storage.fail_with = StorageUnavailable("disk full") if fails else None
            storage.resume()
            assert witness.answered_at == began + 10
            began += 10
        assert committed == ["done"]
        value, error = ended
        assert value == outcome.Value("done")
        assert isinstance(error, outcome.Error)
        # He knows of it before whoever asked.
        assert answered == [began - 10, began]


async def test_a_storage_that_takes_nothing_has_answered(
    tmp_path: Path, mock_clock: MockClock
) -> None:
    """As one that fails has."""
    path = tmp_path / "storage.db"
    async with open_sql_storage(make_database(path), make_engine(path)) as storage:
        witness = Witness(storage)
    mock_clock.jump(10)
    with pytest.raises(StorageUnavailable, match="closed"):
        witness.submit(lambda tx: None, lambda _: None, lambda _: None)
    assert witness.answered_at == trio.current_time() == 10
