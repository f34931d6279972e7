"""`secrets rotate-master-key` (contract 6.1), also cut short at each step and run again."""

import base64
import os
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
import trio

from primeflowd import keyring
from primeflowd.cli import secrets
from primeflowd.cli.visit import visit
from primeflowd.config import Config, Secrets
from primeflowd.hookspecs import Tx
from primeflowd.keyring import Keyring
from primeflowd.model import SigningSecret
from primeflowd.plugins import Plugins
from primeflowd.testing.daemon_process import DaemonProcess
from tests.cli.conftest import Run

T = TypeVar("T")

PLAIN = b"whsec_plain"
BOUND_TO = keyring.bound_to_secret("acme", "s1")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """The state directory of the commands, with a storage that holds one sealed secret."""
    path = tmp_path / "state" / "primeflowd"
    config = Config(state_directory=str(path))
    own, _ = keyring.load_or_create(config)
    secret = SigningSecret(
        id="s1",
        org_id="acme",
        key_prefix="whsec_plai",
        sealed=own.seal(PLAIN, BOUND_TO),
        is_current=True,
        label=None,
        disabled_at=None,
        last_used_at=None,
        created_at=1,
        updated_at=1,
    )

    def store(tx: Tx) -> None:
        keyring.check(own, tx)
        tx.put_secret(secret)

    in_storage(config, store)
    return path


@pytest.fixture
def new_file(tmp_path: Path) -> Path:
    path = tmp_path / "new.key"
    path.write_text(base64.b64encode(os.urandom(32)).decode() + "\n")
    return path


def in_storage(config: Config, function: Callable[[Tx], T]) -> T:
    async def visit() -> T:
        async with Plugins(config).open_storage(config, None) as storage:
            return await storage.write(function)

    return trio.run(visit)


def keyring_of(path: Path) -> Keyring:
    return keyring.load(Config(secrets=Secrets(master_key_file=str(path))))


def assert_under(state: Path, expected: Keyring) -> None:
    """The storage, and the secret in it, are under `expected`."""

    def look(tx: Tx) -> None:
        keyring.check(expected, tx)
        [secret] = tx.secrets(None)
        assert expected.open(secret.sealed, BOUND_TO) == PLAIN

    in_storage(Config(state_directory=str(state)), look)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_key_replaced_by_root_stays_the_daemons(
    primeflowd: Run, state: Path, new_file: Path
) -> None:
    """6.1: root keeps it from the other users, not from the one that it belonged to."""
    os.chown(state / "master.key", 65534, 65533)
    primeflowd("secrets", "rotate-master-key", "--new-key-file", "new.key").check_returncode()
    own = (state / "master.key").stat()
    assert (own.st_uid, own.st_gid, stat.S_IMODE(own.st_mode)) == (65534, 65533, 0o600)
    assert (state / "master.key").read_bytes() == new_file.read_bytes()


def test_key_that_we_made_is_replaced(primeflowd: Run, state: Path, new_file: Path) -> None:
    own, kept = state / "master.key", state / "master.key.old"
    old, new = keyring_of(own), keyring_of(new_file)
    done = primeflowd("secrets", "rotate-master-key", "--new-key-file", "new.key")
    assert (done.returncode, done.stderr) == (0, "")
    assert str(kept) in done.stdout
    assert_under(state, new)
    assert (keyring_of(own).id, keyring_of(kept).id) == (new.id, old.id)
    assert stat.S_IMODE(own.stat().st_mode) == stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert sorted(path.name for path in state.glob("master.key*")) == [own.name, kept.name]


def test_second_run_changes_nothing(primeflowd: Run, state: Path, new_file: Path) -> None:
    old = keyring_of(state / "master.key")
    for _ in range(2):
        done = primeflowd("secrets", "rotate-master-key", "--new-key-file", "new.key")
        assert done.returncode == 0
    assert "under the new key already" in done.stdout
    assert_under(state, keyring_of(new_file))
    assert keyring_of(state / "master.key.old").id == old.id


