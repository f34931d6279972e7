"""`plugins`: what there is, what is enabled, and what is wrong with it."""

import json
from pathlib import Path
from typing import Any

import pytest

from primeflowd import __version__
from primeflowd.plugin_loading import BUILTINS
from tests.cli.conftest import Run
from tests.distributions import Distributions

CONFIGURABLE = """
from primeflowd.errors import ConfigError

@hookimpl
def configure(settings):
    if settings:
        raise ConfigError("depth: unknown key")

@hookimpl
def classify_outcome(outcome): ...
"""
IN_USE = "@hookimpl\ndef attempts_recorded(records): ..."


@pytest.fixture
def site(tmp_path: Path) -> Distributions:
    return Distributions(tmp_path / "site")


def listed(primeflowd: Run, site: Distributions, config: str) -> dict[str, list[dict[str, Any]]]:
    """The rows of third parties, by name: those of this test, which begin with `t-`."""
    (site.directory.parent / "primeflowd.toml").write_text(config)
    done = primeflowd("plugins", "--json", env={"PYTHONPATH": str(site.directory)})
    assert (done.returncode, done.stderr) == (0, "")
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in json.loads(done.stdout):
        if row["name"].startswith("t-"):
            rows.setdefault(row["name"], []).append(row)
    return rows


def test_built_in_plugins_come_first(primeflowd: Run) -> None:
    rows = json.loads(primeflowd("plugins", "--json").stdout)
    assert [row["name"] for row in rows[: len(BUILTINS)]] == list(BUILTINS)
    assert rows[0] == {
        "name": "primeflowd.builtin.sqlite",
        "distribution": "primeflowd",
        "version": __version__,
        "hooks": ["migrate_storage", "open_storage"],
        "state": "built-in",
        "reason": None,
    }


def test_only_enabled_plugins_are_imported(primeflowd: Run, site: Distributions) -> None:
    site.install("t-on", CONFIGURABLE)
    site.install("t-off", "raise SystemExit('imported')")
    rows = listed(primeflowd, site, '[plugins]\nenable = ["t-on"]\n')
    assert rows == {
        "t-on": [
            {
                "name": "t-on",
                "distribution": "primeflowd-t-on",
                "version": "1.2",
                "hooks": ["classify_outcome", "configure"],
                "state": "enabled",
                "reason": None,
            }
        ],
        "t-off": [
            {
                "name": "t-off",
                "distribution": "primeflowd-t-off",
                "version": "1.2",
                "hooks": None,
                "state": "installed",
                "reason": None,
            }
        ],
    }


def test_broken_plugins_do_not_stop_the_listing(primeflowd: Run, site: Distributions) -> None:
    site.install("t-a", "import no_such_module")
    site.install("t-b", "@hookimpl\ndef classify_outcom(outcome): ...")
    site.install("t-c", IN_USE, api=2)
    site.install("t-d", CONFIGURABLE)
    site.install("t-e", IN_USE, distribution="one")
    site.install("t-e", IN_USE, distribution="two")
    site.install("t-g", IN_USE)
    names = ["t-a", "t-b", "t-c", "t-d", "t-e", "t-f", "t-g"]
    config = f"[plugins]\nenable = {json.dumps(names)}\n[plugins.t-d]\ndepth = 3\n"
    rows = listed(primeflowd, site, config)
    reasons = {
        "t-a": "cannot be imported: ModuleNotFoundError: ",
        "t-b": "there is no hook classify_outcom; did it mean classify_outcome?",
        "t-c": "was written for version 2 of the hooks, ",
        "t-d": "plugins.t-d: depth: unknown key",
        "t-e": 'plugins.enable: "t-e" is the name of several installed plugins (one 1.2, two 1.2)',
        "t-f": 'plugins.enable: no plugin "t-f" is installed',
    }
    for name, reason in reasons.items():
        assert {row["state"] for row in rows[name]} == {"broken"}
        assert all(row["reason"].startswith(reason) for row in rows[name]), rows[name]
        assert {row["hooks"] for row in rows[name]} == {None}
    assert [row["distribution"] for row in rows["t-e"]] == ["one", "two"]
    assert rows["t-f"][0]["distribution"] is None
    [good] = rows["t-g"]
    assert (good["state"], good["hooks"]) == ("enabled", ["attempts_recorded"])


def test_table_for_people(primeflowd: Run, site: Distributions, tmp_path: Path) -> None:
    site.install("t-off", IN_USE)
    site.install("t-bad", IN_USE, api=None)
    (tmp_path / "other.toml").write_text('[plugins]\nenable = ["t-bad"]\n')
    done = primeflowd("plugins", "--config", "other.toml", env={"PYTHONPATH": str(site.directory)})
    assert done.returncode == 0
    heading, *lines = [line.split() for line in done.stdout.splitlines()]
    assert heading == ["NAME", "DISTRIBUTION", "VERSION", "HOOKS", "STATE"]
    assert ["t-off", "primeflowd-t-off", "1.2", "-", "installed"] in lines
    [bad] = [line for line in lines if line[0] == "t-bad"]
    assert bad[:5] == ["t-bad", "primeflowd-t-bad", "1.2", "-", "broken:"]
    assert bad[5:8] == ["does", "not", "say"]
