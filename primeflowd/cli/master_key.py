"""Where the master key in use stands, for commands that look after the file."""

import os
import stat
from pathlib import Path

from primeflowd.config import Config
from primeflowd.keyring import CREDENTIAL, ENVIRONMENT, FILE


def key_file(config: Config) -> Path | None:
    """The file that keyring.load reads, there or not; None if the environment has the key."""
    if config.secrets.master_key_file:
        return Path(config.secrets.master_key_file)
    if ENVIRONMENT in os.environ:
        return None
    directory = os.environ.get("CREDENTIALS_DIRECTORY")
    if directory and os.path.lexists(credential := Path(directory) / CREDENTIAL):
        return credential
    return own_key_file(config)


def own_key_file(config: Config) -> Path:
    """The file that primeflowd makes where it finds no key."""
    return config.state_path / FILE


def readable_by_others(path: Path) -> bool:
    """Whether users other than the owner may read the file; False if it is not there."""
    try:
        return bool(path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH))
    except OSError:
        return False
