"""What commands print: tables for people, JSON for programs."""

import sys
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Final

import click
import msgspec
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from primeflowd.instants import from_datetime, rfc3339

_PIPED_WIDTH: Final = 400
_FOLDED: Final = 16
"""A column that may be folded is not made narrower than that."""
_GAP: Final = 2


def print_json(body: bytes) -> None:
    """An answer as it came, indented: every number keeps its spelling."""
    click.echo(msgspec.json.format(body, indent=2))


def print_json_rows(rows: Iterable[bytes]) -> None:
    """Rows as they came, as one array."""
    print_json(b"[" + b",".join(rows) + b"]")


def print_table(
    headings: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: Sequence[str] = ()
) -> None:
    """A table without lines. The columns `numbers` stand to the right; None is shown as `-`.

    Where even folded columns do not fit the screen, a row is one line, which the terminal folds:
    Rich would squeeze them to nothing and leave out what is in them.
    """
    shown = [["-" if cell is None else str(cell) for cell in row] for row in rows]
    least = natural = -_GAP
    table = Table(box=None, pad_edge=False)
    for place, heading in enumerate(headings):
        whole = heading in _WHOLE or heading in numbers
        width = max(map(cell_len, (heading, *(row[place] for row in shown))))
        natural += _GAP + width
        least += _GAP + (width if whole else min(width, _FOLDED))
        table.add_column(
            heading,
            overflow="fold",
            no_wrap=whole,
            justify="right" if heading in numbers else "left",
        )
    for row in shown:
        table.add_row(*row)
    screen = console()
    if screen.width < least:
        screen = Console(width=natural, markup=False, highlight=False)
    screen.print(table)


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


_WHOLE: Final = frozenset(
    {
        "ID",
        "STATUS",
        "STATE",
        "AT",
        "CREATED",
        "NEXT",
        "ATTEMPTS",
        "DESTINATION",
        "LAST USED",
        "REVOKED",
    }
)
"""Columns that are read, or copied, as one word: never folded."""
