"""`init` writes a configuration file and makes the master key; `check-config` checks a file."""

from pathlib import Path

import click

from primeflowd import config, config_file, keyring, span_export
from primeflowd.cli.options import config_option, load_config
from primeflowd.config import Config
from primeflowd.errors import OperatorError
from primeflowd.plugins import Plugins


@click.command()
@click.option(
    "--config",
    "path",
    metavar="FILE",
    type=click.Path(path_type=Path),
    default=config.DEFAULT_PATHS[0],
    show_default=True,
    help="File to write.",
)
@click.option("--force", is_flag=True, help="Overwrite the file if it is there.")
def init(path: Path, force: bool) -> None:
    """Write a commented configuration file, and make the master key.

    A master key that is there already is never touched.
    """
    _write_text(path, config_file.render(), overwrite=force)
    click.echo(f"wrote {path}: every setting with its default, commented out")
    _, made = keyring.load_or_create(Config())
    if made:
        click.echo(f"made the master key {made}: keep a copy apart from the database's")
    else:
        click.echo("the master key is there already and was left as it is")


@click.command("check-config")
@config_option
def check_config(path: Path | None) -> None:
    """Check a configuration file, its plugins with their settings, its signers and storage URL."""
    settings, origin = load_config(path)
    plugins = Plugins(settings)
    plugins.signers(settings)
    # Not entered: nothing is opened, but there is a plugin for its URL.
    plugins.open_storage(settings, None)
    span_export.check(settings.tracing)
    click.echo(f"{origin}: ok")


def _write_text(path: Path, text: str, *, overwrite: bool) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # "x" asks the kernel, so that there is no gap between looking and writing.
        with path.open("w" if overwrite else "x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        if isinstance(error, FileExistsError) and path.exists():
            raise OperatorError(f"{path} exists; --force overwrites it") from error
        raise OperatorError(f"{path}: cannot be written: {error.strerror}") from error
