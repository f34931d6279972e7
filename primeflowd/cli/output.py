"""What commands print: tables for people, JSON for programs."""

import sys
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final

import click
import msgspec
from rich.console import Console
from rich.table import Table

from primeflowd.instants import from_datetime, rfc3339

_PIPED_WIDTH: Final = 400


def print_json(body: bytes) -> None:
    """An answer as it came, indented: every number keeps its spelling."""
    click.echo(msgspec.json.format(body, indent=2))


def print_json_rows(rows: Iterable[bytes]) -> None:
    """Rows as they came, as one array."""
    print_json(b"[" + b",".join(rows) + b"]")


def print_table(
    headings: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: Sequence[str] = ()
) -> None:
    """A table without lines. The columns `numbers` stand to the right; None is shown as `-`."""
    table = Table(box=None, pad_edge=False)
    for heading in headings:
        whole = heading in _WHOLE or heading in numbers
        table.add_column(
            heading,
            overflow="fold",
            no_wrap=whole,
            justify="right" if heading in numbers else "left",
        )
    for row in rows:
        table.add_row(*("-" if cell is None else str(cell) for cell in row))
    console().print(table)


def console() -> Console:
    """Standard output. A pipe gets lines for grep, not what is folded to a screen."""
    width = None if sys.stdout.isatty() else _PIPED_WIDTH
    return Console(width=width, markup=False, highlight=False)


def when(instant: str | None, *, ahead: bool = False) -> str | None:
    """An instant of the API to the second, for a column; one `ahead` is not told too early."""
    if instant is None or "." not in instant:
        return instant
    whole = datetime.fromisoformat(instant).replace(microsecond=0)
    return rfc3339(from_datetime(whole + timedelta(seconds=ahead)))


_WHOLE: Final = frozenset({"ID", "STATUS", "STATE", "AT", "CREATED", "NEXT"})
"""Columns that are read as one word: never folded."""
