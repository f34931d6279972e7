"""`restore`: a backup, checked, in the place of the storage."""

import os
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import click
import trio
from msgspec.structs import replace

from primeflowd import keyring
from primeflowd.cli import sqlite_file
from primeflowd.cli.options import config_option, load_config
from primeflowd.cli.progress import Progress
from primeflowd.config import Config
from primeflowd.errors import OperatorError
from primeflowd.hookspecs import Tx
from primeflowd.keyring import Keyring, bound_to_secret
from primeflowd.plugins import Plugins


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace what an earlier restore has put aside.")
@config_option
def restore(file: Path, force: bool, path: Path | None) -> None:
    """Put a backup in the place of the storage. Daemons must be stopped.

    FILE is what `primeflowd backup` made. A copy is checked first: that it is whole, that this
    primeflowd knows its schema, which is brought up to date, and that the master key is its. The
    storage that was there stays beside it, with `.before-restore` after its name.
    """
    config, _ = load_config(path)
    database = sqlite_file.database(config)
    aside = database.with_name(f"{database.name}.before-restore")
    draft = database.with_name(f"{database.name}.restoring")
    if file.resolve() in (database.resolve(), draft.resolve()):
        raise OperatorError(f"{file} is the storage itself, or a restore that was cut short")
    if database.exists() and aside.exists() and not force:
        raise OperatorError(f"{aside} is there already; move it away, or add --force")
    sqlite_file.refuse_users(database)
    key = keyring.load(config)
    with ExitStack() as stack:
        database.absolute().parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _remove(draft)
        stack.callback(_remove, draft)
        rows = _copy_and_check(file, draft)
        trio.run(_open, config, draft, key)
        _put_in_place(draft, database, aside)
    click.echo(f"{database}: " + ", ".join(f"{count:,} {table}" for table, count in rows.items()))
    click.echo("callbacks that were under way or waiting in the backup are attempted (again)")
    if aside.exists():
        click.echo(f"the storage that was there is {aside}")


def _copy_and_check(file: Path, draft: Path) -> dict[str, int]:
    """Make the draft; how many rows each of its tables has."""
    with Progress("copying", sqlite_file.pages(file), unit="pages") as progress:
        sqlite_file.copy(file, draft, partial(progress.show, file.name))
    tables = sqlite_file.tables(draft)
    rows: dict[str, int] = {}
    with Progress("checking", len(tables), unit="tables") as progress:
        for number, table in enumerate(tables):
            progress.show(table, number, 0)
            rows[table] = sqlite_file.check(draft, table)
    if sqlite_file.have_it_give_space_back(draft):
        click.echo("made anew, so that it gives space back from now on", err=True)
    return rows


async def _open(config: Config, draft: Path, key: Keyring) -> None:
    """Bring the schema up to date, and make sure that the key is its.

    Raises:
        OperatorError: it was written by a newer primeflowd, or under another key.
    """

    def opens(tx: Tx) -> None:
        keyring.check(key, tx)
        for secret in tx.secrets(None):
            key.open(secret.sealed, bound_to_secret(secret.org_id, secret.id))

    here = replace(config, storage=replace(config.storage, url=f"sqlite:///{draft}"))
    async with Plugins(config).open_storage(here, None) as storage:
        await storage.write(opens)


def _put_in_place(draft: Path, database: Path, aside: Path) -> None:
    # Once more: copying took a while.
    sqlite_file.refuse_users(database)
    try:
        # Whose daemon it is, where root does this.
        owner = (database if database.exists() else database.absolute().parent).stat()
        os.chown(draft, owner.st_uid, owner.st_gid)
        if database.exists():
            # At no instant is there none, for which a daemon would make an empty one.
            aside.unlink(missing_ok=True)
            os.link(database, aside)
        draft.replace(database)
        sqlite_file.sync_directory(database)
    except OSError as error:
        raise OperatorError(f"{database} cannot be replaced: {error.strerror}") from error


def _remove(draft: Path) -> None:
    """What a restore leaves beside the database until it is done."""
    for suffix in ("", "-wal", "-shm", "-journal", ".lock"):
        draft.with_name(draft.name + suffix).unlink(missing_ok=True)
