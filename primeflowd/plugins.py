"""Loads the plugins, and calls their hooks.

Built-ins come first, by module name, through the same door as everybody's. Of the installed
distributions only the entry points that `[plugins] enable` names are imported: a process that
holds signing secrets does not run whatever was installed beside it.

A plugin that is missing, does not import, or asks for what the host does not offer (a misspelt
hook, an argument or a wrapper that there is not) is a PluginError at start. One that misbehaves
later is logged by name, at most once a minute and hook, and cannot stop the daemon.

Hooks are called one implementation at a time, not through pluggy's own loop, so that a fault has
a name and does not keep the others from being asked.
"""

import difflib
import importlib
import inspect
import re
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

import msgspec
import pluggy
import structlog

from primeflowd import hookspecs
from primeflowd.config import Config
from primeflowd.errors import ConfigError, OperatorError, PluginError
from primeflowd.hookspecs import PROJECT, Signer, Storage
from primeflowd.model import Attempt, Delivery, Outcome, Verdict

BUILTINS: Final = (
    "primeflowd.builtin.sqlite",
    "primeflowd.builtin.memory",
    "primeflowd.builtin.signers",
    "primeflowd.builtin.classifier",
)
_DEFAULT_CLASSIFIER: Final = "primeflowd.builtin.classifier"
_LOG_INTERVAL: Final = 60.0  # seconds
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")

_encode_verdict: Final = msgspec.msgpack.Encoder().encode
_decode_verdict: Final = msgspec.msgpack.Decoder(Verdict).decode
log = structlog.get_logger()


class _Implementation(msgspec.Struct, frozen=True):
    """One plugin's implementation of a hook; `call` takes the hook's arguments by position."""

    plugin: str
    call: Callable[..., Any]


