"""The whole file, and every table of it but those about sending, which delivery.py has."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, field

from primeflowd.config.delivery import DeliverySettings, DestinationSettings
from primeflowd.config.section import Section, settings_of
from primeflowd.durations import Duration
from primeflowd.events import KINDS


class Api(Section, frozen=True):
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


class StorageSettings(Section, frozen=True):
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


class RetentionSettings(Section, frozen=True):
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


class Signing(Section, frozen=True):
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


class Events(Section, frozen=True):
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


class Drain(Section, frozen=True):
    """What happens on SIGTERM."""

    deadline: Annotated[
        Duration, Meta(description="how long attempts under way may take to finish")
    ] = Duration("25s")


class Secrets(Section, frozen=True):
    """How signing secrets are encrypted at rest."""

    master_key_file: Annotated[
        str,
        Meta(
            description="file with the master key (base64 of 32 bytes); empty means "
            "$PRIMEFLOWD_MASTER_KEY, else master_key in $CREDENTIALS_DIRECTORY, else one made in "
            "the state directory"
        ),
    ] = ""


class Log(Section, frozen=True):
    """Logging, to standard error."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Meta(description="least level that is logged: debug, info, warning or error"),
    ] = "info"
    format: Annotated[
        Literal["logfmt", "json"],
        Meta(description="logfmt (key=value pairs on a line) or json (an object on a line)"),
    ] = "logfmt"


class TracingSettings(Section, frozen=True):
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


class Plugins(Section, frozen=True):
    """Which installed plugins are loaded; `[plugins.NAME]` is handed to the plugin NAME."""

    enable: Annotated[
        tuple[str, ...], Meta(description="names of entry points in the group primeflowd")
    ] = ()


class Config(Section, frozen=True):
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


DESTINATION_TABLE: Final = 'destinations."https://example.com"'


def settings() -> Iterator[tuple[str, str, object, str]]:
    """Every setting as (table, key, default, description); the table of top-level keys is "", and
    that of a destination stands for all of them."""
    yield from settings_of("", Config())
    yield from settings_of(DESTINATION_TABLE, DestinationSettings())
