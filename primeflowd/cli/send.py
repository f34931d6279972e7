"""`send`: one signed callback to a URL from here, and what became of it on the way.

By the daemon's own rules and code: the egress table, the resolver, TLS and timeouts of the
configuration. Nothing is stored, and nothing is tried twice.
"""

import ssl
import time
from functools import partial
from pathlib import Path
from typing import Any

import click
import msgspec
import trio

from primeflowd import __version__
from primeflowd.callback_url import Target, parse
from primeflowd.cli.options import config_option, load_config
from primeflowd.clock import SystemClock
from primeflowd.config import Config
from primeflowd.connection import NetworkFailure
from primeflowd.connector import Connector, SocketAddress, SystemResolver, tls_context
from primeflowd.egress import EgressGuard
from primeflowd.errors import OperatorError
from primeflowd.hookspecs import SigningRequest
from primeflowd.instants import SECOND, rfc3339
from primeflowd.model import new_id
from primeflowd.plugins import Plugins
from primeflowd.request_head import Request, encode, header_lines

_ANSWER_SHOWN = 500


class Trip(msgspec.Struct):
    """What is found on the way, for people and programs; times in milliseconds."""

    url: str
    headers: dict[str, str]
    egress: dict[str, str] = msgspec.field(default_factory=dict)
    dns_ms: float | None = None
    connected_to: str | None = None
    connect_ms: float | None = None
    tls: str | None = None
    tls_ms: float | None = None
    answer_ms: float | None = None
    status_code: int | None = None
    answer: str | None = None
    failure: str | None = None


@click.command()
@click.argument("url")
@click.option(
    "--payload",
    metavar="FILE",
    type=click.File("rb"),
    required=True,
    help="What to send, byte for byte; - is standard input.",
)
@click.option(
    "--secret",
    "secrets",
    metavar="SECRET",
    multiple=True,
    envvar="PRIMEFLOWD_SIGNING_SECRET",
    help="Signing secret, as it was shown; repeatable, the first is the pinned one.",
)
@click.option("--json", "as_json", is_flag=True, help="A JSON object, for programs.")
@config_option
def send(
    url: str, payload: Any, secrets: tuple[str, ...], as_json: bool, path: Path | None
) -> None:
    """POST one callback to URL, signed as the daemon signs, and show how it went.

    Tells what [delivery.egress] says of each address, how long name lookup, connection, TLS and
    answer took, and what was answered. Exits with 1 unless that is 2xx.
    """
    config, _ = load_config(path)
    try:
        target = parse(url)
    except ValueError as error:
        raise OperatorError(f"{url}: {error}") from error
    body = payload.read()
    trip = Trip(url, dict(_headers(config, url, body, secrets)))
    trio.run(partial(_go, config, target, body, trip))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(trip), indent=2))
    else:
        _show(trip, signed=bool(secrets))
    if trip.failure is not None:
        raise OperatorError(trip.failure)
    if trip.status_code is None or not 200 <= trip.status_code < 300:
        raise OperatorError(f"answered {trip.status_code}: the daemon would count that as failed")


def _headers(
    config: Config, url: str, body: bytes, secrets: tuple[str, ...]
) -> list[tuple[str, str]]:
    """As the senders have it (contract 6.4), with ids that name nothing."""
    attempt_id = new_id()
    request = SigningRequest(
        batch_id=new_id(),
        delivery_id=new_id(),
        attempt_id=attempt_id,
        timestamp=SystemClock().now() // SECOND,
        body=body,
        secrets=secrets,
        url=url,
    )
    headers = [
        ("Content-Type", "application/json"),
        ("User-Agent", f"primeflowd/{__version__}"),
        ("Primeflow-Delivery-Id", request.delivery_id),
        ("Primeflow-Attempt", "1"),
        ("Primeflow-Request-Id", attempt_id),
    ]
    signed: dict[str, str] = {}
    for signer in Plugins(config).signers(config) if secrets else ():
        try:
            made = list(signer.sign(request))
        # A plugin's; ours raise it for what is no secret. What it says may hold the secret.
        except Exception as error:  # noqa: BLE001
            raise OperatorError(
                f"the signer {signer.name} cannot sign with this secret ({type(error).__name__}); "
                "one is whsec_ and base64"
            ) from None
        for name, value in made:
            # Two kinds of Standard Webhooks share a header, and the ids beside it.
            if name in signed and value != signed[name]:
                value = f"{signed[name]} {value}"
            signed[name] = value
    return headers + list(signed.items())


