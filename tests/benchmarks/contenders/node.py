"""One primeflowd daemon, started and stopped; its log goes to a file, as it would to a journal."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from tests.benchmarks.contenders.contender import Failed
from tests.benchmarks.machine import Cores, pinned

READY_WITHIN: Final = 120.0


@dataclass
class Node:
    """A daemon: its state in `directory`, and, as several may share one, a name of its own.

    `environment` is added to ours.
    """

    directory: Path
    name: str
    tree: Path
    cores: Cores
    settings: str = ""
    port: int = 0
    key: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.log = self.directory / f"{self.name}.log"
        self._config = self.directory / f"{self.name}.toml"
        self.configure(self.settings)

    def configure(self, settings: str) -> None:
        """Takes effect at the next start."""
        self._config.write_text(_config(self.directory, settings))

    def command(self, *words: str) -> str:
        """What `primeflowd WORDS` prints."""
        done = subprocess.run(
            self._argv(*words), cwd=self.tree, env={**os.environ, **self.environment},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise Failed(f"primeflowd {' '.join(words)} failed:\n{done.stdout}{done.stderr}")
        return done.stdout.strip()

    def start(self) -> float:
        """Start it; seconds until it served."""
        began = time.perf_counter()
        with self.log.open("wb") as log, pinned(self.cores.server):
            self._process = subprocess.Popen(
                self._argv("run"), cwd=self.tree, env={**os.environ, **self.environment}, stderr=log
            )
        while not (ready := re.search(r"daemon_ready.*:(\d+)/?\"?\s", self.log.read_text())):
            if self._process.poll() is not None or time.perf_counter() > began + READY_WITHIN:
                raise Failed(f"primeflowd did not start:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.01)
        self.port = int(ready[1])
        return time.perf_counter() - began

    def stop(self) -> None:
        """SIGTERM, and wait."""
        self._process.terminate()
        if self._process.wait(60) != 0:
            raise Failed(
                f"primeflowd ended with {self._process.returncode}:\n{self.log.read_text()[-4000:]}"
            )

    def stop_or_kill(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """For an ExitStack: stop it in order, unless something went wrong already."""
        if error is None:
            self.stop()
        else:
            self._process.kill()
            self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, path: str, body: object = None) -> Any:
        """The answer of the API; POST where there is a body."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def _argv(self, *words: str) -> list[str]:
        return [sys.executable, "-m", "primeflowd", *words, "--config", str(self._config)]


def _config(directory: Path, settings: str) -> str:
    text = f'state_directory = "{directory}"\n'
    if "[api]" not in settings:
        settings += "[api]\n"
    settings = settings.replace("[api]\n", '[api]\nbind = "127.0.0.1:0"\n')
    return f'{text}{settings}\n[delivery.egress]\nallow = ["127.0.0.0/8"]\n'
