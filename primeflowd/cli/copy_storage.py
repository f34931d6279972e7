"""`copy-storage`: everything that one storage holds, into another, and proof that it arrived.

sql/copying.py says how a copy survives being cut short. Here are what must not be: the wrong
storage on either side, a daemon at work on one of them, a difference that nobody is told of.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import click
import msgspec
import trio
from msgspec.structs import replace
from rich.console import Console
from rich.table import Table

from primeflowd.cli.master_key import key_file
from primeflowd.cli.options import config_option, load_config
from primeflowd.cli.progress import Progress
from primeflowd.config import Config
from primeflowd.errors import OperatorError, StorageInUse, StorageUnavailable, UniqueViolation
from primeflowd.keyring import ENVIRONMENT
from primeflowd.plugins import Plugins
from primeflowd.sql import copying
from primeflowd.sql.copying import Position
from primeflowd.sql.pages import TABLES, Reader, Sum
from primeflowd.sql.storage import SqlStorage

T = TypeVar("T")

_SECRET_PARAMETERS: Final = ("user=", "password=", "passfile=", "sslpassword=")


class Comparison(msgspec.Struct, frozen=True):
    """Of a table, what either side holds."""

    table: str
    source: Sum
    target: Sum

    @property
    def is_same(self) -> bool:
        return self.source.is_of_same(self.target)


@click.command("copy-storage")
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@config_option
def copy_storage(source: str, target: str, path: Path | None) -> None:
    """Copy everything in the storage FROM into TO, which is empty. Daemons must be stopped.

    Both are URLs as in storage.url: sqlite:///PATH, or one of a plugin that the configuration
    enables.

    If it was cut short, run it again: it goes on where it stood. In the end it compares the two,
    table by table, and exits with 1 if they differ.
    """
    config, _ = load_config(path)
    if _name("FROM", source) == _name("TO", target):
        raise OperatorError("FROM and TO are the same storage")
    plugins = Plugins(config)
    with _about("FROM"):
        _refuse_missing(plugins, _using(config, source))
    was_complete, found = trio.run(_copy_and_compare, plugins, config, source, target)
    _print_table(found)
    differing = [each.table for each in found if not each.is_same]
    if differing:
        when = "since the copy was made" if was_complete else "while it was copied"
        raise OperatorError(
            f"FROM and TO differ in {', '.join(differing)}: one of them was changed {when}; copy "
            "into an empty storage again"
        )
    click.echo("the copy was complete already" if was_complete else "the copy is complete")
    click.echo("set storage.url to TO; a daemon on FROM would send the same callbacks again")
    key = key_file(config) or f"${ENVIRONMENT}"
    click.echo(f"the master key is not in the storage: nodes on TO need the one of FROM, {key}")


async def _copy_and_compare(
    plugins: Plugins, config: Config, source: str, target: str
) -> tuple[bool, list[Comparison]]:
    """Whether an earlier run had copied everything, and how the two compare now."""
    async with AsyncExitStack() as stack:
        with _about("FROM"):
            of_source = await _enter(stack, plugins, _using(config, source))
            await _refuse_unfinished(of_source)
        with _about("TO"):
            of_target = await _enter(stack, plugins, _using(config, target))
            position = await _in_thread(copying.begin, of_target.writing, _name("FROM", source))
        reader, was_complete = Reader(of_source.reading), position.table is None
        with _about("FROM"):
            counts = [await _in_thread(reader.count, table) for table in TABLES]
        if not was_complete:
            await _copy(reader, of_target, position, sum(counts))
        found = await _compare(reader, Reader(of_target.reading), sum(counts))
        for label, storage in (("FROM", of_source), ("TO", of_target)):
            with _about(label):
                await _refuse_nodes(storage)
    return was_complete, found


async def _copy(reader: Reader, target: SqlStorage, position: Position, total: int) -> None:
    if position.rows:
        click.echo(f"going on after {position.rows:,} rows of an earlier run", err=True)
    with Progress("copying", total, position.rows) as progress:
        while (table := position.current) is not None:
            with _about("FROM"):
                page = await _in_thread(reader.page, table, position.after)
            with _about("TO"):
                position = await _in_thread(copying.put_page, target.writing, position, page)
            if page is not None:
                progress.show(table.name, position.rows, position.octets)


async def _compare(source: Reader, target: Reader, total: int) -> list[Comparison]:
    found: list[Comparison] = []
    rows = octets = 0
    with Progress("comparing", 2 * total) as progress:
        for table in TABLES:
            sums: list[Sum] = []
            for label, reader in (("FROM", source), ("TO", target)):
                so_far = Sum()
                with _about(label):
                    while more := await _in_thread(reader.add_page, table, so_far):
                        so_far = more
                        progress.show(table.name, rows + so_far.rows, octets + so_far.octets)
                sums.append(so_far)
                rows, octets = rows + so_far.rows, octets + so_far.octets
            found.append(Comparison(table.name, *sums))
    return found


async def _enter(stack: AsyncExitStack, plugins: Plugins, config: Config) -> SqlStorage:
    storage = await stack.enter_async_context(plugins.open_storage(config, None))
    if not isinstance(storage, SqlStorage):
        raise OperatorError("only a storage in a database with SQL can be copied")
    await _refuse_nodes(storage)
    return storage


def _refuse_missing(plugins: Plugins, config: Config) -> None:
    """Opening it would make a storage of a slip of the pen."""
    # Not entered: it is only asked whether there is a plugin for the URL.
    plugins.open_storage(config, None)
    state = plugins.migrate_storage(config, check=True)
    if state is not None and state.found is None:
        raise OperatorError("there is no storage")


async def _refuse_unfinished(storage: SqlStorage) -> None:
    position = await _in_thread(copying.find_position, storage.reading)
    if position is not None and position.table is not None:
        raise OperatorError(f"it is half a copy of {position.source}; finish that one first")


async def _refuse_nodes(storage: SqlStorage) -> None:
    nodes = await storage.read(lambda tx: tx.nodes())
    if nodes:
        raise StorageInUse(
            f"a daemon uses it ({', '.join(nodes)}); stop that one, and copy again. One that was "
            "killed counts for as long as storage.lease_ttl"
        )


def _using(config: Config, url: str) -> Config:
    return replace(config, storage=replace(config.storage, url=url))


def _name(label: str, url: str) -> str:
    """The storage, by what tells it from others; without a user or a password."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise OperatorError(f"{label}: a storage is named by a URL, as sqlite:///PATH")
    if scheme == "sqlite":
        return f"sqlite:///{Path(rest.removeprefix('/')).resolve()}"
    # Whatever stands in a password, the last @ ends it.
    place, _, parameters = rest.rpartition("@")[2].partition("?")
    kept = [one for one in parameters.split("&") if one and not one.startswith(_SECRET_PARAMETERS)]
    return f"{scheme}://{place}" + ("?" + "&".join(kept) if kept else "")


@contextmanager
def _about(label: str) -> Iterator[None]:
    """Say of what went wrong on which side it did."""
    try:
        yield
    except (OperatorError, StorageUnavailable, UniqueViolation) as error:
        text = str(error).removeprefix("storage.url: ")
        raise OperatorError(f"{label}: {text}") from error


async def _in_thread(function: Callable[..., T], *arguments: object) -> T:
    return await trio.to_thread.run_sync(partial(function, *arguments))


def _print_table(found: list[Comparison]) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("TABLE")
    for heading in ("ROWS IN FROM", "BYTES IN FROM", "ROWS IN TO", "BYTES IN TO"):
        table.add_column(heading, justify="right")
    table.add_column("COMPARED")
    for each in found:
        figures = (each.source.rows, each.source.octets, each.target.rows, each.target.octets)
        verdict = "same" if each.is_same else "DIFFERENT"
        table.add_row(each.table, *(f"{figure:,}" for figure in figures), verdict)
    # A pipe gets lines for grep, not a table folded to a screen that is not there.
    width = None if sys.stdout.isatty() else 250
    Console(width=width, markup=False, highlight=False).print(table)
