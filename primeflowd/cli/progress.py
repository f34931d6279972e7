"""How far a long job is, told on standard error: a bar on a terminal, else a line now and then."""

import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Final, Self

import click
from rich import filesize
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

_INTERVAL: Final = 10.0
"""Seconds between lines."""


class Progress:
    """Of a job over so many rows in several tables (or what `unit` says), of which some may be done
    already."""

    def __init__(
        self,
        doing: str,
        total: int,
        done: int = 0,
        unit: str = "rows",
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._doing = doing
        self._total = total
        self._done = done
        self._unit = unit
        self._monotonic = monotonic
        self._began = monotonic()
        self._table = ""
        self._told = self._began
        self._bar = (
            Bar(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[state]}"),
                console=Console(stderr=True, markup=False, highlight=False),
                expand=True,
            )
            if sys.stderr.isatty()
            else None
        )

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
            self._bar.add_task("", total=max(self._total, 1), completed=self._done, state="")
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, table: str, rows: int, octets: int) -> None:
        """So far as many rows and bytes are done in all, in earlier runs too."""
        parts = [filesize.decimal(octets), *self._pace(rows)]
        if self._bar is not None:
            # The bar itself tells which part of the whole it is.
            state = ", ".join([f"{rows:,} {self._unit}", *parts])
            self._bar.update(self._bar.task_ids[0], description=table, completed=rows, state=state)
        elif table != self._table or self._monotonic() - self._told >= _INTERVAL:
            self._told = self._monotonic()
            state = ", ".join([f"{rows:,} of {self._total:,} {self._unit}", *parts])
            click.echo(f"{self._doing} {table}: {state}", err=True)
        self._table = table

    def _pace(self, rows: int) -> list[str]:
        elapsed = self._monotonic() - self._began
        if rows <= self._done or elapsed <= 0:
            return []
        rate = (rows - self._done) / elapsed
        left = timedelta(seconds=round(max(self._total - rows, 0) / rate))
        return [f"{rate:,.0f} {self._unit}/s", f"{left} left"]
