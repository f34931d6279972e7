"""`batches`: one batch with its callback's history."""

from typing import Any

import click
import msgspec

from primeflowd.cli.client import Api, decoded, with_api
from primeflowd.cli.deliveries import print_deliveries
from primeflowd.cli.options import json_option
from primeflowd.cli.output import print_json
from primeflowd.cli.whole_help import WholeHelp


@click.group(cls=WholeHelp)
def batches() -> None:
    """Look at batches."""


@batches.command()
@click.argument("batch", metavar="ID")
@json_option
@with_api
def show(api: Api, batch: str, as_json: bool) -> None:
    """Show one batch, and the deliveries of its callback."""
    answer = api.get(f"/v1/batches/{batch}")
    history = api.get(f"/v1/batches/{batch}/callback")
    if as_json:
        print_json(b'{"batch":' + answer + b',"deliveries":' + history + b"}")
        return
    # Raw: what the client gave is shown as it gave it.
    for name, value in msgspec.json.decode(answer, type=dict[str, msgspec.Raw]).items():
        if bytes(value) != b"null":
            click.echo(f"{name + ':':21}{_plain(bytes(value))}")
    click.echo()
    found: list[Any] = decoded(history)
    if found:
        print_deliveries(found)
    else:
        click.echo("no delivery of its callback was made")


def _plain(value: bytes) -> str:
    return msgspec.json.decode(value, type=str) if value.startswith(b'"') else value.decode()
