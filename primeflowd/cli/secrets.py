"""`secrets rotate-master-key`: encrypt everything anew under another master key.

A crash at any moment is mended by running the same command again:

- before the commit, nothing has changed;
- after it, the storage knows the new key and the command, finding that, only sees to the key file;
- the key file of the state directory is replaced by a rename, once the old key has a second name:
  at no moment is there no key, or half of one.
"""

import os
from functools import partial
from pathlib import Path

import click
import msgspec

from primeflowd import keyring
from primeflowd.cli import signing_secrets
from primeflowd.cli.master_key import key_file, own_key_file
from primeflowd.cli.options import config_option, load_config
from primeflowd.cli.visit import visit
from primeflowd.cli.whole_help import WholeHelp
from primeflowd.config import Config, Secrets
from primeflowd.errors import MasterKeyError, OperatorError, StorageInUse
from primeflowd.hookspecs import Storage, Tx
from primeflowd.keyring import ENVIRONMENT, Keyring


@click.group(cls=WholeHelp)
def secrets() -> None:
    """Look after signing secrets, and the master key that they are encrypted under."""


for _command in (
    signing_secrets.list_secrets,
    signing_secrets.create,
    signing_secrets.promote,
    signing_secrets.disable,
):
    secrets.add_command(_command)


@secrets.command("rotate-master-key")
@click.option(
    "--new-key-file",
    "new_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    required=True,
    help="File with the new key: base64 of 32 random bytes.",
)
@config_option
def rotate_master_key(new_file: Path, path: Path | None) -> None:
    """Encrypt all secrets anew under the key in FILE. All daemons must be stopped.

    If it was cut short, run it again. Keep the old key for as long as there are backups of the
    database that were made under it.
    """
    config, _ = load_config(path)
    old, new = keyring.load(config), _keyring_of(config, new_file)
    in_use = key_file(config)
    ours = own_key_file(config) if in_use == own_key_file(config) else None
    if ours and old.id != new.id:
        # Before anything is changed: it may be the only copy of a key that backups need.
        _check_name_is_free(_old_name(ours), ours)
    count = visit(config, partial(_rotate, old, new))
    if count is None:
        click.echo("the storage is under the new key already")
    else:
        click.echo(f"encrypted anew under the new key: {count}")
    if old.id == new.id:
        return
    if ours:
        _replace(ours, new_file)
        click.echo(f"the new key is in {ours}, the old one in {_old_name(ours)}")
        click.echo(f"{new_file} is a second copy now: keep it elsewhere, or delete it")
    elif config.secrets.master_key_file:
        click.echo(f"before the next start, set secrets.master_key_file to {str(new_file)!r}")
    else:
        place = f"the credential {in_use.name}" if in_use else f"${ENVIRONMENT}"
        click.echo(f"before the next start, put the key of {new_file} into {place}")


def _keyring_of(config: Config, file: Path) -> Keyring:
    return keyring.load(msgspec.structs.replace(config, secrets=Secrets(master_key_file=str(file))))


async def _rotate(old: Keyring, new: Keyring, storage: Storage) -> int | None:
    """How many values were encrypted anew; None if an earlier run did it."""

    def rotate(tx: Tx) -> int | None:
        # In the same transaction: a node that begins later finds the new key, and stops.
        if nodes := tx.nodes():
            raise StorageInUse(
                f"the storage is in use by {', '.join(nodes)}; stop every daemon first. One that "
                "died is given up after storage.lease_ttl"
            )
        if old.id == new.id:
            keyring.check(old, tx)
            return None
        try:
            return keyring.rotate(tx, old, new)
        except MasterKeyError:
            # Perhaps an earlier run was cut short right after its commit. A storage that knows
            # neither key, or holds something damaged, is the case of the first error.
            if not _is_key_of(tx, new):
                raise
            return None

    return await storage.write(rotate)


def _is_key_of(tx: Tx, candidate: Keyring) -> bool:
    try:
        keyring.check(candidate, tx)
    except MasterKeyError:
        return False
    return True


def _old_name(path: Path) -> Path:
    return path.with_name(path.name + ".old")


def _check_name_is_free(kept: Path, path: Path) -> None:
    if kept.exists() and not kept.samefile(path):
        raise OperatorError(f"{kept} is there, from an earlier rotation: move it elsewhere first")


def _replace(path: Path, new_file: Path) -> None:
    """Put the new key into `path` and keep the old one beside it, durably."""
    kept, draft = _old_name(path), path.with_name(path.name + ".new")
    try:
        if not kept.exists():
            kept.hardlink_to(path)
        draft.unlink(missing_ok=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(new_file.read_bytes())
            if os.geteuid() == 0:
                # Run by root, but the daemon is another user, and has to read it as before.
                os.fchown(file.fileno(), path.stat().st_uid, path.stat().st_gid)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise OperatorError(
            f"the storage is under the new key, but {path} could not be replaced "
            f"({error.strerror}); mend that and run this again"
        ) from error
