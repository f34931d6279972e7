"""Values of model.py as rows of tables.py, and back.

A row is a sequence in the order of the struct's fields, which statements over values name their
columns in: so msgspec can make it in a tenth of the time that it takes to read the fields one by
one. It is on the way of every callback.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, Final, Generic, TypeVar

import msgspec
from msgspec.structs import astuple, replace
from sqlalchemy import Boolean, Column, Table

from primeflowd import model, payload
from primeflowd.sql import tables

S = TypeVar("S", bound=msgspec.Struct)

_strings: Final = msgspec.json.Decoder(tuple[str, ...])


@lru_cache(maxsize=4096)
def _encoded(strings: tuple[str, ...]) -> str:
    return msgspec.json.encode(strings).decode()


@lru_cache(maxsize=4096)
def _decoded(text: str) -> tuple[str, ...]:
    return _strings.decode(text)


class Rows(Generic[S]):
    """Translates one struct. `strings` names its field that holds a tuple of strings, if any."""

    def __init__(self, struct: type[S], table: Table, strings: str | None = None) -> None:
        self.table = table
        self.names: Final = struct.__struct_fields__
        self.columns: Final[tuple[Column[Any], ...]] = tuple(table.c[name] for name in self.names)
        self._struct = struct
        self._strings = self.names.index(strings) if strings else None
        # Statements run as text give what the database has: 0 and 1 in SQLite.
        self._booleans = tuple(c.name for c in table.columns if isinstance(c.type, Boolean))

    def row(self, value: S) -> Sequence[Any]:
        [row] = self.rows([value])
        return row

    def rows(self, values: Iterable[S]) -> list[Sequence[Any]]:
        at = self._strings
        if at is None:
            return list(map(astuple, values))
        found: list[Sequence[Any]] = []
        for value in values:
            row = list(astuple(value))
            row[at] = _encoded(row[at])
            found.append(row)
        return found

    def mapping(self, value: S) -> dict[str, Any]:
        return dict(zip(self.names, self.row(value), strict=True))

    def value(self, row: Any) -> S:
        fields = dict(zip(self.names, row, strict=True))
        if self._strings is not None:
            name = self.names[self._strings]
            fields[name] = _decoded(fields[name])
        for name in self._booleans:
            fields[name] = bool(fields[name])
        return self._struct(**fields)


class BatchRows(Rows[model.Batch]):
    """Of an ended batch the payload alone is stored, and what it has in it is not stored beside it:
    that would be the larger part of all that is written for most callbacks, twice."""

    def __init__(self) -> None:
        super().__init__(model.Batch, tables.batches)
        self._metadata, self._output = map(self.names.index, ("metadata", "output"))

    def rows(self, values: Iterable[model.Batch]) -> list[Sequence[Any]]:
        """As it is with all."""
        found: list[Sequence[Any]] = []
        for batch in values:
            row: Sequence[Any] = astuple(batch)
            if payload.repeats(batch):
                row = list(row)
                row[self._metadata] = row[self._output] = None
            found.append(row)
        return found

    def value(self, row: Any) -> model.Batch:
        """As it is with all."""
        batch = super().value(row)
        # A batch that had its metadata before it ended still has it in its row.
        if batch.payload is None or not (batch.output is None or batch.metadata is None):
            return batch
        output, metadata = payload.carried(batch.payload)
        return replace(
            batch,
            output=output if batch.output is None else batch.output,
            metadata=metadata if batch.metadata is None else batch.metadata,
        )


BATCHES: Final = BatchRows()
ITEMS: Final = Rows(model.Item, tables.items)
DELIVERIES: Final = Rows(model.Delivery, tables.deliveries, strings="delays")
ATTEMPTS: Final = Rows(model.Attempt, tables.attempts)
POLICIES: Final = Rows(model.RetryPolicy, tables.policies, strings="delays")
DESTINATION_POLICIES: Final = Rows(model.DestinationPolicy, tables.destination_policies)
SECRETS: Final = Rows(model.SigningSecret, tables.secrets)
KEYS: Final = Rows(model.ApiKey, tables.keys, strings="scopes")
ANSWERS: Final = Rows(model.StoredAnswer, tables.answers)
RECOVERIES: Final = Rows(model.Recovery, tables.recoveries)
