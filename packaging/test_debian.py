"""The Debian package, from the build to the purge, in a root of its own with nothing else in it.

Needs root and Debian's python3-venv and mmdebstrap, a package index and a Debian mirror, those that
the host uses. Takes about a minute, so it is not in the main suite: `pytest -n0 packaging`.
"""

import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tarfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from primeflowd.testing.daemon_process import eventually

CLONE = Path(__file__).parent.parent
BUILD = CLONE / "packaging" / "debian" / "build"
SOURCES = ("/etc/apt/sources.list", "/etc/apt/sources.list.d/debian.sources")

MINIMAL = ("--variant=apt", "--skip=cleanup/apt")
"""What apt needs, with the lists of what there is to install."""

COMPLETE = """
. /usr/share/bash-completion/completions/primeflowd
COMP_WORDS=(primeflowd deliv) COMP_CWORD=1
_primeflowd_completion primeflowd
echo "${COMPREPLY[@]}"
"""

needs_debian = pytest.mark.skipif(
    not any(Path("/usr/lib").glob("python3.*/ensurepip")) or shutil.which("dpkg-deb") is None,
    reason="a Debian package is built on Debian, with python3-venv",
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
        ["mmdebstrap", "--quiet", *MINIMAL, release(), str(tmp_path / "root"), *sources],
        check=True,
    )
    # What is lost in a crash is built again.
    (tmp_path / "root/etc/dpkg/dpkg.cfg.d/fast").write_text("force-unsafe-io\n")
    yield Host(tmp_path / "root")
    shutil.rmtree(tmp_path / "root")


