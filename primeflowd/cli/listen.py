"""`listen`: a receiver at one's own desk, that verifies what arrives and shows it."""

import signal
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import click
import msgspec
import trio
from rich.text import Text

from primeflowd.cli.options import config_option, load_config
from primeflowd.cli.output import console
from primeflowd.cli.verifying import Finding, findings
from primeflowd.config import Config
from primeflowd.errors import OperatorError
from primeflowd.instants import rfc3339
from primeflowd.testing import arrivals
from primeflowd.testing.answers import Answer
from primeflowd.testing.arrivals import Received
from primeflowd.testing.receiver import open_receiver

_STYLES: Final[Mapping[Finding, str]] = {
    "genuine": "green",
    "wrong": "bold red",
    "stale": "bold red",
    "unchecked": "yellow",
}
_REFUSED: Final = Answer(status=401)


class Desk:
    """What is done with each callback: verified, shown, answered."""

    def __init__(self, config: Config, secrets: Sequence[str], status: int, as_json: bool) -> None:
        self._signing = config.signing
        self._secrets = secrets
        self._accepted = Answer(status=status)
        self._as_json = as_json

    def verify(self, request: Received) -> dict[str, Finding]:
        return findings(
            {name.lower(): value for name, value in request.headers},
            request.body,
            self._secrets,
            request.arrived_at,
            hmac_header=self._signing.hmac_header,
            hmac_prefix=self._signing.hmac_prefix,
        )

    def receive(self, request: Received) -> Answer:
        """401 for what should be signed and is not, or wrongly: as a careful receiver has it."""
        found = self.verify(request)
        genuine = bool(found) and set(found.values()) == {"genuine"}
        answer = self._accepted if genuine or not self._secrets else _REFUSED
        if self._as_json:
            fields = msgspec.json.decode(arrivals.line(request))
            told = {"signatures": found, "answered": answer.status}
            click.echo(msgspec.json.encode(fields | told))
        else:
            self._show(request, found, answer.status)
        return answer

    def _show(self, request: Received, found: Mapping[str, Finding], status: int) -> None:
        screen = console()
        head = (
            f"#{request.number}  {rfc3339(request.arrived_at)}  {request.method} {request.target}"
        )
        screen.print(f"{head}  answered {status}", style="bold")
        if delivery := request.header("Primeflow-Delivery-Id"):
            screen.print(f"  delivery   {delivery}, attempt {request.header('Primeflow-Attempt')}")
        if batch := request.header("webhook-id"):
            screen.print(f"  batch      {batch}")
        line = Text("  signature  ")
        for name, finding in found.items():
            line.append(f"{name}: ").append(f"{finding}  ", style=_STYLES[finding])
        if not found:
            line.append("none", style="bold red" if self._secrets else "yellow")
        screen.print(line)
        try:
            body = msgspec.json.format(request.body, indent=2).decode()
        except (msgspec.DecodeError, UnicodeDecodeError):
            body = request.body.decode(errors="replace")
        # A terminal obeys control characters: those of a stranger are shown instead.
        shown = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in body)
        screen.print("\n".join(f"  {each}" for each in shown.splitlines()) + "\n", soft_wrap=True)


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=9000,
    show_default=True,
    help="Port to listen on; 0 takes a free one.",
)
@click.option(
    "--secret",
    "secrets",
    metavar="SECRET",
    multiple=True,
    envvar="PRIMEFLOWD_SIGNING_SECRET",
    help="Signing secret to verify with, as it was shown; repeatable.",
)
@click.option(
    "--status", type=click.IntRange(200, 599), default=200, show_default=True, help="The answer."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for programs.")
@config_option
def listen(
    host: str, port: int, secrets: tuple[str, ...], status: int, as_json: bool, path: Path | None
) -> None:
    """Receive callbacks, verify their signatures and show them, until Ctrl-C.

    With a secret, what is unsigned, wrongly signed or older than 5 minutes is answered 401.
    The daemon calls this machine only if [delivery.egress] allow has "127.0.0.0/8".
    """
    desk = Desk(load_config(path)[0], secrets, status, as_json)
    trio.run(partial(_listen, desk, host, port))


async def _listen(desk: Desk, host: str, port: int) -> None:
    doing = f"cannot listen on {host}:{port}"
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        try:
            async with (
                trio.open_nursery() as nursery,
                open_receiver(
                    nursery, desk.receive, host=host, port=port, record=lambda _: None
                ) as receiver,
            ):
                doing = "cannot show what arrived"
                click.echo(f"listening on {receiver.url()}, Ctrl-C ends it", err=True)
                await anext(signals)
        # Out of a nursery it comes in a group: the port is taken, or whoever read our output left.
        except* OSError as group:
            error = group.exceptions[0]
            reason = error.strerror if isinstance(error, OSError) else error
            raise OperatorError(f"{doing}: {reason}") from error
