"""The `[plugins.json-verdict]` table: checked once, at start, and ready to be asked. Pure."""

import fnmatch
import re
from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias, get_args

import msgspec

from primeflowd.durations import InvalidDuration, parse
from primeflowd.errors import ConfigError
from primeflowd.instants import Micros

Decision: TypeAlias = Literal["success", "retry", "fail"]

_CLASS: Final = re.compile(r"([2-9])xx")
_DEFAULT_PORTS: Final = (("https://", ":443"), ("http://", ":80"))


class RuleTable(msgspec.Struct, forbid_unknown_fields=True):
    status: tuple[int | str, ...]
    verdict: Decision
    destination: str = "*"
    reason_detail: str | None = None
    wait: str | None = None


class Table(msgspec.Struct, forbid_unknown_fields=True):
    trust_body: bool = True
    content_types: tuple[str, ...] = ("application/json", "application/*+json")
    rules: tuple[RuleTable, ...] = ()


class Rule(msgspec.Struct, frozen=True):
    """What the operator says about some answers of some destinations.

    Attributes:
        name: where it stands in the table, as `rules[0]`.
        wait: before the next attempt, at least; None leaves it to the receiver.
    """

    name: str
    destination: re.Pattern[str]
    statuses: frozenset[int]
    verdict: Decision
    reason_detail: str | None
    wait: Micros | None


class Settings(msgspec.Struct, frozen=True):
    """The table. `content_types` are the media types, in lower case, of bodies to be read."""

    trust_body: bool
    content_types: tuple[re.Pattern[str], ...]
    rules: tuple[Rule, ...]

    def rule_for(self, destination: str, status: int) -> Rule | None:
        """The first rule that is about this answer."""
        spellings: tuple[str, ...] | None = None
        for rule in self.rules:
            if status in rule.statuses:
                spellings = spellings or _spellings(destination)
                if any(map(rule.destination.match, spellings)):
                    return rule
        return None


def read(table: Mapping[str, Any]) -> Settings:
    """The settings in `table`.

    Raises:
        ConfigError: a key is unknown, missing, or has a value that is not allowed; the message
            begins with its path.
    """
    try:
        checked = msgspec.convert(dict(table), Table)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(str(error))) from error
    return Settings(
        checked.trust_body,
        tuple(map(_glob, checked.content_types)),
        tuple(_rule(f"rules[{index}]", rule) for index, rule in enumerate(checked.rules)),
    )


def _rule(name: str, table: RuleTable) -> Rule:
    if not table.status:
        raise ConfigError(f"{name}.status: names no status, so that the rule would never apply")
    detail = table.reason_detail
    if detail is not None:
        if table.verdict == "success":
            raise ConfigError(f'{name}.reason_detail: a "success" has no reason; take it out')
        if not detail or not detail.isprintable():
            raise ConfigError(f"{name}.reason_detail: expected a line of printable text")
    return Rule(
        name=name,
        destination=_destination(name, table.destination),
        statuses=frozenset().union(
            *(_statuses(f"{name}.status[{n}]", entry) for n, entry in enumerate(table.status))
        ),
        verdict=table.verdict,
        reason_detail=detail,
        wait=_wait(name, table),
    )


def _destination(name: str, pattern: str) -> re.Pattern[str]:
    # A path is what people paste; no destination has one, and the rule would never apply.
    scheme, separator, rest = pattern.rpartition("://")
    if "/" in rest or (separator and not scheme) or not pattern:
        raise ConfigError(
            f"{name}.destination: expected scheme://host or scheme://host:port without a path, "
            f'with * and ? as wildcards, not "{pattern}"'
        )
    return _glob(pattern)


def _statuses(key: str, entry: int | str) -> frozenset[int]:
    if isinstance(entry, int) and 200 <= entry <= 999:
        return frozenset({entry})
    if isinstance(entry, str) and (hundreds := _CLASS.fullmatch(entry)):
        first = int(hundreds[1]) * 100
        return frozenset(range(first, first + 100))
    raise ConfigError(f'{key}: expected a status, as 409, or a class of them, as "5xx"')


def _wait(name: str, table: RuleTable) -> Micros | None:
    if table.wait is None:
        return None
    if table.verdict != "retry":
        raise ConfigError(f'{name}.wait: a "{table.verdict}" waits for nothing; take it out')
    try:
        wait = parse(table.wait)
    except InvalidDuration as error:
        raise ConfigError(f'{name}.wait: {error}; write it as "30s" or "1h30m"') from error
    if not wait:
        raise ConfigError(f"{name}.wait: expected more than nothing; or take it out")
    return wait


def _glob(pattern: str) -> re.Pattern[str]:
    """`*` stands for any text and `?` for one character; the rest for itself, brackets too: they
    belong to the addresses of IPv6."""
    return re.compile(fnmatch.translate(pattern.lower().replace("[", "[[]")))


def _spellings(destination: str) -> tuple[str, ...]:
    """As primeflowd has it, with its port; and without that where it is the scheme's own, so that
    `https://*.example.com` means what it means in a URL."""
    for scheme, port in _DEFAULT_PORTS:
        if destination.startswith(scheme) and destination.endswith(port):
            return destination, destination.removesuffix(port)
    return (destination,)


def _explain(message: str) -> str:
    """msgspec's `Expected ... - at `$.a[0].b`` as `a[0].b: expected ...`, with what is allowed."""
    what, _, where = message.partition(" - at `$")
    path = where.rstrip("`").lstrip(".")
    if what.startswith(("Object contains unknown field `", "Object missing required field `")):
        key = what.split("`")[1]
        known = (RuleTable if path else Table).__struct_fields__
        missing = "missing" in what
        what = "it is missing" if missing else f"unknown key; known here: {', '.join(known)}"
        path = f"{path}.{key}" if path else key
    elif what.startswith("Invalid enum value "):
        allowed = ", ".join(f'"{value}"' for value in get_args(Decision))
        what = f"expected one of {allowed}, not {what.removeprefix('Invalid enum value ')}"
    what = what[:1].lower() + what[1:]
    return f"{path}: {what}" if path else what