async def _go(config: Config, target: Target, body: bytes, trip: Trip) -> None:
    guard = EgressGuard(config.delivery.egress)
    if refusal := guard.refusal_of_url(target.scheme, target.port):
        trip.failure = f"url_not_allowed: {refusal}"
        return
    resolve = SystemResolver()

    async def resolver(host: str, port: int) -> list[tuple[int, SocketAddress]]:
        began = time.perf_counter()
        found = await resolve(host, port)
        trip.dns_ms = _since(began)
        for _, address in found:
            ip = str(address[0])
            trip.egress[ip] = guard.refusal_of_address(ip) or "allowed"
        return found

    with trio.move_on_after(config.delivery.timeout.seconds) as scope:
        try:
            tls = _noting(tls_context(config.delivery.ca_file), trip)
            connector = Connector(config.delivery, guard, resolver, tls=tls)
            await _exchange(connector, target, body, trip)
        except NetworkFailure as error:
            trip.failure = f"{error.reason}: {error.message}"
    if scope.cancelled_caught:
        trip.failure = f"timeout: no answer within {config.delivery.timeout.text}"


async def _exchange(connector: Connector, target: Target, body: bytes, trip: Trip) -> None:
    began = time.perf_counter()
    connection = await connector.connect(target)
    try:
        trip.connected_to = connection.address
        trip.connect_ms = round(_since(began) - (trip.dns_ms or 0) - (trip.tls_ms or 0), 1)
        began = time.perf_counter()
        lines = header_lines(trip.headers.items())
        await connection.exchange(encode(Request(target, lines, body)))
        trip.answer_ms = _since(began)
        trip.status_code = connection.response.status
        trip.answer = connection.response.body.decode(errors="replace")
    finally:
        connection.close()


def _noting(tls: ssl.SSLContext, trip: Trip) -> ssl.SSLContext:
    """`tls`, which from now on puts down what a handshake came to."""
    began: float | None = None

    class Noting(ssl.SSLSocket):
        def do_handshake(self, block: bool = False) -> None:
            nonlocal began
            began = began or time.perf_counter()
            super().do_handshake(block)  # raises until the other side has had its say
            trip.tls_ms = _since(began)
            ends = str((self.getpeercert() or {})["notAfter"])
            until = rfc3339(int(ssl.cert_time_to_seconds(ends)) * SECOND)
            trip.tls = f"{self.version()}, certificate for {self.server_hostname} verified, "
            trip.tls += f"valid until {until}"

    tls.sslsocket_class = Noting
    return tls


def _since(began: float) -> float:
    return round((time.perf_counter() - began) * 1000, 1)


def _show(trip: Trip, *, signed: bool) -> None:
    click.echo(f"POST {trip.url}")
    for name, value in trip.headers.items():
        click.echo(f"  {name}: {value}")
    if not signed:
        click.echo("unsigned:  no --secret was given")
    lines: list[tuple[str, object]] = [
        ("egress", f"{ip}: {said}") for ip, said in trip.egress.items()
    ]
    lines.append(("dns", None if trip.dns_ms is None else f"{trip.dns_ms} ms"))
    lines.append(
        ("connected", trip.connected_to and f"{trip.connected_to} in {trip.connect_ms} ms")
    )
    lines.append(("tls", trip.tls and f"{trip.tls}, in {trip.tls_ms} ms"))
    lines.append(("answered", trip.status_code and f"{trip.status_code} in {trip.answer_ms} ms"))
    for name, told in lines:
        if told is not None:
            click.echo(f"{name + ':':11}{told}")
    if trip.answer:
        text = trip.answer[:_ANSWER_SHOWN]
        click.echo("".join(c if c.isprintable() or c == "\n" else "?" for c in text))
