"""The `[plugins.archive]` table: checked once, at start. Pure."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta

from primeflowd.durations import Duration, InvalidDuration
from primeflowd.errors import ConfigError

Rotate = Literal["day", "hour"]


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The table, with defaults.

    Attributes:
        directory: where the files are; absolute.
        rotate: a file is finished at the end of the UTC day or hour in which it was begun.
        rotate_bytes: or when the next line would make it larger than this.
        compress: finished files are compressed with gzip.
        fsync: every write is on the disk before the next; else when the kernel sees fit.
        keep_files: of the finished files so many are kept, the newest; None keeps all.
        keep_for: a finished file is removed when it was last written so long ago; None never.
        response_body: whether lines hold the body of the answer.
    """

    directory: str
    rotate: Rotate = "day"
    rotate_bytes: Annotated[int, Meta(ge=1_024)] = 67_108_864
    compress: bool = False
    fsync: bool = False
    keep_files: Annotated[int, Meta(ge=1)] | None = None
    keep_for: Duration | None = None
    response_body: bool = False


def read(table: Mapping[str, Any]) -> Settings:
    """The settings in `table`.

    Raises:
        ConfigError: a key is unknown, missing, or has a value that is not allowed; the message
            begins with its name.
    """
    try:
        settings = msgspec.convert(dict(table), Settings, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(str(error))) from error
    if not Path(settings.directory).is_absolute():
        raise ConfigError(
            f"directory: expected an absolute path, as /var/lib/primeflowd/archive, "
            f'not "{settings.directory}"'
        )
    if settings.keep_for is not None and not settings.keep_for.micros:
        raise ConfigError("keep_for: expected more than nothing; take it out to keep all")
    return settings


def _decode(kind: type, value: object) -> Duration:
    # The one type here that msgspec does not know.
    assert kind is Duration
    if not isinstance(value, str):
        raise ValueError('expected a duration in quotes, as "90d"')
    try:
        return Duration(value)
    except InvalidDuration as error:
        raise ValueError(f'{error}; write it as "36h" or "90d"') from error


def _explain(message: str) -> str:
    """msgspec's `Expected ... - at `$.key`` as `key: expected ...`, with what is allowed."""
    what, _, where = message.partition(" - at `$")
    key = where.rstrip("`").lstrip(".")
    if what.startswith("Object contains unknown field `"):
        key = what.split("`")[1]
        what = f"unknown key; known here: {', '.join(Settings.__struct_fields__)}"
    elif what.startswith("Object missing required field `"):
        key = what.split("`")[1]
        what = "it is missing"
    elif what.startswith("Invalid enum value "):
        allowed = " or ".join(f'"{value}"' for value in get_args(Rotate))
        what = f"expected {allowed}, not {what.removeprefix('Invalid enum value ')}"
    return f"{key}: {what[:1].lower()}{what[1:]}"
