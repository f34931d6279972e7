"""The configuration: one TOML file into frozen structs, each setting with default, unit, meaning.

The structs below are the only place where a setting is declared: loading, validation,
`config.example.toml` and `primeflowd init` all read them. An unknown key, a wrong type and a value
out of range are ConfigErrors that name the file, the key's path and what is allowed.

Durations are strings in the grammar of durations.py; sizes are whole numbers of bytes.
"""

import ipaddress
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, field

from primeflowd import extra_headers
from primeflowd.access_keys import check_org_id
from primeflowd.callback_url import destination_of
from primeflowd.callback_url import parse as parse_callback_url
from primeflowd.durations import MAX_DELAY, MIN_DELAY, Duration, InvalidDuration, parse_delay
from primeflowd.errors import ConfigError, InvalidRequest
from primeflowd.events import KINDS
from primeflowd.instants import DAY, SECOND


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the file; a key that is not a field of it is an error."""


class Api(_Section, frozen=True):
    """The HTTP API."""

    bind: Annotated[
        str, Meta(description="address and port to listen on, as host:port or [v6]:port")
    ] = "127.0.0.1:8081"
    server: Annotated[
        Literal["hypercorn", "lean"],
        Meta(
            description="lean: our own, at a tenth of the cost of a request by which batches come "
            "in; or hypercorn"
        ),
    ] = "lean"
    reuse_port: Annotated[
        bool,
        Meta(description="share the port with other processes of this host (SO_REUSEPORT)"),
    ] = False
    max_body: Annotated[int, Meta(ge=1024, description="largest request body, in bytes")] = (
        1_048_576
    )
    max_bulk_body: Annotated[
        int, Meta(ge=1024, description="largest body of POST /v1/batches/bulk, in bytes")
    ] = 16_777_216
    rate_limit: Annotated[
        float,
        Meta(
            ge=0,
            le=1_000_000,
            description="requests per second that one key may make; 0 sets no limit",
        ),
    ] = 0.0
    rate_burst: Annotated[
        int, Meta(ge=1, description="requests that one key may make at once under rate_limit")
    ] = 100


class StorageSettings(_Section, frozen=True):
    """Where everything is kept."""

    url: Annotated[
        str,
        Meta(
            description="sqlite:///PATH, memory:// (loses all at exit) or a plugin's URL; "
            "empty means primeflowd.db in the state directory"
        ),
    ] = ""
    lease_ttl: Annotated[
        Duration,
        Meta(
            description="a node that cannot reach the storage for this long is given up, and "
            "others take over what it held"
        ),
    ] = Duration("15s")
    max_backlog: Annotated[
        int, Meta(ge=1, description="writes that may wait for a commit before requests get a 503")
    ] = 10_000


class Egress(_Section, frozen=True):
    """Which addresses callbacks may be sent to."""

    allow: Annotated[
        tuple[str, ...],
        Meta(description="CIDR blocks to allow although they are not public, as 10.1.0.0/16"),
    ] = ()
    deny: Annotated[
        tuple[str, ...], Meta(description="CIDR blocks to refuse in any case; wins over allow")
    ] = ()
    require_https: Annotated[bool, Meta(description="refuse http:// callback URLs")] = False
    allowed_ports: Annotated[
        tuple[Annotated[int, Meta(ge=1, le=65535)], ...],
        Meta(description="ports that may be connected to; empty allows all"),
    ] = ()


class DefaultPolicy(_Section, frozen=True):
    """The retry policy of orgs and plans that have none of their own."""

    delays: Annotated[
        tuple[str, ...],
        Meta(description="waits before each retry, from the end of the last attempt"),
    ] = ("15m", "1h", "24h")
    max_retries: Annotated[
        Annotated[int, Meta(ge=0, le=100)] | None,
        Meta(description="retries in all; left out, as many as there are delays"),
    ] = None

    @property
    def retries(self) -> int:
        return len(self.delays) if self.max_retries is None else self.max_retries


class DeliverySettings(_Section, frozen=True):
    """How callbacks are sent."""

    concurrency: Annotated[
        int, Meta(ge=1, le=10_000, description="attempts that may be under way at once")
    ] = 256
    timeout: Annotated[
        Duration, Meta(description="most that one attempt may take, from name lookup to answer")
    ] = Duration("30s")
    connect_timeout: Annotated[
        Duration, Meta(description="most that name lookup, connection and TLS handshake may take")
    ] = Duration("5s")
    max_response_header: Annotated[
        int, Meta(ge=1024, description="largest response head read, in bytes")
    ] = 65_536
    max_response_body: Annotated[
        int, Meta(ge=0, description="most of a response body read and kept, in bytes")
    ] = 8_192
    ca_file: Annotated[
        str, Meta(description="PEM bundle to verify TLS with; empty means the system's trust store")
    ] = ""
    idle_timeout: Annotated[
        Duration, Meta(description="how long an unused connection is kept open")
    ] = Duration("60s")
    max_idle_per_destination: Annotated[
        int, Meta(ge=0, description="unused connections kept per destination")
    ] = 32
    horizon: Annotated[
        Duration, Meta(description="deliveries due within this are held in memory")
    ] = Duration("30s")
    active_limit: Annotated[
        int, Meta(ge=10, description="deliveries held in memory at most; the rest wait in storage")
    ] = 20_000
    destination_share: Annotated[
        float,
        Meta(gt=0, le=1, description="fraction of active_limit that one destination may take"),
    ] = 0.1
    window_initial: Annotated[
        int, Meta(ge=1, description="attempts at once to a destination that is new or was ill")
    ] = 5
    window_max: Annotated[
        int, Meta(ge=1, description="attempts at once to a destination that answers well")
    ] = 64
    suspend_after: Annotated[
        int,
        Meta(ge=1, description="rounds without any answer before a destination is suspended"),
    ] = 3
    suspend_period: Annotated[
        Duration, Meta(description="how long it must have given no answer before it is suspended")
    ] = Duration("30s")
    suspend_min: Annotated[
        Duration, Meta(description="first suspension; it doubles with every probe that fails")
    ] = Duration("1s")
    suspend_max: Annotated[Duration, Meta(description="longest suspension")] = Duration("60s")
    jitter: Annotated[
        float,
        Meta(ge=0, le=1, description="fraction of a retry delay that may be added at random"),
    ] = 0.0
    retry_after_cap: Annotated[
        Duration, Meta(description="most that a receiver's Retry-After may ask for")
    ] = Duration("24h")
    recovery_rate: Annotated[
        float,
        Meta(gt=0, le=1_000_000, description="redeliveries per second that a bulk recovery makes"),
    ] = 100.0
    disable_after: Annotated[
        Duration,
        Meta(
            description="how long every attempt to a destination must have failed, whatever came "
            "as an answer, before it is disabled; 0s never does that"
        ),
    ] = Duration("0s")
    egress: Egress = field(default_factory=Egress)
    default_policy: DefaultPolicy = field(default_factory=DefaultPolicy)


class DestinationSettings(_Section, frozen=True):
    """What holds for one destination, whoever's callbacks go there."""

    rate: Annotated[
        float,
        Meta(
            ge=0,
            le=100_000,
            description="attempts per second that each node may begin; 0 sets no limit",
        ),
    ] = 0.0
    burst: Annotated[
        int, Meta(ge=1, le=10_000, description="attempts that may be begun at once under rate")
    ] = 1
    concurrency: Annotated[
        int,
        Meta(
            ge=0,
            le=10_000,
            description="attempts that each node may have under way at once, besides what its "
            "window allows; 0 sets no limit",
        ),
    ] = 0
    timeout: Annotated[
        Duration,
        Meta(description="most that one attempt may take; 0s is delivery.timeout"),
    ] = Duration("0s")
    disabled: Annotated[
        str,
        Meta(max_length=500, description="why nothing is sent there; empty: it is not disabled"),
    ] = ""
    while_disabled: Annotated[
        Literal["wait", "fail"],
        Meta(
            description="what becomes of deliveries that are due while it is disabled: wait, or "
            "fail (as url_not_allowed)"
        ),
    ] = "wait"
    disable_when_gone: Annotated[
        bool,
        Meta(description="disable it when an attempt is answered 410, for all URLs and orgs"),
    ] = False
    disable_after: Annotated[
        Duration, Meta(description="as delivery.disable_after; 0s leaves it to that")
    ] = Duration("0s")
    headers: Annotated[
        dict[str, str],
        Meta(
            description="headers to add to every attempt; this file shows their values, those set "
            "by the API are encrypted"
        ),
    ] = field(default_factory=dict)


