"""`policies`: an org's retry policies, and what one comes to in time."""

from typing import Any, Final

import click

from primeflowd.cli.client import Api, decoded, with_api
from primeflowd.cli.options import json_option
from primeflowd.cli.output import print_json, print_table, when
from primeflowd.cli.whole_help import WholeHelp
from primeflowd.durations import InvalidDuration, parse_delay, shown
from primeflowd.errors import OperatorError
from primeflowd.timetable import waits

_PATH: Final = "/v1/policies/retry"
_WIDTH: Final = 60

retries_option: Final = click.option(
    "--max-retries",
    "retries",
    type=click.IntRange(0, 100),
    help="Retries in all; the last delay repeats. Else as many as delays.",
)


@click.group(cls=WholeHelp)
def policies() -> None:
    """Look at retry policies, and set them."""


@policies.command("list")
@json_option
@with_api
def list_policies(api: Api, as_json: bool) -> None:
    """List the org's retry policies; the one of all its other plans is that of plan `-`."""
    answer = api.get(f"{_PATH}/list")
    if as_json:
        print_json(answer)
        return
    print_table(
        ("PLAN", "DELAYS", "RETRIES", "UPDATED"),
        [
            (
                each["plan_id"] or None,
                " ".join(each["delays"]),
                each["max_retries"],
                when(each["updated_at"]),
            )
            for each in decoded(answer)
        ],
        numbers=("RETRIES",),
    )


@policies.command("set")
@click.argument("delays", metavar="[DELAY]...", nargs=-1)
@click.option("--plan", default="", help="Plan it is for; else all that have none of their own.")
@retries_option
@json_option
@with_api
def set_policy(
    api: Api, delays: tuple[str, ...], plan: str, retries: int | None, as_json: bool
) -> None:
    """Set a retry policy: the waits before each retry, as 15m 1h 24h; none: no retry.

    Deliveries that were made before keep theirs.
    """
    body: dict[str, object] = {"plan_id": plan, "delays": delays}
    if retries is not None:
        body["max_retries"] = retries
    answer = api.post(_PATH, body)
    if as_json:
        print_json(answer)
    else:
        found = decoded(answer)
        click.echo(draw(tuple(found["delays"]), found["max_retries"]))


@policies.command()
@click.argument("delays", metavar="DELAY...", nargs=-1, required=True)
@retries_option
def preview(delays: tuple[str, ...], retries: int | None) -> None:
    """Draw when the attempts of a policy would be made, each after one that failed at once.

    Asks no daemon and sets nothing.
    """
    for delay in delays:
        try:
            parse_delay(delay)
        except InvalidDuration as error:
            raise OperatorError(f"{error}; write it as 500ms, 15m, 1h30m or 7d") from error
    click.echo(draw(delays, len(delays) if retries is None else retries))


def draw(delays: tuple[str, ...], retries: int) -> str:
    """The schedule of a policy as text: a line for each attempt, on a common scale of time."""
    steps: list[tuple[Any, int]] = [("at once", 0), *waits(delays, retries, 0)]
    whole = steps[-1][1] or 1
    times = [shown(at) if at else "0s" for _, at in steps]
    wide, late = max(len(text) for text, _ in steps), max(len(time) for time in times)
    lines = []
    for number, ((text, at), time) in enumerate(zip(steps, times, strict=True), 1):
        bar = "·" * round(at * _WIDTH / whole) + "●"
        lines.append(f"attempt {number:>3}  after {text:<{wide}}  at {time:>{late}}  {bar}")
    lines[0] = lines[0].replace("after at once", "at once" + " " * 6, 1)
    return "\n".join(lines)
