"""The `[plugins.postgresql]` table: checked once, at start. Pure."""

from collections.abc import Mapping
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from primeflowd.durations import Duration, InvalidDuration
from primeflowd.errors import ConfigError
from primeflowd.instants import SECOND

SHORTEST: Final = 2 * SECOND
LONGEST: Final = 600 * SECOND


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The table, with defaults.

    Attributes:
        pool_size: connections for reading; one for writing and one to be told of other nodes'
            doings are beside them.
        timeout: how long the database may be silent before its connection is given up.
    """

    pool_size: Annotated[int, Meta(ge=1, le=100)] = 4
    timeout: Duration = Duration("10s")

    def outlasts(self, lease: Duration) -> bool:
        """Whether what a node has locked may stay so when its lease is over.

        The database frees it after `timeout`. A lease that is renewed at a third of its time has
        at least the rest of it left.
        """
        return 3 * self.timeout.micros > 2 * lease.micros


def read(table: Mapping[str, Any]) -> Settings:
    """The settings in `table`.

    Raises:
        ConfigError: a key is unknown or has a value that is not allowed; the message begins with
            its name.
    """
    try:
        settings = msgspec.convert(dict(table), Settings, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(str(error))) from error
    if not SHORTEST <= settings.timeout.micros <= LONGEST:
        raise ConfigError(f'timeout: expected from "2s" to "10m", not "{settings.timeout.text}"')
    return settings


def _decode(kind: type, value: object) -> Duration:
    # The one type here that msgspec does not know.
    assert kind is Duration
    if not isinstance(value, str):
        raise ValueError('expected a duration in quotes, as "10s"')
    try:
        return Duration(value)
    except InvalidDuration as error:
        raise ValueError(f'{error}; write it as "10s"') from error


def _explain(message: str) -> str:
    """msgspec's `Expected ... - at `$.key`` as `key: expected ...`, with what is allowed."""
    what, _, where = message.partition(" - at `$")
    key = where.rstrip("`").lstrip(".")
    if what.startswith("Object contains unknown field `"):
        key = what.split("`")[1]
        what = f"unknown key; known here: {', '.join(Settings.__struct_fields__)}"
    return f"{key}: {what[:1].lower()}{what[1:]}"
