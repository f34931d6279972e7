"""Section 8: a daemon on a socket that systemd keeps: no connection is refused across a restart."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from primeflowd.api.listener import INHERITED, listen, url_of
from primeflowd.errors import OperatorError
from primeflowd.testing.daemon_process import DaemonProcess, eventually
from primeflowd.testing.receiver_process import ReceiverProcess
from tests.systemd import NotifySocket, command, start_with_socket

SERVERS = pytest.mark.parametrize("server", ["hypercorn", "lean"])


@pytest.fixture
def port() -> Iterator[socket.socket]:
    """The socket that systemd would hold, and passes on."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        yield listener


@pytest.fixture
def notify(tmp_path: Path) -> Iterator[NotifySocket]:
    with NotifySocket(str(tmp_path / "notify")) as other_end:
        yield other_end


def daemon_on(tmp_path: Path, server: str) -> DaemonProcess:
    """What has the config; it is not started by its own method. `bind` can be listened on by
    nobody, and is not used."""
    return DaemonProcess(tmp_path / "state", f'[api]\nbind = "192.0.2.1:1"\nserver = "{server}"\n')


def has_open(pid: int, sock: socket.socket) -> bool:
    name = Path(f"/proc/self/fd/{sock.fileno()}").readlink()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed since
            if path.readlink() == name:
                return True
    return False


class Clients:
    """Four clients that ask again and again, each time over a new connection."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(4)]
        self.met: Counter[str] = Counter()

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """While somebody answers: else those who wait go on waiting."""
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def have_met(self, successes: int) -> bool:
        return self.met["200"] >= successes

    def _ask(self) -> None:
        while not self._ended.is_set():
            try:
                answer = httpx.get(f"{self._url}/healthz", timeout=60)
                self.met[str(answer.status_code)] += 1
            except httpx.HTTPError as error:
                self.met[type(error).__name__] += 1


def drained(process: "subprocess.Popen[str]") -> list[dict[str, Any]]:
    """What it has logged by its end, after SIGTERM."""
    process.terminate()
    _, log = process.communicate(timeout=30)
    assert process.returncode == 0, log
    return [json.loads(line) for line in log.splitlines()]


@SERVERS
def test_restart_on_a_socket_that_stays(
    server: str, tmp_path: Path, port: socket.socket, notify: NotifySocket
) -> None:
    """8: none of many connections is refused while daemons come and go."""
    daemon = daemon_on(tmp_path, server)
    url = url_of(port)
    clients = Clients(url)
    for run in ("first", "second", "last"):
        with start_with_socket(daemon.config, port, {"NOTIFY_SOCKET": notify.name}) as process:
            notify.wait_for("READY")
            if run == "first":
                clients.start()
            enough = clients.met["200"] + 20
            eventually(partial(clients.have_met, enough))
            if run == "last":
                clients.stop()
            ready = [line for line in drained(process) if line["event"] == "daemon_ready"]
            assert ready[0]["url"] == url
    assert clients.met["ConnectError"] == 0
    # One that was accepted in the last moment, and had not asked yet.
    assert clients.met.total() - clients.met["200"] <= 4 * 3


@SERVERS
def test_connection_of_before_the_start_is_answered(
    server: str, tmp_path: Path, port: socket.socket, notify: NotifySocket
) -> None:
    """8: also what was asked while no daemon ran; and the socket is not shut down in the end."""
    daemon = daemon_on(tmp_path, server)
    for _ in range(2):
        with socket.create_connection(port.getsockname(), timeout=30) as early:
            early.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            with start_with_socket(daemon.config, port, {"NOTIFY_SOCKET": notify.name}) as process:
                assert early.recv(1000).startswith(b"HTTP/1.1 200 ")
                notify.wait_for("READY")
                drained(process)


@SERVERS
def test_who_connects_during_a_drain_waits_for_the_next(
    server: str, tmp_path: Path, port: socket.socket, notify: NotifySocket
) -> None:
    """8: no 503 from the one that goes, however long its last attempts take."""
    daemon = daemon_on(tmp_path, server)
    key = daemon.create_key()
    daemon.url = url_of(port)
    told = {"NOTIFY_SOCKET": notify.name}
    with ReceiverProcess(tmp_path / "arrivals", [{"delay": 5}]) as receiver:
        batch = {"status": "succeeded", "callback_url": receiver.url}
        with start_with_socket(daemon.config, port, told) as process:
            with daemon.client(key) as client:
                client.post("/v1/batches", json=batch).raise_for_status()
            eventually(receiver.arrivals)
            process.terminate()
            notify.wait_for("STOPPING")
            eventually(lambda: not has_open(process.pid, port))
            assert process.poll() is None, "it had no time to drain"
            with ThreadPoolExecutor(1) as pool, daemon.client(key) as client:
                answer = pool.submit(client.post, "/v1/batches", json=batch)
                drained(process)
                assert not answer.done()
                with start_with_socket(daemon.config, port, told) as following:
                    assert answer.result(30).status_code == 201
                    drained(following)


@pytest.mark.skipif(
    shutil.which("systemd-socket-activate") is None, reason="systemd is not installed"
)
@SERVERS
def test_first_connection_starts_it(server: str, tmp_path: Path) -> None:
    """8: as primeflowd.socket does, with systemd's own tool."""
    daemon = daemon_on(tmp_path, server)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with subprocess.Popen(
        ["systemd-socket-activate", "-l", address, *command(daemon.config)],
        stderr=subprocess.DEVNULL,
    ) as process:

        def answered() -> bool:
            try:
                return httpx.get(f"http://{address}/healthz", timeout=30).status_code == 200
            except httpx.ConnectError:  # the tool does not listen yet
                return False

        assert eventually(answered)
        process.terminate()
        assert process.wait(30) == 0


async def test_socket_is_taken_over_as_it_is() -> None:
    with socket.create_server(("127.0.0.1", 0)) as passed:
        with await listen(INHERITED, os.dup(passed.fileno())) as taken:
            assert url_of(taken) == url_of(passed)
            assert not taken.getblocking()
        with socket.create_connection(passed.getsockname(), timeout=5):
            passed.accept()[0].close()


@pytest.mark.parametrize("kind", ["not listening", "datagram", "unix", "file"])
async def test_what_is_no_listening_tcp_socket_is_refused(kind: str, tmp_path: Path) -> None:
    """One line says so, and the descriptor is not left open."""
    if kind == "file":
        descriptor = os.open(tmp_path, os.O_RDONLY)
        message = "the descriptor passed is not a socket: Socket operation on non-socket"
    else:
        family = socket.AF_UNIX if kind == "unix" else socket.AF_INET
        made = socket.socket(
            family, socket.SOCK_DGRAM if kind == "datagram" else socket.SOCK_STREAM
        )
        if kind == "unix":
            made.bind(str(tmp_path / "socket"))
            made.listen()
        descriptor = made.detach()
        message = "the socket passed does not listen for TCP; ListenStream=PORT makes one"
    with pytest.raises(OperatorError) as caught:
        await listen(INHERITED, descriptor)
    assert str(caught.value) == message
    if kind == "file":
        os.close(descriptor)
    else:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


def test_refusal_is_one_line_for_the_operator(tmp_path: Path) -> None:
    daemon = daemon_on(tmp_path, "lean")
    with socket.socket() as silent, start_with_socket(daemon.config, silent, {}) as process:
        _, log = process.communicate(timeout=30)
    assert process.returncode == 1
    assert log.splitlines()[-1] == (
        "primeflowd: error: the socket passed does not listen for TCP; ListenStream=PORT makes one"
    )