class RetentionSettings(_Section, frozen=True):
    """How long what is over is kept."""

    batches: Annotated[
        Duration,
        Meta(
            description="how long an ended batch is kept after the last that happened to it or to "
            "its callback, with its items, deliveries and attempts; 0s keeps it for ever"
        ),
    ] = Duration("30d")
    response_bodies: Annotated[
        Duration,
        Meta(
            description="how long the body of a receiver's answer is kept, if not as long as its "
            "batch; 0s keeps it as long"
        ),
    ] = Duration("7d")
    answers: Annotated[
        Duration,
        Meta(
            description="how long the answer to a request with an Idempotency-Key is kept; it is "
            "given again for 24h, however long it is kept"
        ),
    ] = Duration("24h")
    every: Annotated[Duration, Meta(description="how long after a purge the next one begins")] = (
        Duration("10m")
    )


class Signing(_Section, frozen=True):
    """How callbacks are signed."""

    signers: Annotated[
        tuple[str, ...],
        Meta(description="signers to apply: standard-webhooks, hmac-sha256, ed25519 or a plugin's"),
    ] = ("standard-webhooks", "hmac-sha256")
    hmac_header: Annotated[
        str, Meta(pattern=r"^[A-Za-z0-9-]+\Z", description="header of the hmac-sha256 signer")
    ] = "Primeflow-Signature"
    hmac_prefix: Annotated[
        str, Meta(description="text before the hex digits of the hmac-sha256 signer, as sha256=")
    ] = ""


