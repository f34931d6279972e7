"""`why`: one delivery, its attempts past and to come, and what would make it go."""

from typing import Any

import click

from primeflowd.cli.client import Api, decoded, with_api
from primeflowd.cli.output import console, print_json, print_table, when
from primeflowd.explanation import in_words

_TOLD = 60


@click.command()
@click.argument("delivery", metavar="DELIVERY")
@click.option("--json", "as_json", is_flag=True, help="The API's answer, for programs.")
@with_api
def why(api: Api, delivery: str, as_json: bool) -> None:
    """Why DELIVERY is where it is: attempts made and planned, and what would make it go.

    Times to come are the earliest that the policy allows. It is the view of the node that is asked.
    """
    answer = api.get(f"/v1/deliveries/{delivery}/explain")
    if as_json:
        print_json(answer)
        return
    found = decoded(answer)
    click.echo(f"{found['delivery_id']}  {found['status_code']}  {found['callback_url']}\n")
    print_table(
        ("ATTEMPT", "STATE", "AT", "AFTER", "TOOK", "MET"),
        [_row(step) for step in found["schedule"]],
    )
    screen = console()
    click.echo()
    screen.print(found["summary"], soft_wrap=not screen.is_terminal)
    click.echo("\nWhat would make it go:")
    for line in found["would_go"]:
        click.echo(f"  - {line}")


def _row(step: dict[str, Any]) -> tuple[object, ...]:
    attempt = step["attempt"]
    after = f"{step['delay']} (hastened)" if step["hastened"] else step["delay"]
    at = when(step["at"], ahead=attempt is None)
    if attempt is None:
        return (step["attempt_number"], step["state"], at, after, None, None)
    return (
        step["attempt_number"],
        step["state"],
        at,
        after,
        f"{attempt['response_time_ms']}ms",
        _met(step, attempt),
    )


def _met(step: dict[str, Any], attempt: dict[str, Any]) -> str:
    status, reason = attempt["status_code"], step["failure_reason_code"]
    if reason in (None, "http_status"):
        return str(status)
    words = in_words(reason, attempt["error_message"]) if attempt["error_message"] else str(reason)
    told = words if len(words) <= _TOLD else words[: _TOLD - 1] + "…"
    return told if status is None else f"{status} {told}"
