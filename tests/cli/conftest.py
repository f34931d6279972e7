"""The command line as people meet it: a process, in a directory and a home of its own."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from primeflowd.testing.daemon_process import DaemonProcess
from tests.cli.api_commands import Desk

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def private_environment(directory: Path) -> dict[str, str]:
    """Of commands in `directory`: nothing of this machine's own state or keys."""
    ours = {"PRIMEFLOWD_MASTER_KEY", "CREDENTIALS_DIRECTORY", "STATE_DIRECTORY"}
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return kept | {"XDG_STATE_HOME": str(directory / "state")}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Of the commands of a test."""
    return private_environment(tmp_path)


@pytest.fixture
def primeflowd(tmp_path: Path, environment: dict[str, str]) -> Run:
    """Run `primeflowd` with these words in `tmp_path`, to its end."""

    def run(*words: str, env: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", "primeflowd", *words],
            cwd=tmp_path,
            env=environment | (env or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """Somebody at a terminal, beside a daemon that all tests of commands share."""
    with DaemonProcess(tmp_path_factory.mktemp("daemon")) as daemon:
        key = daemon.create_key("acme")
        with daemon.client(key) as client:
            yield Desk(daemon.url, key, client, daemon.create_key("*"))


@pytest.fixture(scope="session")
def operator(desk: Desk) -> Desk:
    """Likewise, with an operator key."""
    return replace(desk, key=desk.operator_key)
