"""What stands in for systemd: a socket that is notified, and a parent that passes a port on."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

from primeflowd.testing.daemon_process import eventually

# Only the process itself knows its number in time, and it keeps it through exec.
_PASS_ON = """
import os, sys
passed = int(sys.argv[1])
if passed != 3:
    os.dup2(passed, 3)
    os.close(passed)  # else the daemon has it twice, and never lets go of it
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="primeflowd.socket")
os.execv(sys.argv[2], sys.argv[2:])
"""


class NotifySocket:
    """A datagram socket as $NOTIFY_SOCKET names it; abstract if `name` starts with @."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + name[1:] if name.startswith("@") else name)
        self._socket.setblocking(False)
        self.messages: list[dict[str, str]] = []

    def receive(self) -> list[dict[str, str]]:
        """What has come since the last call, a message each."""
        new: list[dict[str, str]] = []
        while True:
            try:
                text = self._socket.recv(4096).decode()
            except BlockingIOError:
                self.messages += new
                return new
            new.append(dict(line.split("=", 1) for line in text.splitlines()))

    def wait_for(self, key: str, seconds: float = 20.0) -> dict[str, str]:
        """The first message with `key` among those still to be received."""
        return eventually(
            lambda: next((one for one in self.receive() if key in one), None), seconds
        )

    def listen_for(self, seconds: float) -> list[dict[str, str]]:
        """What comes within this time, and nothing of before."""
        self.receive()
        time.sleep(seconds)
        return self.receive()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._socket.close()


def start_with_socket(
    config: Path, listener: socket.socket, environment: dict[str, str]
) -> "subprocess.Popen[str]":
    """A daemon that is passed `listener` as descriptor 3."""
    return subprocess.Popen(
        [sys.executable, "-c", _PASS_ON, str(listener.fileno()), *command(config)],
        env={**os.environ, **environment},
        pass_fds=[listener.fileno()],
        stderr=subprocess.PIPE,
        text=True,
    )


def command(config: Path) -> list[str]:
    return [sys.executable, "-m", "primeflowd", "run", "--config", str(config)]
