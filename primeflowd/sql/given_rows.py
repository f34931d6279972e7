"""Statements that are given many rows of values, at little cost.

Two things make a row dear where sqlite3 is the driver, dearer than what SQLite does with it. It
lets go of the interpreter's lock for each run of a statement, however short, and a thread that
wants it back waits for the others; so one run is given several rows. And it takes each value by
itself, at a tenth of a microsecond and more; so a value that many rows have in common, such as
their org, their instant or that they have none, is given once for all rows of a run.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, compress
from operator import not_
from typing import Any, Final

SIZES: Final = (64, 16, 4, 1)
"""How many rows one run is given: as many as are left, so many at a time."""

MANY: Final = 16
"""From so many rows on it is worth finding out what they have in common: each selection of columns
takes a statement of its own, and the fewer the rows, the more selections there are."""


class Given:
    """A statement.

    Attributes:
        one: its text for one row.
    """

    def __init__(self, one: str, names: Sequence[str], several: str | None) -> None:
        """
        Args:
            names: of the values in a row, as SQL has them.
            several: its text for several rows, with `{names}` where it wants those, separated by
                commas, and `{rows}` for a list of rows. None where this driver gains nothing.
        """
        self.one: Final = one
        self._names = names
        self._several = several
        self._nothing = (False,) * len(names)
        # A few selections make up nearly all groups, and sqlite3 keeps 128 statements prepared.
        self._text: Callable[[tuple[bool, ...], int], str] = lru_cache(maxsize=32)(self._numbered)

    def runs(self, rows: Sequence[Sequence[Any]]) -> Iterator[tuple[str, Sequence[Sequence[Any]]]]:
        """Texts that together are given these rows, each with what its runs take. Of many rows no
        two may be the same."""
        if self._several is None or len(rows) < SIZES[-2]:
            yield self.one, rows
            return
        columns = list(zip(*rows, strict=True))
        shared, common = self._nothing, ()
        if len(rows) >= MANY:
            shared = tuple([_is_one_value(column) for column in columns])
            common = tuple([column[0] for column in compress(columns, shared)])
            columns = list(compress(columns, map(not_, shared)))
        begin = 0
        for size in SIZES:
            end = begin + (len(rows) - begin) // size * size
            if begin < end:
                yield (
                    self._text(shared, size),
                    [
                        (*chain(common, *[column[at : at + size] for column in columns]),)
                        for at in range(begin, end, size)
                    ],
                )
            begin = end

    def _numbered(self, shared: tuple[bool, ...], size: int) -> str:
        """Text for `size` rows: first come the values that they share, then, column by column, each
        row's. Values taken so need not be made rows again."""
        assert self._several is not None
        names = [*compress(self._names, shared), *compress(self._names, map(not_, shared))]
        common = sum(shared)
        own = len(names) - common
        rows = []
        for first in range(common, common + size):
            numbers = [*range(common), *range(first, first + size * own, size)]
            rows.append(f"({', '.join(f'?{number + 1}' for number in numbers)})")
        return self._several.format(names=", ".join(names), rows=", ".join(rows))


def _is_one_value(column: Sequence[Any]) -> bool:
    # Most that are not differ at their ends.
    return bool(column[0] == column[-1]) and column.count(column[0]) == len(column)
