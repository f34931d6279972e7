"""The tables about sending: `[delivery]` with what stands in it, and `[destinations."URL"]`."""

from typing import Annotated, Literal

from msgspec import Meta, field

from primeflowd.config.section import Section
from primeflowd.durations import Duration


class Egress(Section, frozen=True):
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


class DefaultPolicy(Section, frozen=True):
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


class DeliverySettings(Section, frozen=True):
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


class DestinationSettings(Section, frozen=True):
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
