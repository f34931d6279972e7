"""The options `--config`, with which configuration it means, and `--json`."""

from pathlib import Path
from typing import Final

import click

from primeflowd import config
from primeflowd.config import Config

config_option: Final = click.option(
    "--config",
    "path",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Configuration file. Without it: the first of "
    + ", ".join(str(path) for path in config.DEFAULT_PATHS)
    + " that exists, else the built-in defaults.",
)

json_option: Final = click.option(
    "--json", "as_json", is_flag=True, help="The API's answer, for programs."
)

BUILT_IN: Final = "built-in defaults"


def load_config(given: Path | None) -> tuple[Config, str]:
    """The configuration and where it comes from, for people.

    Raises:
        ConfigError: the file cannot be read or holds a setting that is not allowed.
    """
    path = _found(given)
    if path is None:
        return Config(), BUILT_IN
    return config.load(path), str(path)


def load_bind(given: Path | None) -> str:
    """`[api] bind` of the same file, which need be right in nothing else.

    Raises:
        ConfigError: the file cannot be read, is not TOML, or this one setting is not allowed.
    """
    path = _found(given)
    return Config().api.bind if path is None else config.bind_in(path)


def load_again(origin: str) -> Config:
    """The configuration as it is now where load_config found one: where it found none there may be
    one by now, but a file that has gone is not made up for by another, or by the defaults.

    Raises:
        ConfigError: as load_config.
    """
    return load_config(None if origin == BUILT_IN else Path(origin))[0]


def _found(given: Path | None) -> Path | None:
    return given or next(filter(_is_there, config.DEFAULT_PATHS), None)


def _is_there(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        # There, perhaps, but not for us. To run with the defaults instead would be a nasty
        # surprise; loading it says what is wrong.
        return True
    return True
