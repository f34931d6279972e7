"""Calls the hooks of the plugins.

A plugin that cannot be used, or whose settings are wrong, is an OperatorError at start; see
plugin_loading.py. One that misbehaves later is logged by name, at most once a minute and hook, and
cannot stop the daemon.

Hooks are called one implementation at a time, not through pluggy's own loop, so that a fault has
a name and does not keep the others from being asked.
"""

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, Final

import msgspec
import structlog

from primeflowd.config import Config
from primeflowd.errors import ConfigError, PluginError
from primeflowd.hookspecs import RecordedAttempt, SchemaState, Signer, SigningRequest, Storage
from primeflowd.model import Delivery, Outcome, Verdict
from primeflowd.plugin_loading import (
    BUILTINS,
    FAULTS,
    Implementation,
    Registry,
    at_start,
    check_tables,
    find,
    names_installed,
)

_DEFAULT_CLASSIFIER: Final = "primeflowd.builtin.classifier"
_LOG_INTERVAL: Final = 60.0  # seconds
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")

_encode_verdict: Final = msgspec.msgpack.Encoder().encode
_decode_verdict: Final = msgspec.msgpack.Decoder(Verdict).decode
log = structlog.get_logger()


class _NamedSigner(msgspec.Struct, frozen=True):
    """A third party's signer; its name tells the plugin too, for what a failed attempt says."""

    name: str
    sign: Callable[[SigningRequest], Iterable[tuple[str, str]]]


