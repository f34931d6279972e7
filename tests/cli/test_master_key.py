"""key_file() names the file that keyring.load() reads, wherever there are keys."""

import base64
from pathlib import Path

import pytest

from primeflowd import keyring
from primeflowd.cli.master_key import key_file, readable_by_others
from primeflowd.config import Config, Secrets


def put_key(path: Path, byte: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(base64.b64encode(bytes([byte]) * 32).decode())
    return path


def config_of(tmp_path: Path, file: str = "") -> Config:
    return Config(state_directory=str(tmp_path / "state"), secrets=Secrets(master_key_file=file))


@pytest.mark.parametrize("configured", [True, False])
@pytest.mark.parametrize("credential", [True, False])
def test_same_order_as_the_keyring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, configured: bool, credential: bool
) -> None:
    monkeypatch.delenv(keyring.ENVIRONMENT, raising=False)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path / "credentials"))
    put_key(tmp_path / "state" / keyring.FILE, 1)
    if credential:
        put_key(tmp_path / "credentials" / keyring.CREDENTIAL, 2)
    mine = put_key(tmp_path / "mine.key", 3)
    config = config_of(tmp_path, str(mine) if configured else "")
    named = key_file(config)
    assert keyring.load(config).id == keyring.load(config_of(tmp_path, str(named))).id


def test_environment_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(keyring.ENVIRONMENT, "anything")
    put_key(tmp_path / "state" / keyring.FILE, 1)
    assert key_file(config_of(tmp_path)) is None


@pytest.mark.parametrize(("mode", "others"), [(0o600, False), (0o640, True), (0o604, True)])
def test_who_may_read(tmp_path: Path, mode: int, others: bool) -> None:
    path = put_key(tmp_path / "k", 1)
    path.chmod(mode)
    assert readable_by_others(path) is others
    assert not readable_by_others(tmp_path / "absent")
