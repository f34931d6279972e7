"""What a table of the file is: a frozen struct, each field with its default and what it means."""

from collections.abc import Iterator
from typing import Annotated, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the file; a key that is not a field of it is an error."""


def settings_of(table: str, section: Section) -> Iterator[tuple[str, str, object, str]]:
    """Its settings as (table, key, default, description), and then those of the tables in it."""
    hints = get_type_hints(type(section), include_extras=True)
    nested = []
    for name, hint in hints.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            nested.append((f"{table}.{name}" if table else name, value))
        elif get_origin(hint) is Annotated:
            metas = (each for each in get_args(hint)[1:] if isinstance(each, Meta))
            description = next((meta.description for meta in metas if meta.description), "")
            yield table, name, value, description
    for name, inner in nested:
        yield from settings_of(name, inner)
