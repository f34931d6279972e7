"""What types and ranges do not say of settings: addresses, URLs, names, one against another."""

import ipaddress
from typing import Final

from primeflowd.access_keys import check_org_id
from primeflowd.callback_url import parse as parse_callback_url
from primeflowd.config.tables import Config, Events
from primeflowd.durations import Duration, InvalidDuration, parse_delay
from primeflowd.errors import ConfigError, InvalidRequest
from primeflowd.events import KINDS
from primeflowd.instants import DAY, SECOND

_LEAST: Final = (
    ("timeout", Duration("1ms")),
    ("connect_timeout", Duration("1ms")),
    ("horizon", Duration("1s")),
    ("suspend_min", Duration("1ms")),  # it doubles, and twice nothing is nothing
)


def check(config: Config, origin: str) -> None:
    """`origin` stands for the file in messages.

    Raises:
        ConfigError: a setting is not allowed.
    """
    parse_bind(config.api.bind, origin)
    for key in ("allow", "deny"):
        for block in getattr(config.delivery.egress, key):
            try:
                ipaddress.ip_network(block)
            except ValueError as error:
                raise ConfigError(f"{origin}: delivery.egress.{key}: {error}") from error
    policy = config.delivery.default_policy
    where = f"{origin}: delivery.default_policy"
    if len(policy.delays) > 50:
        raise ConfigError(f"{where}.delays: at most 50 delays")
    for delay in policy.delays:
        try:
            parse_delay(delay)
        except InvalidDuration as error:
            raise ConfigError(f"{where}.delays: {error}") from error
    if policy.retries and not policy.delays:
        raise ConfigError(f"{where}.max_retries: must be 0 where there are no delays")
    for key, least in _LEAST:
        if getattr(config.delivery, key).micros < least.micros:
            raise ConfigError(f"{origin}: delivery.{key}: expected at least {least.text}")
    if config.retention.answers.micros < DAY:
        raise ConfigError(f"{origin}: retention.answers: expected at least 24h")
    if config.retention.every.micros < SECOND:
        raise ConfigError(f"{origin}: retention.every: expected at least 1s")
    if config.tracing.endpoint:
        try:
            path = parse_callback_url(config.tracing.endpoint).request_target
        except ValueError as error:
            raise ConfigError(f"{origin}: tracing.endpoint: {error}") from error
        if path == "/":
            raise ConfigError(
                f"{origin}: tracing.endpoint: expected the whole URL, which most often ends "
                "in /v1/traces"
            )
    if not config.signing.hmac_prefix.isprintable() or not config.signing.hmac_prefix.isascii():
        raise ConfigError(f"{origin}: signing.hmac_prefix: printable ASCII only")
    _check_events(config.events, f"{origin}: events")


def _check_events(events: Events, where: str) -> None:
    try:
        if events.url:
            parse_callback_url(events.url)
    except ValueError as error:
        raise ConfigError(f"{where}.url: {error}") from error
    try:
        check_org_id(events.org)
    except InvalidRequest as error:
        raise ConfigError(f"{where}.org: {error}") from error
    for kind in events.kinds:
        if kind not in KINDS:
            raise ConfigError(
                f"{where}.kinds: no such kind: {kind!r}; there are {', '.join(KINDS)}"
            )
    if events.interval.micros < SECOND:
        raise ConfigError(f"{where}.interval: expected at least 1s")


def parse_bind(bind: str, origin: str = "config") -> tuple[str, int]:
    """`host:port` or `[v6]:port` as (host, port).

    Raises:
        ConfigError: it is neither.
    """
    host, colon, port = bind.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    # Without brackets, who is to say where in "::1" the address ends and the port begins?
    whole_host = host and not set(host) & set("[]") and bracketed == (":" in host)
    digits = port.isascii() and port.isdigit() and len(port) <= 5
    if not colon or not whole_host or not digits or int(port) > 65535:
        raise ConfigError(f'{origin}: api.bind: expected "host:port" or "[v6]:port", not {bind!r}')
    return host, int(port)
