"""`qshape`: the shape of the queue, destination by age, after Postfix's command of that name."""

from typing import Any

import click

from primeflowd.cli.client import Api, decoded, with_api
from primeflowd.cli.options import json_option
from primeflowd.cli.output import print_json, print_table


@click.command()
@click.option(
    "-n",
    "--top",
    type=click.IntRange(1, 500),
    default=20,
    show_default=True,
    help="Name so many destinations, those with most.",
)
@json_option
@with_api
def qshape(api: Api, top: int, as_json: bool) -> None:
    """Show how many deliveries wait: destinations by how long they have been due.

    LATER are those that are not due yet; 5m has those that have been due for more than 1m
    and at most 5m. In a sound queue what is due goes at once: LATER and 10s have all of it.

    It takes a key with the scope admin. An operator key without --org is shown all orgs.
    """
    answer = api.get("/v1/deliveries/shape", limit=top)
    if as_json:
        print_json(answer)
        return
    found = decoded(answer)
    headings = ("TOTAL", *(name.upper() if name == "later" else name for name in found["buckets"]))
    rows = [("TOTAL", *_numbers(found["total"]))]
    rows += [(each["destination"], *_numbers(each)) for each in found["largest"]]
    print_table(("DESTINATION", *headings), rows, numbers=headings)
    if (left := found["destinations"] - len(found["largest"])) > 0:
        click.echo(f"and {left:,} more destinations; --top names more", err=True)


def _numbers(crowd: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(count or ".") for count in (crowd["waiting"], *crowd["counts"]))
