"""`run`: what it says at start, and its exit codes."""

import json
import socket
from pathlib import Path

from primeflowd.testing.daemon_process import DaemonProcess
from tests.cli.conftest import Run


def test_says_which_config_it_uses_and_how_to_make_a_key(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path) as daemon:
        [starting] = daemon.events("starting")
        assert starting["config"] == str(daemon.config)
        [hint] = daemon.events("no_api_key")
        assert hint["hint"] == f"primeflowd keys create --org ORG --config {daemon.config}"
        assert daemon.terminate() == 0
        daemon.create_key()
        daemon.start()
        assert len(daemon.events("no_api_key")) == 1
        assert daemon.terminate() == 0


def test_warns_of_a_master_key_that_others_may_read(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path) as daemon:
        assert daemon.events("master_key_readable_by_others") == []
        assert daemon.terminate() == 0
        (tmp_path / "master.key").chmod(0o640)
        daemon.start()
        [warning] = daemon.events("master_key_readable_by_others")
        assert warning["level"] == "warning"
        assert warning["path"] == str(tmp_path / "master.key")
        assert daemon.terminate() == 0


def test_address_in_use_is_the_operators_to_mend(primeflowd: Run, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (tmp_path / "primeflowd.toml").write_text(
            f'[api]\nbind = "127.0.0.1:{port}"\n[log]\nformat = "json"\n'
        )
        done = primeflowd("run")
    assert done.returncode == 1
    *log, last = done.stderr.splitlines()
    assert last.startswith("primeflowd: error: ")
    assert str(port) in last
    assert all(json.loads(line)["event"] for line in log)


def test_second_daemon_on_one_storage(primeflowd: Run, tmp_path: Path) -> None:
    with DaemonProcess(tmp_path / "first") as daemon:
        done = primeflowd("run", "--config", str(daemon.config))
        assert done.returncode == 1
        assert "in use by another primeflowd" in done.stderr.splitlines()[-1]
        assert daemon.terminate() == 0


def test_bug_is_logged_on_one_line_and_exits_with_70(primeflowd: Run, tmp_path: Path) -> None:
    """Here a storage plugin's, which breaks where nobody expects it to."""
    site = tmp_path / "site"
    (site / "broken-1.dist-info").mkdir(parents=True)
    (site / "broken-1.dist-info" / "METADATA").write_text("Name: broken\nVersion: 1\n")
    (site / "broken-1.dist-info" / "entry_points.txt").write_text("[primeflowd]\nbroken = broken\n")
    (site / "broken.py").write_text(
        "from contextlib import asynccontextmanager\n"
        "from primeflowd.hookspecs import hookimpl\n"
        "@asynccontextmanager\n"
        "async def broken():\n"
        "    raise KeyError('unexpected')\n"
        "    yield\n"
        "@hookimpl\n"
        "def open_storage(config, node_id):\n"
        "    return broken() if config.storage.url == 'broken://' else None\n"
    )
    (tmp_path / "primeflowd.toml").write_text(
        '[storage]\nurl = "broken://"\n[plugins]\nenable = ["broken"]\n[log]\nformat = "json"\n'
    )
    done = primeflowd("run", env={"PYTHONPATH": str(site)})
    assert done.returncode == 70
    crash = json.loads(done.stderr.splitlines()[-1])
    assert (crash["event"], crash["level"]) == ("crashed", "critical")
    assert "KeyError: 'unexpected'" in crash["exception"]
