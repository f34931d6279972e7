"""From TOML to a Config. An error names the file, the key's path and what is allowed."""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, get_args, get_type_hints

import msgspec

from primeflowd import extra_headers
from primeflowd.callback_url import destination_of
from primeflowd.config.checks import check, parse_bind
from primeflowd.config.delivery import DestinationSettings
from primeflowd.config.tables import Api, Config, Plugins
from primeflowd.durations import MAX_DELAY, MIN_DELAY, Duration, InvalidDuration
from primeflowd.errors import ConfigError

DEFAULT_PATHS: Final = (Path("primeflowd.toml"), Path("/etc/primeflowd/config.toml"))
"""Where a config file is looked for when none is named."""


def load(path: Path) -> Config:
    """Read and check the file at `path`.

    Raises:
        ConfigError: unreadable, not TOML, or a setting is unknown or not allowed.
    """
    return from_mapping(_tables(path), str(path))


def bind_in(path: Path) -> str:
    """`[api] bind` of the file at `path`, whatever else in it is not allowed: who asks a daemon
    that runs needs no more of its file, and one that was changed and is refused stands there still.

    Raises:
        ConfigError: unreadable, not TOML, or the address itself is not allowed.
    """
    table = _tables(path).get("api", {})
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: api: expected a table")
    bind = table.get("bind", Api().bind)
    if not isinstance(bind, str):
        raise ConfigError(f"{path}: api.bind: expected text in quotes")
    parse_bind(bind, str(path))
    return bind


def _tables(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text: {error}") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error


def from_mapping(tables: Mapping[str, Any], origin: str = "config") -> Config:
    """Check settings that are already parsed. `origin` stands for the file in messages.

    Raises:
        ConfigError: a setting is unknown or not allowed.
    """
    tables = dict(tables)
    if "plugin_settings" in tables:
        raise ConfigError(f"{origin}: plugin_settings: unknown key")
    plugins = tables.get("plugins")
    if isinstance(plugins, dict):
        # A table is some plugin's own and checked by it; anything else is ours.
        theirs = {
            name: value
            for name, value in plugins.items()
            if isinstance(value, dict) and name not in Plugins.__struct_fields__
        }
        tables["plugin_settings"] = theirs
        tables["plugins"] = {k: v for k, v in plugins.items() if k not in theirs}
    tables["destinations"] = _destinations(tables.get("destinations", {}), origin)
    try:
        config = msgspec.convert(tables, Config, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{origin}: {_explain(str(error))}") from error
    check(config, origin)
    return config


def _destinations(tables: Any, origin: str) -> dict[str, DestinationSettings]:
    """The tables of destinations, by the names that deliveries have for them."""
    if not isinstance(tables, dict):
        raise ConfigError(f'{origin}: destinations: expected tables, as [destinations."URL"]')
    found: dict[str, DestinationSettings] = {}
    for name, table in tables.items():
        where = f'{origin}: destinations."{name}"'
        try:
            destination = destination_of(name)
            checked = destination_settings(table)
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from error
        if destination in found:
            raise ConfigError(f"{where}: {destination} has a table already")
        found[destination] = checked
    # A table in which nothing is set is as none.
    return {name: each for name, each in found.items() if each != DestinationSettings()}


def destination_settings(values: Any) -> DestinationSettings:
    """Settings of a destination from their plain values.

    Raises:
        ValueError: one is unknown or not allowed; the message begins with its name.
    """
    try:
        found = msgspec.convert(values, DestinationSettings, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise ValueError(_explain(str(error), DestinationSettings)) from error
    try:
        extra_headers.check(found.headers)
    except ValueError as error:
        raise ValueError(f"headers: {error}") from error
    for name in ("timeout", "disable_after"):
        length = getattr(found, name).micros
        if length and not MIN_DELAY <= length <= MAX_DELAY:
            raise ValueError(f"{name}: expected 1ms to 30d, or 0s")
    if not found.disabled.isprintable():
        raise ValueError("disabled: printable characters only")
    return found


def _decode(kind: type, value: object) -> object:
    if kind is Duration:
        if not isinstance(value, str):
            raise ValueError('expected a duration in quotes, as "30s" or "1h30m"')
        try:
            return Duration(value)
        except InvalidDuration as error:
            raise ValueError(f'{error}; write it as "30s", "500ms" or "1h30m"') from error
    raise NotImplementedError(kind)


def _explain(message: str, root: Any = Config) -> str:
    """msgspec's `Expected ... - at `$.a.b`` as `a.b: expected ...`, with what is allowed."""
    what, at, where = message.rpartition(" - at `$")
    if not at:
        what, where = message, ""
    path = where.rstrip("`").lstrip(".")
    if what.startswith("Object contains unknown field `"):
        fields = _declared(path, root).__struct_fields__
        known = [key for key in fields if key != "plugin_settings"]
        key = what.split("`")[1]
        path = f"{path}.{key}" if path else key
        what = f"unknown key; known here: {', '.join(known)}"
    elif what.startswith("Invalid enum value "):
        allowed = ", ".join(f'"{value}"' for value in get_args(_declared(path, root)))
        what = f"expected one of {allowed}, not {what.removeprefix('Invalid enum value ')}"
    what = _KIND.sub(lambda found: _IN_WORDS.get(found[1], found[0]), what[:1].lower() + what[1:])
    return f"{path}: {what}" if path else what


_KIND: Final = re.compile(r"`([a-z]+)(?: \| null)?`")
_IN_WORDS: Final = {
    "array": "a list",
    "bool": "true or false",
    "date": "a date",
    "datetime": "a time",
    "float": "a number",
    "int": "a whole number",
    "object": "a table",
    "str": "text in quotes",
}
"""What msgspec calls by the names of Python and JSON, for people who write TOML."""


def _declared(path: str, root: Any) -> Any:
    """The type that is declared for `a.b`, without its Meta; `root` itself for the empty path."""
    kind: Any = root
    for name in filter(None, path.split(".")):
        kind = get_type_hints(kind)[name]
    return kind
