"""`run`: what it says at start, and its exit codes."""

import json
import socket
from pathlib import Path

from primeflowd.testing.daemon_process import DaemonProcess
from tests.cli.conftest import Run
from tests.distributions import Distributions


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


def test_second_daemon_on_one_storage(tmp_path: Path) -> None:
    """They share it: what one accepts, the other shows."""
    with DaemonProcess(tmp_path) as first, DaemonProcess(tmp_path) as second:
        key = first.create_key()
        with first.client(key) as client:
            batch = client.post("/v1/batches", json={}).json()
        with second.client(key) as client:
            assert client.get(f"/v1/batches/{batch['id']}").json() == batch
        assert first.terminate() == 0
        assert second.terminate() == 0


def test_second_daemon_on_one_port(primeflowd: Run, tmp_path: Path) -> None:
    """Not by accident: they would take requests from each other."""
    with DaemonProcess(tmp_path / "first") as daemon:
        address = daemon.url.removeprefix("http://")
        (tmp_path / "primeflowd.toml").write_text(f'[api]\nbind = "{address}"\n')
        done = primeflowd("run", env={"STATE_DIRECTORY": str(tmp_path / "first")})
        assert done.returncode == 1
        last = done.stderr.splitlines()[-1]
        assert last == f"primeflowd: error: cannot listen on {address}: Address already in use"
        assert daemon.terminate() == 0


def test_bug_is_logged_on_one_line_and_exits_with_70(primeflowd: Run, tmp_path: Path) -> None:
    """Here a storage plugin's, which breaks where nobody expects it to."""
    site = Distributions(tmp_path / "site")
    site.install(
        "broken",
        """
        from contextlib import asynccontextmanager

        @asynccontextmanager
        async def broken():
            raise KeyError("unexpected")
            yield

        @hookimpl
        def open_storage(config, node_id):
            return broken() if config.storage.url == "broken://" else None
        """,
    )
    (tmp_path / "primeflowd.toml").write_text(
        '[storage]\nurl = "broken://"\n[plugins]\nenable = ["broken"]\n[log]\nformat = "json"\n'
    )
    done = primeflowd("run", env={"PYTHONPATH": str(site.directory)})
    assert done.returncode == 70
    crash = json.loads(done.stderr.splitlines()[-1])
    assert (crash["event"], crash["level"]) == ("crashed", "critical")
    assert "KeyError: 'unexpected'" in crash["exception"]


def test_plugins_are_configured_once_and_idle_ones_are_named(tmp_path: Path) -> None:
    """A plugin that has settings but is not enabled is forgotten, perhaps."""
    site = Distributions(tmp_path / "site")
    calls = tmp_path / "calls"
    source = f"""
        @hookimpl
        def configure(settings):
            with open({str(calls)!r}, "a") as file:
                print(settings, file=file)

        @hookimpl
        def attempts_recorded(): ...
        """
    site.install("acme", source)
    site.install("other", source)
    settings = """
        [plugins]
        enable = ["acme"]
        [plugins.acme]
        depth = 3
        [plugins.other]
        depth = 4
    """
    with DaemonProcess(tmp_path / "x", settings, {"PYTHONPATH": str(site.directory)}) as daemon:
        assert daemon.terminate() == 0
    assert calls.read_text() == "{'depth': 3}\n"
    assert [line["plugin"] for line in daemon.events("plugin_not_enabled")] == ["other"]
