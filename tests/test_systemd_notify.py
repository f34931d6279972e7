"""Section 8: what a real daemon tells systemd, from its start to its end."""

import resource
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from primeflowd.config import Config
from primeflowd.daemon import CLOSE_WITHIN
from primeflowd.testing.daemon_process import DaemonProcess, eventually
from primeflowd.testing.receiver_process import ReceiverProcess
from tests.distributions import Distributions
from tests.systemd import NotifySocket

WATCHDOG = 2.0
"""Seconds, for tests: fed each second."""

MISHAPS = """
import pathlib
import time
from contextlib import asynccontextmanager

import trio

from primeflowd.builtin.sqlite import open_sqlite

here = pathlib.Path({directory!r})

@hookimpl
def open_storage(config, node_id):
    return opened(node_id) if config.storage.url == "mishaps://" else None

@asynccontextmanager
async def opened(node_id):
    while node_id is not None and (here / "wait").exists():
        (here / "waits").touch()
        await trio.sleep(0.01)
    async with open_sqlite(here / "a.db", node_id) as storage, trio.open_nursery() as nursery:
        if node_id is not None:
            nursery.start_soon(watch, storage)
        yield storage
        nursery.cancel_scope.cancel()

async def watch(storage):
    while True:
        await trio.sleep(0.01)
        if (here / "hang-the-loop").exists():
            time.sleep(600)
        if (here / "hang-the-writer").exists():
            await storage.write(lambda tx: time.sleep(600))
"""


@pytest.fixture
def notify(tmp_path: Path) -> Iterator[NotifySocket]:
    with NotifySocket(str(tmp_path / "notify")) as socket:
        yield socket


@pytest.fixture
def mishaps(tmp_path: Path, notify: NotifySocket) -> DaemonProcess:
    """A daemon, not started, to which things happen when a file of their name appears beside its
    config: its storage is a real one."""
    directory = tmp_path / "state"
    site = Distributions(tmp_path / "site")
    site.install("mishaps", MISHAPS.format(directory=str(directory)))
    return DaemonProcess(
        directory,
        '[storage]\nurl = "mishaps://"\n[plugins]\nenable = ["mishaps"]\n',
        environment(notify) | {"PYTHONPATH": str(site.directory)},
    )


def environment(notify: NotifySocket) -> dict[str, str]:
    return {"NOTIFY_SOCKET": notify.name, "WATCHDOG_USEC": str(round(WATCHDOG * 1e6))}


def beats(messages: list[dict[str, str]]) -> int:
    return sum("WATCHDOG" in one for one in messages)


def test_from_ready_to_stopping(tmp_path: Path, notify: NotifySocket) -> None:
    """8: READY once, STATUS with backlog and rate, STOPPING at SIGTERM, nothing after the end."""
    with ReceiverProcess(tmp_path / "arrivals", [{"delay": 60}]) as receiver:
        daemon = DaemonProcess(
            tmp_path / "state", '[drain]\ndeadline = "1s"\n', environment(notify)
        )
        key = daemon.create_key()
        assert notify.receive() == []
        with daemon:
            assert notify.wait_for("READY") == {
                "READY": "1",
                "STATUS": "ready: 0 held, 0 due, 0 sending",
            }
            with daemon.client(key) as client:
                batch = {"status": "succeeded", "callback_url": "http://10.0.0.1/refused"}
                client.post("/v1/batches/bulk", json={"batches": [batch] * 30}).raise_for_status()
                eventually(
                    lambda: not notify.wait_for("STATUS")["STATUS"].endswith(" 0.0 attempts/s")
                )
                batch["callback_url"] = receiver.url
                client.post("/v1/batches", json=batch).raise_for_status()
            eventually(
                lambda: (
                    notify.wait_for("STATUS")["STATUS"]
                    == "ready: 1 held, 0 due, 1 sending, 0.0 attempts/s"
                )
            )
            assert daemon.terminate() == 0
    last = notify.receive()
    [stopping] = [one for one in last if "STOPPING" in one]
    assert stopping["STOPPING"] == "1"
    deadline = 1.0
    assert int(stopping["EXTEND_TIMEOUT_USEC"]) == (deadline + CLOSE_WITHIN) * 1e6
    assert sum("READY" in one for one in notify.messages) == 1


def test_watchdog_is_fed_through_a_drain(tmp_path: Path, notify: NotifySocket) -> None:
    """8: a long drain is no hang, though the scheduler has stopped."""
    with ReceiverProcess(tmp_path / "arrivals", [{"hang": True}]) as receiver:
        daemon = DaemonProcess(
            tmp_path / "state", '[drain]\ndeadline = "60s"\n', environment(notify)
        )
        key = daemon.create_key()
        with daemon:
            with daemon.client(key) as client:
                client.post(
                    "/v1/batches", json={"status": "succeeded", "callback_url": receiver.url}
                ).raise_for_status()
            eventually(receiver.arrivals)
            daemon.process.send_signal(signal.SIGTERM)
            notify.wait_for("STOPPING")
            notify.listen_for(1.5 * WATCHDOG)
            draining = notify.listen_for(2 * WATCHDOG)
            assert beats(draining) >= 2
            statuses = [one["STATUS"] for one in draining if "STATUS" in one]
            assert statuses[-1] == "draining: 1 held, 0 due, 1 sending, 0.0 attempts/s"
            assert daemon.terminate() == 0


