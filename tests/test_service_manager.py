"""What systemd passed on: read once, removed, and refused where it makes no sense."""

import os
import socket
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs

from primeflowd.errors import OperatorError
from primeflowd.service_manager import FIRST_DESCRIPTOR, ServiceManager, take

ME = str(os.getpid())


async def test_without_systemd_nobody_is_told() -> None:
    """Section 8: nothing happens, and nothing is logged."""
    environment = {"HOME": "/root"}
    manager = take(environment)
    assert manager == ServiceManager("", None, None)
    with capture_logs() as logs:
        await manager.tell("READY=1")
    assert (environment, logs) == ({"HOME": "/root"}, [])


def test_variables_are_removed() -> None:
    """No child process takes them for its own, whether they are ours or another's."""
    for pid in (ME, "1"):
        environment = {
            "NOTIFY_SOCKET": "@x",
            "WATCHDOG_USEC": "30000000",
            "WATCHDOG_PID": pid,
            "LISTEN_FDS": "0",
            "LISTEN_PID": pid,
            "LISTEN_FDNAMES": "",
        }
        take(environment)
        assert environment == {}


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": ME}, 30.0),
        ({"WATCHDOG_USEC": "2500000"}, 2.5),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_PID": ME}, None),
    ],
)
def test_watchdog_of_this_process(variables: dict[str, str], seconds: float | None) -> None:
    assert take(variables).watchdog == seconds


def test_sockets_of_another_process_are_not_touched() -> None:
    """A shell between systemd and us, say: the descriptor is something else here."""
    assert take({"LISTEN_FDS": "1", "LISTEN_PID": "1"}).listener is None
    assert take({"LISTEN_FDS": "1"}).listener is None
    assert take({"LISTEN_PID": ME}).listener is None


def test_socket_that_is_passed_stays_in_this_process() -> None:
    was = os.get_inheritable(FIRST_DESCRIPTOR)
    try:
        os.set_inheritable(FIRST_DESCRIPTOR, True)
        assert take({"LISTEN_FDS": "1", "LISTEN_PID": ME}).listener == FIRST_DESCRIPTOR
        assert not os.get_inheritable(FIRST_DESCRIPTOR)
    finally:
        os.set_inheritable(FIRST_DESCRIPTOR, was)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WATCHDOG_USEC": "soon"}, "WATCHDOG_USEC: expected a whole number, not 'soon'"),
        ({"WATCHDOG_USEC": "-1"}, "WATCHDOG_USEC: expected a whole number, not '-1'"),
        ({"LISTEN_FDS": "²"}, "LISTEN_FDS: expected a whole number, not '²'"),
        ({"NOTIFY_SOCKET": "vsock:2"}, "NOTIFY_SOCKET: expected a path or an abstract name, not"),
        (
            {"LISTEN_FDS": "2", "LISTEN_PID": ME, "LISTEN_FDNAMES": "a:b"},
            "the service manager passed 2 sockets (a:b), and the API listens on one",
        ),
    ],
)
def test_nonsense_is_refused(variables: dict[str, str], message: str) -> None:
    with pytest.raises(OperatorError) as caught:
        take(variables)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("abstract", [False, True])
async def test_a_message_is_one_datagram(abstract: bool, tmp_path: Path) -> None:
    name = f"@primeflowd-test-{ME}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other_end:
        other_end.bind("\0" + name[1:] if abstract else name)
        other_end.settimeout(5)
        await take({"NOTIFY_SOCKET": name}).tell("READY=1", "STATUS=µ")
        assert other_end.recv(100) == "READY=1\nSTATUS=µ".encode()


async def test_a_manager_that_is_gone_is_not_waited_for(tmp_path: Path) -> None:
    manager = take({"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    with capture_logs() as logs:
        await manager.tell("READY=1")
    [entry] = logs
    assert (entry["event"], entry["message"]) == ("service_manager_not_told", "READY=1")


async def test_a_manager_that_does_not_read_is_not_waited_for_long(tmp_path: Path) -> None:
    """Its queue is full: the daemon goes on all the same."""
    path = str(tmp_path / "notify")
    manager = ServiceManager(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind(path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filler:
            filler.setblocking(False)
            filler.connect(path)
            with suppress(BlockingIOError):
                while True:
                    filler.send(b"x")
        with capture_logs() as logs:
            with trio.fail_after(10):
                await manager.tell("WATCHDOG=1")
        assert [(one["event"], one["error"]) for one in logs] == [
            ("service_manager_not_told", "timeout")
        ]
