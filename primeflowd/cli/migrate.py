"""`migrate`: the schema of the storage, brought up to date without a daemon."""

from pathlib import Path

import click

from primeflowd.cli.options import config_option, load_config
from primeflowd.errors import OperatorError
from primeflowd.plugins import Plugins


@click.command()
@click.option("--check", is_flag=True, help="Change nothing; exit with 1 if it is not up to date.")
@config_option
def migrate(check: bool, path: Path | None) -> None:
    """Bring the schema of the storage up to date.

    A daemon does the same when it starts. This is for doing it beforehand: all of it happens in
    one transaction, or nothing. Run it once or on every node at once; one migrates, the others
    wait.
    """
    config, _ = load_config(path)
    plugins = Plugins(config)
    # Not entered: it is only asked whether there is a plugin for the URL.
    plugins.open_storage(config, None)
    state = plugins.migrate_storage(config, check)
    if state is None:
        scheme, _, _ = config.storage_url.partition(":")
        click.echo(f"{scheme}:// has no schema: nothing to migrate")
    elif state.found == state.needed:
        click.echo(f"the schema is up to date: {state.needed}")
    elif not check:
        begun = "made the schema" if state.found is None else f"migrated from {state.found}"
        click.echo(f"{begun}: it is {state.needed} now")
    else:
        found = "there is no schema yet" if state.found is None else f"the schema is {state.found}"
        raise OperatorError(f"{found}, {state.needed} is needed; run primeflowd migrate")