@pytest.mark.parametrize("linked", [False, True])
def test_run_again_after_a_crash_past_the_commit(
    primeflowd: Run, state: Path, new_file: Path, linked: bool
) -> None:
    """Storage is under the new key and the file has the old one: the daemon would not start."""
    own, kept = state / "master.key", state / "master.key.old"
    old, new = keyring_of(own), keyring_of(new_file)
    visit(Config(state_directory=str(state)), partial(secrets._rotate, old, new))
    if linked:
        kept.hardlink_to(own)
        (state / "master.key.new").write_text("half a k")
    done = primeflowd("secrets", "rotate-master-key", "--new-key-file", "new.key")
    assert (done.returncode, done.stderr) == (0, "")
    assert_under(state, new)
    assert (keyring_of(own).id, keyring_of(kept).id) == (new.id, old.id)


def test_key_of_an_earlier_rotation_is_not_overwritten(
    primeflowd: Run, state: Path, new_file: Path
) -> None:
    """It may be the only copy of a key that old backups need."""
    old = keyring_of(state / "master.key")
    (state / "master.key.old").write_text("precious")
    done = primeflowd("secrets", "rotate-master-key", "--new-key-file", "new.key")
    assert done.returncode == 1
    assert "move it elsewhere first" in done.stderr
    assert (state / "master.key.old").read_text() == "precious"
    assert_under(state, old)


def test_configured_key_file_is_the_operators(
    primeflowd: Run, state: Path, new_file: Path, tmp_path: Path
) -> None:
    own = tmp_path / "mine.key"
    (state / "master.key").rename(own)
    before = own.read_bytes()
    (tmp_path / "primeflowd.toml").write_text('[secrets]\nmaster_key_file = "mine.key"\n')
    done = primeflowd("secrets", "rotate-master-key", "--new-key-file", "new.key")
    assert done.returncode == 0
    assert "set secrets.master_key_file to 'new.key'" in done.stdout
    assert own.read_bytes() == before
    assert_under(state, keyring_of(new_file))


def test_key_in_the_environment_is_the_operators(
    primeflowd: Run, state: Path, new_file: Path
) -> None:
    own = state / "master.key"
    text = own.read_text()
    own.unlink()
    done = primeflowd(
        *("secrets", "rotate-master-key", "--new-key-file", "new.key"),
        env={"PRIMEFLOWD_MASTER_KEY": text},
    )
    assert done.returncode == 0
    assert "put the key of new.key into $PRIMEFLOWD_MASTER_KEY" in done.stdout
    assert not own.exists()
    assert_under(state, keyring_of(new_file))


def test_wrong_key_changes_nothing(primeflowd: Run, state: Path, new_file: Path) -> None:
    own = state / "master.key"
    right = keyring_of(own)
    wrong = base64.b64encode(os.urandom(32)).decode()
    done = primeflowd(
        *("secrets", "rotate-master-key", "--new-key-file", "new.key"),
        env={"PRIMEFLOWD_MASTER_KEY": wrong},
    )
    assert done.returncode == 1
    assert right.id in done.stderr
    assert_under(state, right)


@pytest.mark.parametrize("text", [None, "", "short"])
def test_new_key_must_be_one(
    primeflowd: Run, state: Path, new_file: Path, text: str | None
) -> None:
    new_file.unlink()
    if text is not None:
        new_file.write_text(text)
    done = primeflowd("secrets", "rotate-master-key", "--new-key-file", "new.key")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert_under(state, keyring_of(state / "master.key"))


def test_daemon_must_be_stopped(tmp_path: Path, primeflowd: Run, new_file: Path) -> None:
    """A running daemon would go on sealing under the old key; one that was killed would not."""
    with DaemonProcess(tmp_path / "daemon") as daemon:
        done = primeflowd(
            *("secrets", "rotate-master-key", "--new-key-file", "new.key"),
            *("--config", str(daemon.config)),
        )
        assert done.returncode == 1
        node_id = daemon.events("daemon_ready")[-1]["node_id"]
        assert f"in use by {node_id};" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        daemon.kill()
        done = primeflowd(
            *("secrets", "rotate-master-key", "--new-key-file", "new.key"),
            *("--config", str(daemon.config)),
        )
    assert (done.returncode, done.stderr) == (0, "")
    with daemon:
        assert daemon.terminate() == 0
