"""Pytest fixtures for tests of plugins against the real daemon.

In `conftest.py`: `pytest_plugins = ["primeflowd.testing.fixtures"]`. Then, in a test module::

    @pytest.fixture
    def daemon_settings() -> str:
        return '''
            [plugins]
            enable = ["mine"]

            [delivery.default_policy]
            delays = ["100ms"]
        '''

    @pytest.mark.parametrize("receiver_script", [[{"status": 503}, {}]])
    def test_503_is_tried_again(daemon: DaemonProcess, receiver: ReceiverProcess) -> None:
        with daemon.client(daemon.create_key()) as client:
            batch = {"status": "succeeded", "callback_url": receiver.url}
            assert client.post("/v1/batches", json=batch).status_code == 201
            eventually(lambda: len(receiver.arrivals()) == 2)
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from primeflowd.testing.daemon_process import DaemonProcess
from primeflowd.testing.receiver_process import ReceiverProcess


@pytest.fixture
def daemon_settings() -> str:
    """TOML text for the daemon's configuration; see DaemonProcess. To be overridden."""
    return ""


@pytest.fixture
def daemon(tmp_path: Path, daemon_settings: str) -> Iterator[DaemonProcess]:
    """A daemon that serves, with a storage of its own; killed after the test."""
    with DaemonProcess(tmp_path / "primeflowd", daemon_settings) as process:
        yield process


@pytest.fixture
def receiver_script() -> Sequence[Mapping[str, Any]]:
    """How the receiver answers, request by request; see ReceiverProcess. To be overridden."""
    return [{}]


@pytest.fixture
def receiver(
    tmp_path: Path, receiver_script: Sequence[Mapping[str, Any]]
) -> Iterator[ReceiverProcess]:
    """A receiver on a port of its own, that the daemon may call."""
    with ReceiverProcess(tmp_path / "receiver.log", receiver_script) as process:
        yield process
