"""`destinations`: what holds for a host, whoever's callbacks go there; by the API."""

from pathlib import Path
from typing import Any, Final

import click

from primeflowd.cli.client import Api, decoded, with_api
from primeflowd.cli.options import json_option
from primeflowd.cli.output import print_json, print_json_rows, print_table, when
from primeflowd.cli.whole_help import WholeHelp
from primeflowd.errors import OperatorError

_LIST: Final = "/v1/destinations"
_PATH: Final = f"{_LIST}/policy"


@click.group(cls=WholeHelp)
def destinations() -> None:
    """Limit destinations, give them headers, disable and enable them.

    A destination is a scheme, a host and a port, as https://example.com. All orgs share it: it
    takes an operator key.
    """


@destinations.command("list")
@json_option
@with_api
def list_destinations(api: Api, as_json: bool) -> None:
    """List the destinations that have a policy, are disabled, or have failed for a while."""
    found = api.rows(_LIST, 100_000)
    if as_json:
        print_json_rows(found)
        return
    print_table(
        ("DESTINATION", "STATE", "RATE", "AT ONCE", "TIMEOUT", "SOURCE", "WHY"),
        [
            (
                each["destination"],
                _state(each),
                _rate(each),
                each["concurrency"] or None,
                _span(each["timeout"]),
                each["source"],
                each["disabled_reason"],
            )
            for each in map(decoded, found)
        ],
        numbers=("RATE", "AT ONCE"),
    )


@destinations.command()
@click.argument("destination")
@json_option
@with_api
def show(api: Api, destination: str, as_json: bool) -> None:
    """Show the policy of a destination, of headers the names; - is what holds for all."""
    _print(api.get(_PATH, destination=destination), as_json)


@destinations.command("set")
@click.argument("destination")
@click.option("--rate", type=click.FloatRange(0, 100_000), help="Attempts per second; 0: any.")
@click.option("--burst", type=click.IntRange(1, 10_000), help="Of them at once.")
@click.option("--concurrency", type=click.IntRange(0, 10_000), help="Attempts at once; 0: any.")
@click.option("--timeout", help="Most that one attempt may take, as 5s; - for the usual.")
@click.option("--while-disabled", type=click.Choice(["wait", "fail"]), help="What deliveries do.")
@click.option("--disable-when-gone/--keep-when-gone", default=None, help="If one answers 410.")
@click.option("--disable-after", help="If all attempts fail for so long, as 5d; - for the usual.")
@click.option(
    "--header-file",
    "headers",
    metavar="NAME=FILE",
    multiple=True,
    help="Header to add, its value in a file; NAME= takes it away.",
)
@json_option
@with_api
def set_policy(
    api: Api, /, destination: str, headers: tuple[str, ...], as_json: bool, **options: Any
) -> None:
    """Set limits, timeouts and headers of a destination; what is not named stays.

    The limits are those of each node.
    """
    body = {
        name: None if value == "-" else value
        for name, value in options.items()
        if value is not None
    }
    if headers:
        body["headers"] = dict(map(_header, headers))
    if not body:
        raise OperatorError("nothing to set: see primeflowd destinations set --help")
    _print(api.patch(_PATH, body, destination=destination), as_json)


@destinations.command()
@click.argument("destination")
@click.option("--reason", required=True, help="Why, for people.")
@click.option("--while-disabled", type=click.Choice(["wait", "fail"]), help="What deliveries do.")
@json_option
@with_api
def disable(
    api: Api, destination: str, reason: str, while_disabled: str | None, as_json: bool
) -> None:
    """Send nothing there any more: what is due waits, or fails if it is told to."""
    body = {"disabled_reason": reason}
    if while_disabled is not None:
        body["while_disabled"] = while_disabled
    _print(api.patch(_PATH, body, destination=destination), as_json)


@destinations.command()
@click.argument("destination")
@json_option
@with_api
def enable(api: Api, destination: str, as_json: bool) -> None:
    """Send there again: what waits goes now, under its limits."""
    _print(api.patch(_PATH, {"disabled_reason": None}, destination=destination), as_json)


@destinations.command()
@click.argument("destination")
@with_api
def forget(api: Api, destination: str) -> None:
    """Take the policy of a destination away: it is as any other, and enabled."""
    api.delete(_PATH, destination=destination)
    click.echo(f"{destination} has no policy")


def _header(given: str) -> tuple[str, str | None]:
    """A header's name, and its value from the file: on a command line everybody could read it."""
    name, equals, file = given.partition("=")
    if not equals:
        raise OperatorError(f"--header-file: expected NAME=FILE, not {given!r}")
    if not file:
        return name, None
    try:
        return name, Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise OperatorError(f"{file}: cannot be read: {reason}") from error


def _print(answer: bytes, as_json: bool) -> None:
    if as_json:
        print_json(answer)
        return
    found = decoded(answer)
    rows = [("state", _state(found)), ("disabled because", found["disabled_reason"])]
    rows += [("since", when(found["disabled_at"] or found["failing_since"]))]
    rows += [("headers", ", ".join(found["headers"]) or None)]
    # Without a rate the usual burst says nothing; another was set by somebody.
    burst = found["burst"] if found["rate"] or found["burst"] != 1 else None
    rows += [("rate", _rate(found)), ("burst", burst)]
    rows += [("concurrency", found["concurrency"] or None), ("timeout", _span(found["timeout"]))]
    rows += [("while disabled", found["while_disabled"])]
    rows += [("disable when gone", "yes" if found["disable_when_gone"] else "no")]
    rows += [("disable after", _span(found["disable_after"])), ("source", found["source"])]
    print_table((found["destination"], ""), rows)


def _rate(policy: dict[str, Any]) -> str | None:
    """None, as for each limit, where there is none of its own: the API's 0."""
    return f"{policy['rate']:g}/s" if policy["rate"] else None


def _span(duration: str) -> str | None:
    return duration if duration != "0s" else None


def _state(policy: dict[str, Any]) -> str:
    if policy["disabled_reason"] is not None:
        return "disabled"
    return "failing" if policy["failing_since"] else "enabled"
