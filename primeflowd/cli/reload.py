"""`reload`: have a running daemon read its configuration anew."""

import click

from primeflowd.cli.client import Api, decoded, with_api
from primeflowd.cli.options import json_option
from primeflowd.cli.output import print_json


@click.command()
@json_option
@with_api
def reload(api: Api, as_json: bool) -> None:
    """Have a running daemon read its configuration anew, and say what that changed.

    A file that it refuses changes nothing; the command then says why, and exits with 1. Settings
    that only a restart changes are named. It takes an operator key (--org '*').

    What is reloaded is the daemon's own file; --config says here only where its API is, whatever
    else in it is wrong. Of several daemons on one port it is one: send the others SIGHUP, which
    does the same.
    """
    answer = api.post("/v1/reload")
    if as_json:
        print_json(answer)
        return
    done = decoded(answer)
    for name in done["changed"]:
        click.echo(f"changed: {name}")
    for name, reason in done["needs_restart"].items():
        click.echo(f"needs a restart: {name} ({reason})")
    if not done["changed"] and not done["needs_restart"]:
        click.echo("nothing has changed")
