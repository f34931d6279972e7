"""Which configuration is meant, at the start and when it is reloaded."""

from pathlib import Path

import pytest

from primeflowd import config
from primeflowd.cli.options import BUILT_IN, load_again, load_config
from primeflowd.config import Config
from primeflowd.errors import ConfigError


def test_the_same_file_is_reloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """8: one that has gone is an error, and does not mean the defaults."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(config, "DEFAULT_PATHS", config.DEFAULT_PATHS[:1])
    assert load_config(None) == (Config(), BUILT_IN)
    assert load_again(BUILT_IN) == Config()
    file = tmp_path / config.DEFAULT_PATHS[0]
    file.write_text("[storage]\nmax_backlog = 5\n")
    assert load_again(BUILT_IN).storage.max_backlog == 5
    _, origin = load_config(None)
    file.write_text("[storage]\nmax_backlog = 6\n")
    assert load_again(origin).storage.max_backlog == 6
    file.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        load_again(origin)