class Plugins:
    """The plugins of this process, loaded, checked and configured.

    Attributes:
        idle: those that have settings but are not enabled.
        failures: by plugin and hook, how many calls raised or returned nonsense since the start.
            Each is counted in one thread: the announcer's for that plugin, or Trio's.

    Raises:
        PluginError: one that `config.plugins.enable` names cannot be used.
        ConfigError: a plugin refuses its settings, or there are settings for none.
    """

    def __init__(self, config: Config, monotonic: Callable[[], float] = time.monotonic) -> None:
        # Naming one twice is harmless.
        enabled, tables = tuple(dict.fromkeys(config.plugins.enable)), config.plugin_settings
        self._registry = Registry()
        self._monotonic = monotonic
        self._logged: dict[tuple[str, str], float] = {}
        for name in enabled:
            self._registry.load(name)
        self.idle = check_tables(enabled, tables)
        for name in enabled:
            self._registry.configure(name, tables.get(name))
        classifiers = self._registry.implementations("classify_outcome", "outcome", "delivery")
        default = next(c for c in classifiers if c.plugin == _DEFAULT_CLASSIFIER)
        self._classify_by_default: Callable[[Outcome, Delivery], Verdict] = default.call
        self._classifiers = tuple(c for c in classifiers if c is not default)
        self._recorders = self._registry.implementations("attempts_recorded", "records")
        self.failures = {(hook.plugin, "classify_outcome"): 0 for hook in self._classifiers}
        self.failures |= {(hook.plugin, "attempts_recorded"): 0 for hook in self._recorders}

    def open_storage(
        self, config: Config, node_id: str | None
    ) -> AbstractAsyncContextManager[Storage]:
        """The storage that `config.storage.url` names, to be entered.

        Raises:
            ConfigError: no plugin takes that URL; the message does not repeat it, since it may
                hold a password.
            PluginError: the plugin that takes it is broken.
        """
        storage: AbstractAsyncContextManager[Storage] | None = self._first(
            "open_storage", AbstractAsyncContextManager, config=config, node_id=node_id
        )
        if storage is not None:
            return storage
        scheme = _SCHEME.match(config.storage_url)
        what = f"opens {scheme[1]}:// URLs" if scheme else "opens what it says, which is no URL"
        raise ConfigError(
            f"storage.url: no plugin {what}; use sqlite:///PATH or memory://, or install the "
            f"plugin for it and name it in plugins.enable ({names_installed()})"
        )

    def migrate_storage(self, config: Config, check: bool) -> SchemaState | None:
        """Bring the schema of the storage that `config.storage.url` names up to date, or only
        look, with `check`; None if it has none. Blocks.

        Raises:
            OperatorError: it cannot be done.
            PluginError: the plugin that takes that URL is broken.
        """
        state: SchemaState | None = self._first(
            "migrate_storage", SchemaState, config=config, check=check
        )
        return state

    def signers(self, config: Config) -> tuple[Signer, ...]:
        """The signers that `config.signing.signers` names, in that order.

        Raises:
            ConfigError: a name there is unknown or stands twice.
            PluginError: two plugins use one name, or one registers what is no signer.
        """
        known: dict[str, tuple[Implementation, Signer]] = {}
        for hook in self._registry.implementations("register_signers", "config"):
            for signer in at_start(hook, "register_signers", partial(_registered, hook, config)):
                name = getattr(signer, "name", None)
                if not isinstance(name, str) or not callable(getattr(signer, "sign", None)):
                    raise PluginError(
                        f"{hook.label}: register_signers gave a {type(signer).__name__}, which "
                        "has no name or no sign(); report this to its authors"
                    )
                if name in known:
                    raise PluginError(
                        f"{known[name][0].label} and {hook.label}: register_signers of both "
                        f'gives a signer "{name}"; take one of them out of plugins.enable'
                    )
                known[name] = (hook, signer)
        chosen = config.signing.signers
        for position, name in enumerate(chosen):
            if name not in known:
                raise ConfigError(
                    f'signing.signers: there is no signer "{name}"; known are '
                    + ", ".join(sorted(known))
                )
            if name in chosen[:position]:
                raise ConfigError(f'signing.signers: "{name}" stands there twice')
        return tuple(_named(*known[name]) for name in chosen)

    @property
    def classify(self) -> Callable[[Outcome, Delivery], Verdict]:
        """What tells what an outcome means: the first plugin that answers, else the default. Never
        raises.

        A plugin that raises, or returns what is no sound Verdict, counts as not having answered.
        """
        return self._classify if self._classifiers else self._classify_by_default

    def _classify(self, outcome: Outcome, delivery: Delivery) -> Verdict:
        for hook in self._classifiers:
            try:
                answer = hook.call(outcome, delivery)
                if answer is not None:
                    return _checked(answer)
            except FAULTS as error:
                self._log_fault(hook, "classify_outcome", error)
        return self._classify_by_default(outcome, delivery)

    def recorders(self) -> Mapping[str, Callable[[Sequence[RecordedAttempt]], None]]:
        """How to tell each plugin that wants to know of attempts on record, by its name.

        The calls never raise. They block for as long as the plugin likes.
        """
        return {hook.plugin: partial(self._recorded, hook) for hook in self._recorders}

    def _first(self, name: str, kind: type, **given: object) -> Any:
        """What the hook `name` returns, of the first plugin that returns anything; else None.

        Raises:
            OperatorError: that plugin's own, or a PluginError where it is broken.
        """
        for hook in self._registry.implementations(name, *given):
            answer = at_start(hook, name, partial(hook.call, *given.values()))
            if answer is None:
                continue
            if not isinstance(answer, kind):
                raise PluginError(
                    f"{hook.label}: {name} returned {type(answer).__name__}, not {kind.__name__}; "
                    "report this to its authors"
                )
            return answer
        return None

    def _recorded(self, hook: Implementation, records: Sequence[RecordedAttempt]) -> None:
        try:
            hook.call(records)
        except FAULTS as error:
            self._log_fault(hook, "attempts_recorded", error)

    def _log_fault(self, hook: Implementation, name: str, error: BaseException) -> None:
        self.failures[hook.plugin, name] += 1
        now = self._monotonic()
        last = self._logged.get((hook.plugin, name))
        # A plugin that fails at every attempt would fill the disk and slow every sender.
        if last is None or now - last >= _LOG_INTERVAL:
            self._logged[hook.plugin, name] = now
            log.error("plugin_failed", plugin=hook.plugin, hook=name, exc_info=error)


def check_names(config: Config) -> None:
    """Check what can be told of `[plugins]` without loading one.

    Raises:
        PluginError: one that is enabled is not installed, or several of that name are.
        ConfigError: there are settings for none.
    """
    for name in config.plugins.enable:
        find(name)
    check_tables(config.plugins.enable, config.plugin_settings)


def _registered(hook: Implementation, config: Config) -> list[Any]:
    # The list is made here because a generator raises only when it is read.
    return list(hook.call(config) or ())


def _named(hook: Implementation, signer: Signer) -> Signer:
    if hook.plugin in BUILTINS:
        return signer
    return _NamedSigner(f"{signer.name} (plugin {hook.plugin})", signer.sign)


def _checked(answer: object) -> Verdict:
    """`answer` if it is a Verdict whose fields have the right types; structs do not check that."""
    if not isinstance(answer, Verdict):
        raise TypeError(f"a Verdict or None is wanted, not {type(answer).__name__}")
    verdict = _decode_verdict(_encode_verdict(answer))
    if verdict.decision != "success" and verdict.reason is None:
        raise ValueError(f"a Verdict to {verdict.decision} needs a reason")
    return verdict
