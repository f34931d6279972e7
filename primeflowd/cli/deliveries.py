"""`deliveries`: the deliveries of an org, and what people may ask of one or of many."""

import time
from datetime import UTC, datetime
from typing import Any, Final, get_args

import click
import msgspec

from primeflowd.cli.client import Api, decoded, with_api
from primeflowd.cli.options import json_option
from primeflowd.cli.output import print_json, print_json_rows, print_table, when
from primeflowd.cli.whole_help import WholeHelp
from primeflowd.durations import InvalidDuration, parse
from primeflowd.errors import OperatorError
from primeflowd.instants import Micros, from_datetime, rfc3339
from primeflowd.model import DeliveryStatus, FailureReason

_PATH: Final = "/v1/deliveries"
_ASK_EVERY: Final = 0.5

reason_option: Final = click.option(
    "--reason", type=click.Choice(get_args(FailureReason)), help="Only what failed so."
)
destination_option: Final = click.option(
    "--destination", metavar="URL", help="Only those to this scheme, host and port."
)


@click.group(cls=WholeHelp)
def deliveries() -> None:
    """List deliveries; attempt, send again or cancel them."""


@deliveries.command("list")
@click.option("--status", type=click.Choice(get_args(DeliveryStatus)), help="Only in this state.")
@click.option("--batch", metavar="ID", help="Only of this batch.")
@reason_option
@destination_option
@click.option("--since", metavar="WHEN", help="Created later: a time, or as 2h for so long ago.")
@click.option("--until", metavar="WHEN", help="Created earlier.")
@click.option(
    "--limit", type=click.IntRange(1), default=50, show_default=True, help="At most so many."
)
@json_option
@with_api
def list_deliveries(
    api: Api,
    status: str | None,
    batch: str | None,
    reason: str | None,
    destination: str | None,
    since: str | None,
    until: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """List deliveries, newest first."""
    now = _now()
    found = api.rows(
        _PATH,
        limit,
        status_code=status,
        batch_id=batch,
        failure_reason_code=reason,
        destination=destination,
        created_after=instant(since, now),
        created_before=instant(until, now),
    )
    if as_json:
        print_json_rows(found)
    else:
        print_deliveries([decoded(each) for each in found])


@deliveries.command()
@click.argument("delivery", metavar="ID")
@json_option
@with_api
def show(api: Api, delivery: str, as_json: bool) -> None:
    """Show one delivery with its attempts; `why` tells what comes next."""
    answer = api.get(f"{_PATH}/{delivery}")
    if as_json:
        print_json(answer)
        return
    found = decoded(answer)
    for name, value in found.items():
        if name not in ("payload", "payload_bytes", "attempts") and value is not None:
            told = str(value).lower() if isinstance(value, bool) else value
            click.echo(f"{name + ':':21}{told}")
    click.echo(f"{'payload_bytes:':21}{found['payload_bytes']}")
    if found["attempts"]:
        click.echo()
        print_table(
            ("ATTEMPT", "AT", "STATUS", "TOOK", "ERROR", "ANSWER"),
            [_attempt(each) for each in found["attempts"]],
        )


@deliveries.command()
@click.argument("delivery", metavar="ID")
@click.option("--again", is_flag=True, help="Send it once more although it succeeded.")
@json_option
@with_api
def retry(api: Api, delivery: str, again: bool, as_json: bool) -> None:
    """Attempt a waiting delivery now; send one that failed again, as a new delivery."""
    found = decoded(api.get(f"{_PATH}/{delivery}"))
    status = found["status_code"]
    if status == "succeeded" and not again:
        raise OperatorError(f"delivery {delivery} succeeded; --again sends the same bytes again")
    if status in ("failed", "succeeded"):
        answer = api.post(f"/v1/batches/{found['batch_id']}/callback-redeliveries")
        told = f"sent again, as delivery {decoded(answer)['id']}"
    else:
        answer = api.post(f"{_PATH}/{delivery}/attempt-now")
        told = f"attempt {found['attempt_count'] + 1} of {delivery} is due now"
    _tell(answer, told, as_json)


@deliveries.command()
@click.argument("delivery", metavar="ID")
@json_option
@with_api
def cancel(api: Api, delivery: str, as_json: bool) -> None:
    """End a delivery for good; an attempt under way may still arrive."""
    _tell(api.post(f"{_PATH}/{delivery}/cancellation"), f"cancelled {delivery}", as_json)


@deliveries.command()
@click.option(
    "--since",
    metavar="WHEN",
    required=True,
    help="Created since: a time, or as 2h for so long ago.",
)
@click.option("--until", metavar="WHEN", help="Created until then; else until now.")
@destination_option
@reason_option
@click.option("--wait", is_flag=True, help="Until it is done, telling how far it is.")
@json_option
@with_api
def recover(
    api: Api,
    since: str,
    until: str | None,
    destination: str | None,
    reason: str | None,
    wait: bool,
    as_json: bool,
) -> None:
    """Redeliver every delivery of a stretch of time that failed, paced by the daemon."""
    now = _now()
    asked = {
        "since": instant(since, now),
        "until": instant(until, now),
        "destination": destination,
        "failure_reason_code": reason,
    }
    started = api.post(f"{_PATH}/recover", {k: v for k, v in asked.items() if v is not None})
    found = decoded(started)
    if not wait:
        _tell(started, f"recovery {found['id']}: {found['matched']:,} deliveries", as_json)
        return
    progress, known = b"", (-1, -1)
    state = {"status": "running"}
    while state["status"] == "running":
        progress = api.get(f"{_PATH}/recoveries/{found['id']}")
        state = decoded(progress)
        done = (state["redelivered"], state["skipped"])
        if done != known:
            known = done
            told = f"{done[0]:,} redelivered, {done[1]:,} skipped of {found['matched']:,}"
            click.echo(told, err=as_json)
        if state["status"] == "running":
            # The daemon does it, and the API tells only whoever asks.
            time.sleep(_ASK_EVERY)
    if as_json:
        print_json(progress)


def print_deliveries(found: list[Any]) -> None:
    """A table of deliveries in the API's shape."""
    print_table(
        ("ID", "STATUS", "ATTEMPTS", "NEXT", "CREATED", "CALLBACK URL", "REASON"),
        [
            (
                each["id"],
                each["status_code"],
                f"{each['attempt_count']}/{each['max_attempts']}",
                when(each["next_attempt_at"], ahead=True),
                when(each["created_at"]),
                each["callback_url"],
                each["failure_reason_code"],
            )
            for each in found
        ],
    )


def instant(written: str | None, now: Micros) -> str | None:
    """RFC 3339 of a time, or of a duration ago.

    Raises:
        OperatorError: it is neither.
    """
    if written is None:
        return None
    try:
        return rfc3339(now - parse(written))
    except InvalidDuration:
        pass
    try:
        moment = msgspec.convert(written, datetime)
        return rfc3339(from_datetime(moment))
    except (msgspec.ValidationError, ValueError, OverflowError) as error:
        raise OperatorError(
            f"{written!r}: expected a time as 2026-05-06T10:00:00Z, or 2h for so long ago"
        ) from error


def _tell(answer: bytes, told: str, as_json: bool) -> None:
    if as_json:
        print_json(answer)
    else:
        click.echo(told)


def _attempt(each: dict[str, Any]) -> tuple[object, ...]:
    body = each["response_body"]
    return (
        each["attempt_number"],
        when(each["created_at"]),
        each["status_code"],
        f"{each['response_time_ms']}ms",
        each["error_message"],
        None if body is None else " ".join(body[:80].split()),
    )


def _now() -> Micros:
    return from_datetime(datetime.now(UTC))
