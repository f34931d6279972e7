"""primeflowd.testing as a third party uses it: in a test session of its own."""

import importlib
import re
import subprocess
import sys
from inspect import cleandoc
from pathlib import Path

from primeflowd import testing
from primeflowd.testing import fixtures
from tests.distributions import Distributions

IMPORTS = """
import pytest

from primeflowd.testing.daemon_process import DaemonProcess, eventually
from primeflowd.testing.receiver_process import ReceiverProcess

"""
MORE = """


def test_the_plugin_is_enabled(daemon: DaemonProcess) -> None:
    assert "mine" in daemon.config.read_text()
    assert daemon.terminate() == 0


@pytest.mark.parametrize("daemon_settings", ["[drain]\\ndeadline = '1s'"])
def test_one_test_may_have_settings_of_its_own(daemon: DaemonProcess) -> None:
    assert "mine" not in daemon.config.read_text()


def test_answers_well_unless_told_otherwise(receiver: ReceiverProcess) -> None:
    assert receiver.script == [{}]
"""


def test_the_example_of_the_fixtures_runs(tmp_path: Path) -> None:
    """With a plugin that is installed, warnings as errors, and nothing left running."""
    site = Distributions(tmp_path / "site")
    site.install("mine", "@hookimpl\ndef attempts_recorded(records): ...")
    assert fixtures.__doc__ is not None
    _, _, example = cleandoc(fixtures.__doc__).partition("::\n\n")
    suite = tmp_path / "suite"
    suite.mkdir()
    (suite / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    (suite / "conftest.py").write_text('pytest_plugins = ["primeflowd.testing.fixtures"]\n')
    (suite / "test_mine.py").write_text(IMPORTS + cleandoc(example) + MORE)
    # In a place of its own: the usual one is swept, and other sessions are at it.
    own = f"--basetemp={tmp_path / 'temporary'}"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", own],
        cwd=suite,
        env={"PYTHONPATH": str(site.directory)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout


def test_what_is_public_is_there() -> None:
    assert testing.__doc__ is not None
    public, _, _ = testing.__doc__.partition("These follow")
    names = re.findall(r"`(\w+)\.(\w+)`", public)
    assert ("daemon_process", "DaemonProcess") in names
    for module, name in names:
        if (module, name) not in {("conftest", "py"), ("primeflowd", "model")}:
            assert hasattr(importlib.import_module(f"primeflowd.testing.{module}"), name), name
    for name in re.findall(r"`([a-z_]+)`", public):
        assert hasattr(fixtures, name) or name in {"fixtures", "factories"}, name
