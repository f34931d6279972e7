"""`plugins`: the plugins that there are, built-in and installed, and what state they are in."""

import json
import sys
from collections.abc import Iterable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Literal, TypeAlias

import click
import msgspec
from rich.console import Console
from rich.table import Table

from primeflowd import __version__
from primeflowd.cli.options import config_option, load_config
from primeflowd.config import Config
from primeflowd.errors import OperatorError
from primeflowd.plugin_loading import BUILTINS, Registry, distribution, installed, label_of

State: TypeAlias = Literal["built-in", "enabled", "installed", "broken"]


class Row(msgspec.Struct, frozen=True):
    """One plugin.

    Attributes:
        hooks: those it implements; None if it was not imported, or could not be used.
        reason: why it is broken.
    """

    name: str
    distribution: str | None
    version: str | None
    hooks: tuple[str, ...] | None
    state: State
    reason: str | None = None


@click.command()
@click.option("--json", "as_json", is_flag=True, help="A JSON array, for programs.")
@config_option
def plugins(as_json: bool, path: Path | None) -> None:
    """List plugins, built-in and installed, with version, hooks and state.

    States: built-in; enabled; installed, but not named in [plugins] enable; broken, with the
    reason why the daemon would not start. Only enabled plugins are imported: the hooks of others
    show as "-".
    """
    rows = survey(load_config(path)[0])
    if as_json:
        click.echo(json.dumps([msgspec.to_builtins(row) for row in rows], indent=2))
    else:
        _print_table(rows)


def survey(config: Config) -> list[Row]:
    """All plugins: the built-in ones, then the others by name. A broken one is a row like any."""
    registry = Registry()
    rows = [
        Row(name, "primeflowd", __version__, registry.hooks_of(name), "built-in")
        for name in BUILTINS
    ]
    entries = sorted(installed(), key=distribution)
    enabled = set(config.plugins.enable)
    for name in sorted({entry.name for entry in entries} | enabled):
        found = [entry for entry in entries if entry.name == name]
        if name in enabled:
            rows += _enabled(registry, config, name, found)
        else:
            rows += [_row(entry, "installed") for entry in found]
    return rows


def _enabled(
    registry: Registry, config: Config, name: str, found: list[EntryPoint]
) -> Iterable[Row]:
    """The rows of a plugin that is enabled: one, or each distribution that has one of the name."""
    try:
        registry.load(name)
        registry.configure(name, config.plugin_settings.get(name))
    except OperatorError as error:
        if not found:
            return [Row(name, None, None, None, "broken", str(error))]
        return [
            _row(entry, "broken", reason=str(error).removeprefix(f"{label_of(entry)}: "))
            for entry in found
        ]
    return [_row(entry, "enabled", registry.hooks_of(name)) for entry in found]


def _row(
    entry: EntryPoint,
    state: State,
    hooks: tuple[str, ...] | None = None,
    reason: str | None = None,
) -> Row:
    source = entry.dist
    return Row(
        entry.name,
        source.name if source else None,
        source.version if source else None,
        hooks,
        state,
        reason,
    )


def _print_table(rows: list[Row]) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("NAME", "DISTRIBUTION", "VERSION", "HOOKS", "STATE"):
        table.add_column(heading, overflow="fold", no_wrap=heading in ("NAME", "VERSION"))
    for row in rows:
        table.add_row(
            row.name,
            row.distribution or "-",
            row.version or "-",
            "-" if row.hooks is None else " ".join(row.hooks),
            f"{row.state}: {row.reason}" if row.reason else row.state,
        )
    # A pipe gets lines for grep, not a table folded to a screen that is not there.
    width = None if sys.stdout.isatty() else 400
    Console(width=width, markup=False, highlight=False).print(table)
