"""A real primeflowd process for tests: started, asked, killed, drained, started again.

Blocking on purpose: a test of a process from outside needs no event loop. Everything it writes
lies in one directory; the same directory given again continues where the process before stopped.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import httpx

T = TypeVar("T")

_READY_WITHIN = 30.0


class DaemonProcess:
    """One daemon and the database in `directory`.

    Args:
        settings: TOML text, added to a config that binds a free port and allows loopback. It
            holds tables only, and no `[log]`: the log is read from here.
        environment: variables for the process on top of this one's.

    Attributes:
        log: the lines logged by all its runs so far, as objects.
        process: the present run.
    """

    def __init__(
        self, directory: Path, settings: str = "", environment: Mapping[str, str] | None = None
    ) -> None:
        self.directory = directory
        self.config = directory / "primeflowd.toml"
        self.log: list[dict[str, Any]] = []
        self.url = ""
        self._environment = {**os.environ, **(environment or {})}
        directory.mkdir(parents=True, exist_ok=True)
        self.configure(settings)

    def configure(self, settings: str) -> None:
        """Write the config file; takes effect at the next start, or on SIGHUP."""
        text = f'state_directory = "{self.directory}"\n'
        if "[api]" not in settings:
            text += '[api]\nbind = "127.0.0.1:0"\n'
        if "[delivery.egress]" not in settings:
            text += '[delivery.egress]\nallow = ["127.0.0.0/8", "::1/128"]\n'
        self.config.write_text(text + '[log]\nformat = "json"\n' + settings)

    def command(self, *words: str) -> str:
        """Run `primeflowd WORDS --config ...` beside the daemon; its standard output.

        Raises:
            subprocess.CalledProcessError: it did not exit with 0.
        """
        return subprocess.run(  # noqa: S603 - our own words
            [sys.executable, "-m", "primeflowd", *words, "--config", str(self.config)],
            check=True,
            capture_output=True,
            text=True,
            env=self._environment,
        ).stdout

    def create_key(self, org: str = "acme", *scopes: str) -> str:
        """A fresh API key."""
        words = [word for scope in scopes for word in ("--scope", scope)]
        return self.command("keys", "create", "--org", org, *words).strip()

    def client(self, key: str) -> httpx.Client:
        """An HTTP client with this key; the caller closes it."""
        return httpx.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {key}"}, timeout=30
        )

    def start(self) -> Self:
        """Start it and return once it serves.

        Raises:
            RuntimeError: it exited or was silent; the message holds its log.
        """
        self.process = subprocess.Popen(  # noqa: S603 - our own words
            [sys.executable, "-m", "primeflowd", "run", "--config", str(self.config)],
            stderr=subprocess.PIPE,
            text=True,
            env=self._environment,
        )
        ready = threading.Event()
        self._reader = threading.Thread(target=self._read, args=(self.process, ready), daemon=True)
        self._reader.start()
        if not ready.wait(_READY_WITHIN) or not self.url:
            self.kill()
            raise RuntimeError(f"primeflowd did not start: {self.log[-5:]}")
        return self

    def kill(self) -> None:
        """`kill -9`, and wait for the corpse."""
        self.process.kill()
        self._join()

    def terminate(self, timeout: float = 60.0) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.wait(timeout)

    def wait(self, timeout: float = 60.0) -> int:
        """Wait for its end; the exit code."""
        code = self.process.wait(timeout)
        self._join()
        return code

    def events(self, event: str) -> list[dict[str, Any]]:
        """The log lines of one kind."""
        return [line for line in self.log if line.get("event") == event]

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self._join()

    def _join(self) -> None:
        self.process.wait()
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()

    def _read(self, process: "subprocess.Popen[str]", ready: threading.Event) -> None:
        assert process.stderr is not None
        self.url = ""
        for line in process.stderr:
            try:
                entry = json.loads(line)
            except ValueError:
                entry = {"event": "text", "text": line.rstrip("\n")}
            self.log.append(entry)
            if entry.get("event") == "daemon_ready":
                self.url = entry["url"]
                ready.set()
        ready.set()


def eventually(condition: Callable[[], T | None], seconds: float = 20.0, every: float = 0.02) -> T:
    """The first true value of `condition()`.

    Polling is all that can be done to a process from outside.

    Raises:
        AssertionError: there was none within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"did not come true within {seconds:g} s")
        time.sleep(every)
    return value
