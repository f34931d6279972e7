"""The units of systemd/: they agree, and systemd understands them."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from primeflowd.config import settings

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


def test_instances_have_no_socket_unit() -> None:
    """Each binds the port for itself; and the one service takes its socket by its name."""
    assert sorted(path.name for path in UNITS.glob("primeflowd*")) == [
        "primeflowd.service",
        "primeflowd.socket",
        "primeflowd@.service",
    ]
    [shipped] = [value for table, key, value, _ in settings() if (table, key) == ("api", "bind")]
    assert f"ListenStream={shipped}" in directives("primeflowd.socket")


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """All units in one directory, as instances where they are templates."""
    for path in UNITS.glob("primeflowd*"):
        # The program is looked for.
        text = path.read_text().replace("/usr/bin/primeflowd", sys.executable)
        (tmp_path / path.name.replace("@", "@1")).write_text(text)
    return tmp_path


needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd is not installed"
)


@needs_systemd
@pytest.mark.parametrize(
    "name", ["primeflowd.service", "primeflowd.socket", "primeflowd@1.service"]
)
def test_systemd_has_no_complaint(name: str, units: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(units / name)],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_systemd
@pytest.mark.parametrize("name", ["primeflowd.service", "primeflowd@1.service"])
def test_exposure_is_low(name: str, units: Path) -> None:
    """At most 1.5 of 10, as systemd counts. It warns of what it does not know."""
    # The threshold is in tenths.
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=15", str(units / name)],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    [summary] = [line for line in done.stdout.splitlines() if "Overall exposure level" in line]
    assert float(summary.split(": ")[1].split()[0]) <= 1.5
