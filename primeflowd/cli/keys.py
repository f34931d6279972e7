"""`keys`: API keys, made and revoked in storage, while a daemon runs or before it ever did."""

import json
from pathlib import Path

import click
import msgspec

from primeflowd import access_keys
from primeflowd.cli.options import config_option, load_config
from primeflowd.cli.output import print_table, when
from primeflowd.cli.visit import visit
from primeflowd.cli.whole_help import WholeHelp
from primeflowd.clock import SystemClock
from primeflowd.errors import OperatorError
from primeflowd.hookspecs import Tx
from primeflowd.instants import rfc3339
from primeflowd.model import ApiKey


@click.group(cls=WholeHelp)
def keys() -> None:
    """Make, list and revoke API keys."""


@keys.command()
@click.option("--org", required=True, help="Org it acts for; '*' makes an operator key.")
@click.option("--scope", "scopes", metavar="SCOPE", multiple=True, help="Repeatable; else admin.")
@click.option("--label", help="What it is for.")
@config_option
def create(org: str, scopes: tuple[str, ...], label: str | None, path: Path | None) -> None:
    """Make a key and print it, the only time that it is shown."""
    key, plain = access_keys.new_key(org, scopes or ("admin",), label, SystemClock().now())
    visit(load_config(path)[0], lambda storage: storage.write(lambda tx: tx.put_key(key)))
    click.echo(plain)


@keys.command("list")
@click.option("--org", help="Only this org's.")
@click.option("--json", "as_json", is_flag=True, help="A JSON array, for programs.")
@config_option
def list_keys(org: str | None, as_json: bool, path: Path | None) -> None:
    """List keys, newest first, revoked ones too."""
    found = visit(load_config(path)[0], lambda storage: storage.read(lambda tx: tx.keys(org)))
    if as_json:
        click.echo(json.dumps([_as_json(key) for key in found], indent=2))
    else:
        _print_table(found)


@keys.command()
@click.argument("key_id", metavar="ID")
@config_option
def revoke(key_id: str, path: Path | None) -> None:
    """Revoke the key with this id; `keys list` shows ids."""
    now = SystemClock().now()

    def revoke_in(tx: Tx) -> None:
        key = next((key for key in tx.keys(None) if key.id == key_id), None)
        if key is None:
            raise OperatorError(f"no key has the id {key_id!r}")
        if key.revoked_at is None:
            tx.put_key(msgspec.structs.replace(key, revoked_at=now))

    visit(load_config(path)[0], lambda storage: storage.write(revoke_in))
    click.echo(f"revoked {key_id}")


def _as_json(key: ApiKey) -> dict[str, object]:
    return {
        "id": key.id,
        "org_id": key.org_id,
        "key_prefix": key.key_prefix,
        "scopes": key.scopes,
        "label": key.label,
        "created_at": rfc3339(key.created_at),
        "revoked_at": None if key.revoked_at is None else rfc3339(key.revoked_at),
    }


def _print_table(found: list[ApiKey]) -> None:
    print_table(
        ("ID", "ORG", "KEY", "SCOPES", "LABEL", "CREATED", "REVOKED"),
        [
            (
                key.id,
                key.org_id,
                key.key_prefix + "…",
                " ".join(key.scopes),
                key.label,
                when(rfc3339(key.created_at)),
                None if key.revoked_at is None else when(rfc3339(key.revoked_at)),
            )
            for key in found
        ],
    )
