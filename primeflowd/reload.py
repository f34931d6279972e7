"""Reloading: a new configuration in the place of the present one, while the daemon runs.

The file is read and checked as a whole first, with what it names: signers, the CA file, plugins. A
file that is refused changes nothing. Then all parts are told in one go, without a pause in which
anybody could meet half of it; whatever is under way ends as it began. What cannot change while the
daemon runs stays as it was and is named, at each reload, until the daemon is started again.

Two reloads never run at the same time. Blocks on reading files, in a thread. Fails with
OperatorError, which is in the log then; cancelled before it is done, it changes nothing.
"""

import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any, Final, NamedTuple, TypeVar, cast

import msgspec
import structlog
import trio

from primeflowd.config import Config
from primeflowd.errors import ConfigError, OperatorError
from primeflowd.hookspecs import Signer
from primeflowd.plugins import Plugins, check_names
from primeflowd.transport import Loaded

log = structlog.get_logger()

S = TypeVar("S", bound=msgspec.Struct)

LIVE: Final = frozenset(
    {
        "api.max_body",
        "api.max_bulk_body",
        "api.rate_burst",
        "api.rate_limit",
        "delivery.active_limit",
        "delivery.ca_file",
        "delivery.concurrency",
        "delivery.connect_timeout",
        "delivery.default_policy.delays",
        "delivery.default_policy.max_retries",
        "delivery.destination_share",
        "delivery.disable_after",
        "delivery.egress.allow",
        "delivery.egress.allowed_ports",
        "delivery.egress.deny",
        "delivery.egress.require_https",
        "delivery.horizon",
        "delivery.idle_timeout",
        "delivery.jitter",
        "delivery.max_idle_per_destination",
        "delivery.max_response_body",
        "delivery.max_response_header",
        "delivery.recovery_rate",
        "delivery.retry_after_cap",
        "delivery.suspend_after",
        "delivery.suspend_max",
        "delivery.suspend_min",
        "delivery.suspend_period",
        "delivery.timeout",
        "delivery.window_initial",
        "delivery.window_max",
        "drain.deadline",
        "log.level",
        "retention.answers",
        "retention.batches",
        "retention.every",
        "retention.response_bodies",
        "signing.hmac_header",
        "signing.hmac_prefix",
        "signing.signers",
        "storage.max_backlog",
    }
)
"""The settings that a reload changes."""

_TRACING: Final = "tracing is set up at the start"
_EVENTS: Final = "who is told of events is settled at the start"

FIXED: Final = {
    "api.bind": "the port is bound at the start",
    "api.reuse_port": "the port is bound at the start",
    "api.server": "the server is chosen at the start",
    "events.interval": _EVENTS,
    "events.kinds": _EVENTS,
    "events.org": _EVENTS,
    "events.url": _EVENTS,
    "log.format": "a log has one format from its first line on",
    "plugins.enable": "plugins are loaded at the start",
    "secrets.master_key_file": "the master key is read at the start",
    "state_directory": "the storage and the master key are opened at the start",
    "storage.lease_ttl": "other nodes go by the one that this node began with",
    "storage.url": "the storage is opened at the start",
    "tracing.endpoint": _TRACING,
    "tracing.pass_on": _TRACING,
    "tracing.sample_ratio": _TRACING,
    "tracing.service_name": _TRACING,
}
"""Those that take a restart, and why."""

# Where a field's name is not that of its tables.
_TABLES: Final = {"plugin_settings": "plugins"}
_PLUGIN_SETTINGS: Final = "plugins take their settings at the start"


class Reloaded(msgspec.Struct, frozen=True):
    """What a reload did: names of settings, never their values."""

    changed: tuple[str, ...]
    needs_restart: dict[str, str]


class Prepared(NamedTuple):
    """A configuration that was checked, with what parts need of it ready for use."""

    config: Config
    loaded: Loaded
    signers: tuple[Signer, ...]


class Reloader:
    """Reloads the configuration of one daemon."""

    def __init__(
        self,
        config: Config,
        source: Callable[[], Config],
        plugins: Plugins,
        apply: Callable[[Prepared], None],
        tell: Callable[..., Awaitable[None]],
        status: Callable[[], str],
    ) -> None:
        """`source` reads the file that `config` came from, in some thread; `apply` tells all parts
        and neither waits nor fails; `tell` tells the service manager."""
        self._config = config
        self._source = source
        self._plugins = plugins
        self._apply = apply
        self._tell = tell
        self._status = status
        self._lock = trio.Lock()

    async def reload(self) -> Reloaded:
        """Read the file anew and go by it.

        Raises:
            OperatorError: it is refused, and nothing has changed.
        """
        async with self._lock:
            # systemd wants to know that this answers its own request, and no earlier one.
            now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            try:
                await self._tell("RELOADING=1", f"MONOTONIC_USEC={now}")
                done = await self._reload()
            except OperatorError as error:
                log.error("reload_failed", reason=str(error))
                raise
            finally:
                with trio.CancelScope(shield=True):
                    await self._tell("READY=1", f"STATUS={self._status()}")
        log.info("reloaded", changed=done.changed, needs_restart=tuple(done.needs_restart))
        return done

    async def _reload(self) -> Reloaded:
        before = self._config
        found, config, loaded = await trio.to_thread.run_sync(
            partial(_read, self._source, before), abandon_on_cancel=True
        )
        fixed = {name: reason for name in differences(before, found) if (reason := _fixed(name))}
        try:
            signers = self._plugins.signers(config)
        except ConfigError as error:
            if "plugins.enable" not in fixed:
                raise
            raise ConfigError(f"{error}; plugins.enable takes a restart") from error
        self._config = config
        self._apply(Prepared(config, loaded, signers))
        return Reloaded(tuple(differences(before, config)), fixed)


def _read(source: Callable[[], Config], before: Config) -> tuple[Config, Config, Loaded]:
    """The file as it is, as far as it can be gone by, and what that names."""
    found = source()
    check_names(found)
    config = _with_fixed(before, found)
    return found, config, Loaded.of(config.delivery)


def differences(before: msgspec.Struct, after: msgspec.Struct, table: str = "") -> Iterator[str]:
    """The settings that are not the same, as `delivery.timeout`, in the order of their
    declaration; of tables with names of their own, as a plugin's, those."""
    for name in after.__struct_fields__:
        old, new = getattr(before, name), getattr(after, name)
        if isinstance(new, dict):
            tables = sorted(old.keys() | new.keys())
            field = _TABLES.get(name, name)
            yield from (f"{field}.{one}" for one in tables if old.get(one) != new.get(one))
        elif isinstance(new, msgspec.Struct):
            yield from differences(old, new, f"{table}{name}.")
        elif old != new:
            yield table + name


def _with_fixed(before: S, after: S, table: str = "") -> S:
    """`after`, but for what takes a restart."""
    kept: dict[str, Any] = {}
    for name in after.__struct_fields__:
        old, new = getattr(before, name), getattr(after, name)
        if name == "plugin_settings" or table + name in FIXED:
            kept[name] = old
        elif isinstance(new, msgspec.Struct):
            kept[name] = _with_fixed(cast("msgspec.Struct", old), new, f"{table}{name}.")
    return msgspec.structs.replace(after, **kept)


def _fixed(name: str) -> str | None:
    """Why a setting takes a restart, None if it does not."""
    if name in FIXED:
        return FIXED[name]
    return _PLUGIN_SETTINGS if name.startswith("plugins.") else None
