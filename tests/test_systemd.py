"""The units of systemd/: they agree, and systemd understands them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNITS = Path(__file__).parent.parent / "systemd"


def directives(name: str) -> list[str]:
    lines = (UNITS / name).read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_an_instance_is_run_as_a_single_daemon_is() -> None:
    """What hardens one hardens the other; systemd has no way to share the lines."""
    single, instance = directives("primeflowd.service"), directives("primeflowd@.service")
    instance.remove("User=primeflowd")
    instance = [line.replace(" (process %i)", "") for line in instance]
    assert instance == single


def test_instances_share_their_user() -> None:
    """Else each has a user of its own, and chowns the state directory away from the others."""
    lines = directives("primeflowd@.service")
    assert {"DynamicUser=yes", "User=primeflowd", "StateDirectory=primeflowd"} <= set(lines)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize("name", ["primeflowd.service", "primeflowd@.service"])
def test_systemd_has_no_complaint(name: str, tmp_path: Path) -> None:
    unit = tmp_path / name.replace("@", "@1")
    # It looks for the program.
    unit.write_text(
        (UNITS / name).read_text().replace("/opt/primeflowd/bin/primeflowd", sys.executable)
    )
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