class Events(_Section, frozen=True):
    """What the operator is told of, by callbacks about the daemon itself."""

    url: Annotated[
        str, Meta(description="where callbacks about events are sent; empty sends none")
    ] = ""
    org: Annotated[
        str,
        Meta(
            description="org that these callbacks belong to: its secrets sign them, its keys may "
            "read them; no events are told of its own deliveries and secrets"
        ),
    ] = "primeflowd"
    kinds: Annotated[
        tuple[str, ...], Meta(description="kinds of events to tell of; the default is all")
    ] = KINDS
    interval: Annotated[
        Duration,
        Meta(
            description="how long after an event further ones of the same kind and subject are "
            "only counted, to be told of together"
        ),
    ] = Duration("1m")


class Drain(_Section, frozen=True):
    """What happens on SIGTERM."""

    deadline: Annotated[
        Duration, Meta(description="how long attempts under way may take to finish")
    ] = Duration("25s")


class Secrets(_Section, frozen=True):
    """How signing secrets are encrypted at rest."""

    master_key_file: Annotated[
        str,
        Meta(
            description="file with the master key (base64 of 32 bytes); empty means "
            "$PRIMEFLOWD_MASTER_KEY, else master_key in $CREDENTIALS_DIRECTORY, else one made in "
            "the state directory"
        ),
    ] = ""