def test_not_ready_before_it_is(mishaps: DaemonProcess, notify: NotifySocket) -> None:
    """8: not when the process runs, nor when it has a storage to open: when it serves."""
    mishaps.create_key()
    hold = mishaps.directory / "wait"
    hold.touch()
    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(mishaps.start)
        eventually(lambda: mishaps.events("starting"))
        assert notify.listen_for(2) == []
        hold.unlink()
        assert notify.wait_for("READY")
        started.result()
        assert mishaps.terminate() == 0


def test_writer_that_hangs_is_noticed(mishaps: DaemonProcess, notify: NotifySocket) -> None:
    """8: no 5xx would tell, since nothing is answered; the rest of the daemon goes on."""
    with mishaps:
        assert notify.wait_for("WATCHDOG") == {"WATCHDOG": "1"}
        (mishaps.directory / "hang-the-writer").touch()
        notify.listen_for(2 * WATCHDOG)
        silence = notify.listen_for(2 * WATCHDOG)
        assert beats(silence) == 0
        assert any("STATUS" in one for one in silence)
        assert httpx.get(f"{mishaps.url}/healthz").status_code == 200
        # What systemd does next; the journal then says where it hung.
        mishaps.process.send_signal(signal.SIGABRT)
        assert mishaps.wait(20) == -signal.SIGABRT
    trace = [line["text"] for line in mishaps.events("text")]
    assert any("in <lambda>" in line for line in trace)


def test_event_loop_that_hangs_is_noticed(mishaps: DaemonProcess, notify: NotifySocket) -> None:
    with mishaps:
        notify.wait_for("WATCHDOG")
        (mishaps.directory / "hang-the-loop").touch()
        notify.listen_for(WATCHDOG)
        assert notify.listen_for(2 * WATCHDOG) == []
        mishaps.kill()


def test_storage_that_fails_does_not_trip_the_watchdog(
    tmp_path: Path, notify: NotifySocket
) -> None:
    """8: a full disk is not mended by a restart. Readiness stays red all the while."""
    daemon = DaemonProcess(tmp_path / "state", "", environment(notify))
    daemon.create_key()
    with daemon:
        notify.wait_for("WATCHDOG")
        resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        eventually(lambda: httpx.get(f"{daemon.url}/readyz").status_code == 503)
        outage = notify.listen_for(3 * WATCHDOG)
        assert beats(outage) >= 2
        statuses = [one["STATUS"] for one in outage if "STATUS" in one]
        assert all(one.startswith("storage is unavailable: ") for one in statuses[1:])
        assert httpx.get(f"{daemon.url}/readyz").status_code == 503
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(daemon.process.pid, resource.RLIMIT_FSIZE, unlimited)
        eventually(lambda: httpx.get(f"{daemon.url}/readyz").status_code == 200)
        assert daemon.terminate() == 0


def test_closing_takes_no_longer_than_systemd_waits() -> None:
    """8: the unit waits for the drain deadline that is shipped, and for closing."""
    unit = (Path(__file__).parent.parent / "systemd" / "primeflowd.service").read_text()
    [line] = [one for one in unit.splitlines() if one.startswith("TimeoutStopSec=")]
    needed = Config().drain.deadline.seconds + CLOSE_WITHIN
    assert int(line.removeprefix("TimeoutStopSec=")) > needed


def test_reload_that_comes_early_waits(mishaps: DaemonProcess, notify: NotifySocket) -> None:
    """8: SIGHUP ends no daemon that is still starting, and is not forgotten."""
    mishaps.create_key()
    hold = mishaps.directory / "wait"
    hold.touch()
    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(mishaps.start)
        eventually((mishaps.directory / "waits").exists)
        mishaps.config.write_text(mishaps.config.read_text() + '[drain]\ndeadline = "1s"\n')
        mishaps.process.send_signal(signal.SIGHUP)
        assert notify.listen_for(1) == []
        hold.unlink()
        started.result()
        [event] = eventually(lambda: mishaps.events("reloaded"))
        assert event["changed"] == ["drain.deadline"]
        kinds = [next(iter(one)) for one in (*notify.messages, *notify.receive())]
        assert [kind for kind in kinds if kind in ("READY", "RELOADING")][:3] == [
            "READY",
            "RELOADING",
            "READY",
        ]
        assert mishaps.terminate() == 0
