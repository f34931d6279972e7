"""`backup`: a consistent copy of the storage, from a running daemon too."""

import time
from functools import partial
from pathlib import Path

import click
from rich import filesize

from primeflowd.cli import sqlite_file
from primeflowd.cli.master_key import key_file
from primeflowd.cli.options import config_option, load_config
from primeflowd.cli.progress import Progress
from primeflowd.errors import OperatorError
from primeflowd.keyring import ENVIRONMENT


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@config_option
def backup(file: Path, force: bool, path: Path | None) -> None:
    """Copy the storage, a SQLite file, into FILE, while daemons use it or not.

    The copy is of the instant at which it begins: what was accepted before is in it. It holds up
    no daemon. Payloads are in it as they are, so only you may read it. The master key is not.
    """
    config, _ = load_config(path)
    database = sqlite_file.database(config)
    if file.exists() and not force:
        raise OperatorError(f"{file} is there already; name another, or add --force")
    if file.exists() and database.exists() and file.samefile(database):
        raise OperatorError(f"{file} is the storage itself")
    began = time.monotonic()
    with Progress("copying", sqlite_file.pages(database), unit="pages") as progress:
        sqlite_file.copy(database, file, partial(progress.show, database.name))
    took = time.monotonic() - began
    click.echo(f"{file}: {filesize.decimal(file.stat().st_size)} in {took:.1f} s")
    key = key_file(config) or f"${ENVIRONMENT}"
    click.echo(f"the master key is not in it: keep that apart, {key}")