class Plugins:
    """The plugins of this process, loaded and checked.

    Raises:
        PluginError: one that `config.plugins.enable` names cannot be used.
    """

    def __init__(self, config: Config, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._hooks = sorted(name for name in vars(self._manager.hook) if name[0] != "_")
        self._monotonic = monotonic
        self._logged: dict[tuple[str, str], float] = {}
        for name in BUILTINS:
            self._register(importlib.import_module(name), name, f"built-in {name}")
        # Naming one twice is harmless.
        for name in dict.fromkeys(config.plugins.enable):
            self._load(name)
        classifiers = self._implementations("classify_outcome", "outcome", "delivery")
        default = next(c for c in classifiers if c.plugin == _DEFAULT_CLASSIFIER)
        self._classify_by_default: Callable[[Outcome, Delivery], Verdict] = default.call
        self._classifiers = tuple(c for c in classifiers if c is not default)
        self._recorders = self._implementations("attempts_recorded", "attempts")

    def open_storage(
        self, config: Config, node_id: str | None
    ) -> AbstractAsyncContextManager[Storage]:
        """The storage that `config.storage.url` names, to be entered.

        Raises:
            ConfigError: no plugin takes that URL; the message does not repeat it, since it may
                hold a password.
            PluginError: the plugin that takes it is broken.
        """
        for hook in self._implementations("open_storage", "config", "node_id"):
            storage = _at_start(hook, "open_storage", partial(hook.call, config, node_id))
            if storage is None:
                continue
            if not isinstance(storage, AbstractAsyncContextManager):
                raise PluginError(
                    f'plugin "{hook.plugin}": open_storage returned a {type(storage).__name__}, '
                    "not an async context manager; report this to its authors"
                )
            return storage
        scheme = _SCHEME.match(config.storage_url)
        what = f"opens {scheme[1]}:// URLs" if scheme else "opens what it says, which is no URL"
        raise ConfigError(
            f"storage.url: no plugin {what}; use sqlite:///PATH or memory://, or install the "
            f"plugin for it and name it in plugins.enable ({_installed()})"
        )

    def signers(self, config: Config) -> tuple[Signer, ...]:
        """The signers that `config.signing.signers` names, in that order.

        Raises:
            ConfigError: a name there is unknown or stands twice.
            PluginError: two plugins use one name, or one registers what is no signer.
        """
        known: dict[str, tuple[str, Signer]] = {}
        for hook in self._implementations("register_signers", "config"):
            found = _at_start(hook, "register_signers", partial(_registered, hook.call, config))
            for signer in found:
                name = getattr(signer, "name", None)
                if not isinstance(name, str) or not callable(getattr(signer, "sign", None)):
                    raise PluginError(
                        f'plugin "{hook.plugin}": register_signers gave a '
                        f"{type(signer).__name__}, which has no name or no sign(); report this "
                        "to its authors"
                    )
                if name in known:
                    raise PluginError(
                        f'plugins "{known[name][0]}" and "{hook.plugin}" both register a signer '
                        f'"{name}"; take one of them out of plugins.enable'
                    )
                known[name] = (hook.plugin, signer)
        chosen = config.signing.signers
        for position, name in enumerate(chosen):
            if name not in known:
                raise ConfigError(
                    f'signing.signers: there is no signer "{name}"; known are '
                    + ", ".join(sorted(known))
                )
            if name in chosen[:position]:
                raise ConfigError(f'signing.signers: "{name}" stands there twice')
        return tuple(known[name][1] for name in chosen)

    def classify(self, outcome: Outcome, delivery: Delivery) -> Verdict:
        """What `outcome` means: the first plugin that answers, else the default. Never raises.

        A plugin that raises, or returns what is no sound Verdict, counts as not having answered.
        """
        for hook in self._classifiers:
            try:
                answer = hook.call(outcome, delivery)
                if answer is not None:
                    return _checked(answer)
            except Exception as error:  # noqa: BLE001 - a plugin must not decide our fate
                self._log_fault(hook.plugin, "classify_outcome", error)
        return self._classify_by_default(outcome, delivery)

    def recorded(self, attempts: Sequence[Attempt]) -> None:
        """Tell all plugins of attempts that are on record. Never raises."""
        for hook in self._recorders:
            try:
                hook.call(attempts)
            except Exception as error:  # noqa: BLE001 - nor may it undo what is on record
                self._log_fault(hook.plugin, "attempts_recorded", error)

    def _load(self, name: str) -> None:
        """Import and register the entry point `name`."""
        found = tuple(entry_points(group=PROJECT, name=name))
        if not found:
            raise PluginError(
                f'plugins.enable: no plugin "{name}" is installed ({_installed()}); install its '
                "distribution where primeflowd is installed, or take the name out"
            )
        if len(found) > 1:
            raise PluginError(
                f'plugins.enable: "{name}" is the name of several installed plugins ('
                + ", ".join(sorted(map(_distribution, found)))
                + "); uninstall all but one"
            )
        label = f'plugin "{name}" ({_distribution(found[0])})'
        try:
            plugin = found[0].load()
        except Exception as error:
            raise PluginError(
                f"{label}: cannot be imported: {type(error).__name__}: {_one_line(error)}; "
                "reinstall it, or take it out of plugins.enable"
            ) from error
        self._register(plugin, name, label)

    def _register(self, plugin: object, name: str, label: str) -> None:
        """Register `plugin`; pluggy alone would overlook most of what is refused here."""
        try:
            self._manager.register(plugin, name)
        except (pluggy.PluginValidationError, ValueError) as error:
            raise PluginError(
                f"{label}: cannot be registered: {_one_line(error)}; install a version of it that "
                "is made for this primeflowd, or take it out of plugins.enable"
            ) from error
        try:
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            raise PluginError(f"{label}: {self._unknown_hook(plugin)}") from error
        callers = self._manager.get_hookcallers(plugin) or []
        if not callers:
            raise PluginError(
                f"{label}: implements no hook; its functions must be named "
                f"{', '.join(self._hooks)} and marked with primeflowd.hookspecs.hookimpl"
            )
        for caller in callers:
            for hook in caller.get_hookimpls():
                if hook.wrapper or hook.hookwrapper:
                    raise PluginError(
                        f"{label}: wraps the hook {caller.name}; primeflowd takes plain "
                        "implementations only"
                    )
                if inspect.iscoroutinefunction(hook.function):
                    raise PluginError(
                        f"{label}: its {caller.name} is async; hooks are called synchronously"
                    )

    def _unknown_hook(self, plugin: object) -> str:
        names = [
            caller.name
            for caller in self._manager.get_hookcallers(plugin) or ()
            if caller.name not in self._hooks
        ]
        close = difflib.get_close_matches(names[0], self._hooks, 1)
        remedy = f"did it mean {close[0]}?" if close else f"there are {', '.join(self._hooks)}"
        return f"there is no hook {names[0]}; {remedy}"

    def _implementations(self, hook: str, *arguments: str) -> tuple[_Implementation, ...]:
        """Those of `hook`, in the order in which pluggy would ask them."""
        caller: pluggy.HookCaller = getattr(self._manager.hook, hook)
        return tuple(
            _Implementation(implementation.plugin_name, _by_position(implementation, arguments))
            for implementation in reversed(caller.get_hookimpls())
        )

    def _log_fault(self, plugin: str, hook: str, error: Exception) -> None:
        now = self._monotonic()
        last = self._logged.get((plugin, hook))
        # A plugin that fails at every attempt would fill the disk and slow every sender.
        if last is None or now - last >= _LOG_INTERVAL:
            self._logged[plugin, hook] = now
            log.error("plugin_failed", plugin=plugin, hook=hook, exc_info=error)


def _by_position(hook: pluggy.HookImpl, arguments: tuple[str, ...]) -> Callable[..., Any]:
    """The function of `hook`, called with all of `arguments`; it may want fewer, in any order."""
    function: Callable[..., Any] = hook.function
    if tuple(hook.argnames) == arguments:
        return function
    wanted = [arguments.index(name) for name in hook.argnames]
    return lambda *given: function(*(given[index] for index in wanted))


def _registered(register: Callable[..., Any], config: Config) -> list[Any]:
    # The list is made here because a generator raises only when it is read.
    return list(register(config) or ())


def _at_start(hook: _Implementation, name: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except OperatorError:
        raise
    except Exception as error:
        # Without its text, which may quote a URL with a password.
        raise PluginError(
            f'plugin "{hook.plugin}": {name} raised {type(error).__name__}; take it out of '
            "plugins.enable, or report this to its authors"
        ) from error


def _checked(answer: object) -> Verdict:
    """`answer` if it is a Verdict whose fields have the right types; structs do not check that."""
    if not isinstance(answer, Verdict):
        raise TypeError(f"a Verdict or None is wanted, not {type(answer).__name__}")
    verdict = _decode_verdict(_encode_verdict(answer))
    if verdict.decision != "success" and verdict.reason is None:
        raise ValueError(f"a Verdict to {verdict.decision} needs a reason")
    return verdict


def _installed() -> str:
    names = sorted({entry.name for entry in entry_points(group=PROJECT)})
    return f"installed: {', '.join(names)}" if names else "none is installed"


def _distribution(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