class Log(_Section, frozen=True):
    """Logging, to standard error."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Meta(description="least level that is logged: debug, info, warning or error"),
    ] = "info"
    format: Annotated[
        Literal["logfmt", "json"],
        Meta(description="logfmt (key=value pairs on a line) or json (an object on a line)"),
    ] = "logfmt"


class TracingSettings(_Section, frozen=True):
    """Traces, for an OpenTelemetry collector."""

    endpoint: Annotated[
        str,
        Meta(
            description="where spans are sent by OTLP/HTTP, as http://127.0.0.1:4318/v1/traces; "
            "empty makes none. Needs the extra: primeflowd[otel]"
        ),
    ] = ""
    service_name: Annotated[
        str, Meta(min_length=1, description="what the service is called in traces")
    ] = "primeflowd"
    sample_ratio: Annotated[
        float,
        Meta(
            ge=0,
            le=1,
            description="fraction of the traces that is exported; a client's traceparent decides "
            "for the span of its request",
        ),
    ] = 1.0
    pass_on: Annotated[
        bool,
        Meta(description="send receivers a traceparent with each attempt, that of its span"),
    ] = False


class Plugins(_Section, frozen=True):
    """Which installed plugins are loaded; `[plugins.NAME]` is handed to the plugin NAME."""

    enable: Annotated[
        tuple[str, ...], Meta(description="names of entry points in the group primeflowd")
    ] = ()


class Config(_Section, frozen=True):
    """The whole file. `plugin_settings` holds the `[plugins.NAME]` tables as they are;
    `destinations` the `[destinations."URL"]` tables, by `scheme://host:port`."""

    state_directory: Annotated[
        str,
        Meta(
            description="where the database and the master key live; empty means "
            "$STATE_DIRECTORY, else $XDG_STATE_HOME/primeflowd, else ~/.local/state/primeflowd"
        ),
    ] = ""
    api: Api = field(default_factory=Api)
    storage: StorageSettings = field(default_factory=StorageSettings)
    delivery: DeliverySettings = field(default_factory=DeliverySettings)
    retention: RetentionSettings = field(default_factory=RetentionSettings)
    signing: Signing = field(default_factory=Signing)
    events: Events = field(default_factory=Events)
    drain: Drain = field(default_factory=Drain)
    secrets: Secrets = field(default_factory=Secrets)
    log: Log = field(default_factory=Log)
    tracing: TracingSettings = field(default_factory=TracingSettings)
    plugins: Plugins = field(default_factory=Plugins)
    destinations: dict[str, DestinationSettings] = field(default_factory=dict)
    plugin_settings: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def state_path(self) -> Path:
        """The state directory, with the environment's say where the file has none."""
        if self.state_directory:
            return Path(self.state_directory)
        if given := os.environ.get("STATE_DIRECTORY"):
            # systemd joins several directories with colons; the first is ours.
            return Path(given.split(":")[0])
        home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        return Path(home) / "primeflowd"

    @property
    def storage_url(self) -> str:
        """The storage URL, with the default filled in."""
        return self.storage.url or f"sqlite:///{self.state_path / 'primeflowd.db'}"


DEFAULT_PATHS: Final = (Path("primeflowd.toml"), Path("/etc/primeflowd/config.toml"))
"""Where a config file is looked for when none is named."""


def load(path: Path) -> Config:
    """Read and check the file at `path`.

    Raises:
        ConfigError: unreadable, not TOML, or a setting is unknown or not allowed.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text: {error}") from error
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    return from_mapping(tables, str(path))


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
    _check(config, origin)
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


def settings() -> Iterator[tuple[str, str, object, str]]:
    """Every setting as (table, key, default, description); the table of top-level keys is "", and
    that of a destination stands for all of them."""
    yield from _walk("", Config())
    yield from _walk(DESTINATION_TABLE, DestinationSettings())


DESTINATION_TABLE: Final = 'destinations."https://example.com"'


def _walk(table: str, section: _Section) -> Iterator[tuple[str, str, object, str]]:
    hints = get_type_hints(type(section), include_extras=True)
    nested = []
    for name, hint in hints.items():
        value = getattr(section, name)
        if isinstance(value, _Section):
            nested.append((f"{table}.{name}" if table else name, value))
        elif get_origin(hint) is Annotated:
            description = next(
                (
                    m.description
                    for m in get_args(hint)[1:]
                    if isinstance(m, Meta) and m.description
                ),
                "",
            )
            yield table, name, value, description
    for name, inner in nested:
        yield from _walk(name, inner)


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
    what = what[:1].lower() + what[1:]
    return f"{path}: {what}" if path else what


def _declared(path: str, root: Any) -> Any:
    """The type that is declared for `a.b`, without its Meta; `root` itself for the empty path."""
    kind: Any = root
    for name in filter(None, path.split(".")):
        kind = get_type_hints(kind)[name]
    return kind


_LEAST: Final = (
    ("timeout", Duration("1ms")),
    ("connect_timeout", Duration("1ms")),
    ("horizon", Duration("1s")),
    ("suspend_min", Duration("1ms")),  # it doubles, and twice nothing is nothing
)


def _check(config: Config, origin: str) -> None:
    """What types and ranges alone do not say."""
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
