"""The Debian package, from the build to the purge, in a root of its own with nothing else in it.

Needs root and Debian's python3-venv and mmdebstrap, a package index and a Debian mirror, those that
the host uses. Takes about a minute, so it is not in the main suite: `pytest packaging`.
"""

import gzip
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from primeflowd.testing.daemon_process import eventually

CLONE = Path(__file__).parent.parent
BUILD = CLONE / "packaging" / "debian" / "build"
SOURCES = ("/etc/apt/sources.list", "/etc/apt/sources.list.d/debian.sources")
KEPT_ON_PURGE = {"etc/passwd", "etc/group", "etc/shadow", "etc/gshadow", "etc/subuid", "etc/subgid"}

needs_debian = pytest.mark.skipif(
    not Path("/etc/debian_version").exists() or not Path("/usr/lib/python3").exists(),
    reason="a Debian package is built on Debian, with its own Python and python3-venv",
)
needs_clean_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("mmdebstrap") is None,
    reason="a clean root is made by root, with mmdebstrap",
)
pytestmark = needs_debian


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("package")
    # Built for a release, as releases are: from a folder that is not theirs.
    done = subprocess.run(
        [BUILD, "--output", output], cwd="/", stdout=subprocess.PIPE, text=True, check=True
    )
    return Path(done.stdout.strip())


class Host:
    """A freshly installed Debian without an init."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def command(self, *words: str, user: str = "") -> list[str]:
        as_user = [f"--userspec={user}:{user}"] if user else []
        path = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"
        plain = ["env", "-i", path, "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"]
        return ["chroot", *as_user, str(self.root), *plain, *words]

    def run(self, *words: str, user: str = "") -> str:
        """Its standard output, once it has succeeded."""
        done = subprocess.run(
            self.command(*words, user=user), capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout

    def files(self) -> set[str]:
        """All there are, but for what packages write for themselves."""
        passed_over = ("tmp", "proc", "run", "var/cache", "var/lib/apt", "var/lib/dpkg", "var/log")
        paths = (path.relative_to(self.root) for path in self.root.rglob("*"))
        return {str(path) for path in paths if not str(path).startswith(passed_over)}


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    sources = [path for path in SOURCES if Path(path).exists()]
    subprocess.run(
        ["mmdebstrap", "--quiet", "--variant=apt", "--skip=cleanup/apt"]
        + ["--include=ca-certificates,python3.11"]
        + [release(), str(tmp_path / "root"), *sources],
        check=True,
    )
    yield Host(tmp_path / "root")
    shutil.rmtree(tmp_path / "root")


def release() -> str:
    text = Path("/etc/os-release").read_text()
    [line] = [line for line in text.splitlines() if line.startswith("VERSION_CODENAME=")]
    return line.split("=")[1]


def members(package: Path) -> list[tarfile.TarInfo]:
    unpacked = subprocess.run(
        ["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE, check=True
    )
