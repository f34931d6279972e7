"""`secrets list`, `create`, `promote` and `disable`: an org's signing secrets, by the API."""

from typing import Final

import click

from primeflowd.cli.client import Api, decoded, with_api
from primeflowd.cli.options import json_option
from primeflowd.cli.output import print_json, print_json_rows, print_table, when

_PATH: Final = "/v1/callback-secrets"


@click.command("list")
@json_option
@with_api
def list_secrets(api: Api, as_json: bool) -> None:
    """List the org's signing secrets, newest first; never what they are."""
    # A handful, but the API pages them like everything else.
    found = api.rows(_PATH, 10_000)
    if as_json:
        print_json_rows(found)
        return
    print_table(
        ("ID", "SECRET", "STATE", "LABEL", "CREATED", "LAST USED"),
        [
            (
                each["id"],
                each["key_prefix"] + "…",
                "disabled"
                if each["disabled_at"]
                else "current"
                if each["is_current"]
                else "enabled",
                each["label"],
                when(each["created_at"]),
                when(each["last_used_at"]),
            )
            for each in map(decoded, found)
        ],
    )


@click.command()
@click.option("--label", help="What it is for.")
@json_option
@with_api
def create(api: Api, label: str | None, as_json: bool) -> None:
    """Make a signing secret and print it, the only time that it is shown.

    The first of an org signs from now on; later ones sign when they are promoted.
    """
    answer = api.post(_PATH, {} if label is None else {"label": label})
    if as_json:
        print_json(answer)
        return
    made = decoded(answer)
    click.echo(made["plain_secret"])
    state = "current" if made["is_current"] else "not current: promote it when its receiver has it"
    click.echo(f"{made['id']}: {state}", err=True)


@click.command()
@click.argument("secret", metavar="ID")
@json_option
@with_api
def promote(api: Api, secret: str, as_json: bool) -> None:
    """Make a secret the current one, which new deliveries are signed with first."""
    answer = api.patch(f"{_PATH}/{secret}", {"is_current": True})
    print_json(answer) if as_json else click.echo(f"{secret} is current")


@click.command()
@click.argument("secret", metavar="ID")
@with_api
def disable(api: Api, secret: str) -> None:
    """Sign nothing with a secret any more, for good."""
    api.delete(f"{_PATH}/{secret}")
    click.echo(f"disabled {secret}")