def release() -> str:
    text = Path("/etc/os-release").read_text()
    [line] = [line for line in text.splitlines() if line.startswith("VERSION_CODENAME=")]
    return line.split("=")[1]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def members(package: Path) -> list[tarfile.TarInfo]:
    """What it unpacks."""
    content = subprocess.run(
        ["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE, check=True
    ).stdout
    return tarfile.open(fileobj=io.BytesIO(content)).getmembers()


def successor(package: Path, directory: Path) -> Path:
    """The same as another version, which is told by its revision alone."""
    subprocess.run(["dpkg-deb", "--raw-extract", package, directory / "content"], check=True)
    control = directory / "content" / "DEBIAN" / "control"
    control.write_text(control.read_text().replace("-1\n", "-2\n", 1))
    later = directory / package.name.replace("-1_", "-2_")
    subprocess.run(["dpkg-deb", "-Znone", "--build", directory / "content", later], check=True)
    return later


def test_it_holds_all_of_primeflowd(package: Path) -> None:
    """Each file that the modules may look for, and no other; owned by root, writable by nobody."""
    found = members(package)
    assert {(one.uid, one.gid) for one in found} == {(0, 0)}
    assert not [one.name for one in found if one.mode & 0o022 and not one.issym()]
    library = re.compile(r"\./usr/lib/primeflowd/lib/python3\.[0-9]+/site-packages/(primeflowd/.*)")
    packed = {match[1] for one in found if one.isfile() and (match := library.match(one.name))}
    ours = {
        str(path.relative_to(CLONE)) for path in CLONE.glob("primeflowd/**/*") if path.is_file()
    }
    assert {one for one in packed if "__pycache__" not in one} == {
        one for one in ours if "__pycache__" not in one
    }
    programs = {one.name for one in found if "/bin/" in one.name and not one.isdir()}
    assert programs == {
        "./usr/bin/primeflowd",
        "./usr/lib/primeflowd/bin/primeflowd",
        "./usr/lib/primeflowd/bin/python3",
    }


@pytest.mark.skipif(
    shutil.which("lintian") is None,
    reason="lintian is not installed; .ci/run installs it",
)
def test_lintian_has_no_complaint(package: Path) -> None:
    done = subprocess.run(
        ["lintian", "--allow-root", "--fail-on=error,warning", package],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def check_installation(host: Host) -> None:
    [line] = [
        line
        for line in (CLONE / "pyproject.toml").read_text().splitlines()
        if line[:7] == "version"
    ]
    assert host.run("primeflowd", "--version") == f"primeflowd {line.split(chr(34))[1]}\n"
    plugins = json.loads(host.run("primeflowd", "plugins", "--json"))
    assert {plugin["state"] for plugin in plugins} == {"built-in"}
    assert host.run("primeflowd", "check-config") == "/etc/primeflowd/config.toml: ok\n"

    # The daemon reads its configuration and nobody else does; the data is the daemon's alone.
    own = host.run("stat", "-c", "%a %U %G", "/etc/primeflowd/config.toml", "/var/lib/primeflowd")
    assert own.splitlines() == ["640 root primeflowd", "700 primeflowd primeflowd"]
    for wanted in (
        "sockets.target.wants/primeflowd.socket",
        "multi-user.target.wants/primeflowd.service",
    ):
        link = host.root / "etc/systemd/system" / wanted
        assert (host.root / link.readlink().relative_to("/")).is_file(), wanted
    completed = host.run("bash", "-c", COMPLETE)
    assert completed.split() == ["deliveries"]


@contextmanager
def running(host: Host) -> Iterator[httpx.Client]:
    """The daemon with the configuration installed, changed as an operator does, and its client."""
    config = host.root / "etc/primeflowd/config.toml"
    port = free_port()
    text = re.sub(r"^(# )?bind = .*$", f'bind = "127.0.0.1:{port}"', config.read_text(), flags=re.M)
    config.write_text(text.replace("# allow = []", 'allow = ["127.0.0.0/8"]'))
    key = host.run("primeflowd", "keys", "create", "--org", "acme", user="primeflowd").strip()
    daemon = subprocess.Popen(host.command("primeflowd", "run", user="primeflowd"))
    try:
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {key}"}
        ) as api:
            eventually(lambda: is_ready(api), 30)
            yield api
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(30) == 0
    finally:
        daemon.kill()
        daemon.wait()


def is_ready(api: httpx.Client) -> bool:
    try:
        return api.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def deliver(host: Host, api: httpx.Client) -> str:
    """The id of a batch whose callback `primeflowd listen` has received and verified."""
    secret = api.post("/v1/callback-secrets", json={"label": "test"}).json()["plain_secret"]
    words = ["listen", "--json", "--port=0", f"--secret={secret}"]
    receiver = subprocess.Popen(
        host.command("timeout", "60", "primeflowd", *words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert receiver.stdout is not None
    assert receiver.stderr is not None
    batch = str(uuid.uuid4())
    try:
        [callback_url] = re.findall(r"http://127.0.0.1:[0-9]+/", receiver.stderr.readline())
        api.post(
            "/v1/batches", json={"id": batch, "plan_id": "nightly", "callback_url": callback_url}
        ).raise_for_status()
        api.post(f"/v1/batches/{batch}/completion", json={"status": "succeeded"}).raise_for_status()
        received = json.loads(receiver.stdout.readline())
        assert received["signatures"] == {
            "standard-webhooks": "genuine",
            "hmac-sha256": "genuine",
        }
    finally:
        receiver.terminate()
        receiver.communicate()
    return batch


@needs_clean_root
def test_life_of_an_installation(package: Path, host: Host, tmp_path: Path) -> None:
    """Installed, used, upgraded, rolled back, removed, purged: with apt, as the README says."""
    before = host.files()
    for one in (package, successor(package, tmp_path)):
        shutil.copy(one, host.root / "tmp")
    first, second = f"/tmp/{package.name}", f"/tmp/{package.name.replace('-1_', '-2_')}"

    host.run("apt-get", "install", "-y", first)
    check_installation(host)
    with running(host) as api:
        batch = deliver(host, api)
    host.run("apt-get", "install", "-y", second)
    with running(host) as api:
        assert api.get(f"/v1/batches/{batch}").status_code == 200
    host.run("apt-get", "install", "-y", "--allow-downgrades", first)
    with running(host) as api:
        assert api.get(f"/v1/batches/{batch}").status_code == 200

    host.run("apt-get", "remove", "-y", "--autoremove", "primeflowd")
    left = {path for path in host.files() - before if "primeflowd" in path}
    assert {"etc/primeflowd/config.toml", "var/lib/primeflowd/primeflowd.db"} <= left
    assert not [path for path in left if path.startswith("usr/")]
    host.run("apt-get", "purge", "-y", "primeflowd")
    assert not [path for path in host.files() - before if "primeflowd" in path]
