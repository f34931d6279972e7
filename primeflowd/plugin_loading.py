"""Finds, imports and checks plugins; what they implement is called by plugins.py.

Built-ins come first, by module name, through the same door as everybody's. Of the installed
distributions only the entry points that are asked for by name are imported: a process that holds
signing secrets does not run whatever was installed beside it.

Every fault is an OperatorError of one line that names the plugin, its distribution and the remedy.
What pluggy alone would overlook is among them: a misspelt hook, an argument that is never given, a
wrapper, a coroutine, a plugin made for other hooks. A plugin that is refused leaves nothing behind.
"""

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

import msgspec
import pluggy

from primeflowd import __version__, hookspecs
from primeflowd.errors import ConfigError, OperatorError, PluginError
from primeflowd.hookspecs import HOOK_API, PROJECT

BUILTINS: Final = (
    "primeflowd.builtin.sqlite",
    "primeflowd.builtin.memory",
    "primeflowd.builtin.signers",
    "primeflowd.builtin.classifier",
)

FAULTS: Final = (Exception, SystemExit)
"""What may come out of a plugin's code; its sys.exit() must not be the daemon's end."""


class Implementation(msgspec.Struct, frozen=True):
    """One plugin's implementation of a hook.

    Attributes:
        plugin: its name, as in `[plugins] enable`.
        label: the plugin and its distribution, for messages.
        call: takes the hook's arguments by position.
    """

    plugin: str
    label: str
    call: Callable[..., Any]


class Registry:
    """The plugins of a process: the built-in ones, and those loaded since."""

    def __init__(self) -> None:
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._hooks = sorted(name for name in vars(self._manager.hook) if name[0] != "_")
        self._labels: dict[str, str] = {}
        for name in BUILTINS:
            self._register(importlib.import_module(name), name, f"built-in {name}")

    def load(self, name: str) -> None:
        """Import, check and register the entry point `name`.

        Raises:
            PluginError: it cannot be used.
        """
        entry = find(name)
        label = label_of(entry)
        try:
            plugin = entry.load()
        except FAULTS as error:
            raise PluginError(
                f"{label}: cannot be imported: {type(error).__name__}: {_one_line(error)}; "
                "reinstall it, or take it out of plugins.enable"
            ) from error
        _check_version(plugin, label)
        self._register(plugin, name, label)

    def configure(self, name: str, settings: Mapping[str, Any] | None) -> None:
        """Hand the plugin `name` its table of the configuration; None where there is none.

        Raises:
            ConfigError: the plugin refuses a setting, or takes none.
            PluginError: it fails otherwise.
        """
        hooks = self.implementations("configure", "settings")
        hook = next((hook for hook in hooks if hook.plugin == name), None)
        if hook is None:
            if settings is not None:
                raise ConfigError(f"plugins.{name}: this plugin takes no settings")
            return
        try:
            at_start(hook, "configure", lambda: hook.call(dict(settings or {})))
        except ConfigError as error:
            raise ConfigError(f"plugins.{name}: {error}") from error

    def implementations(self, hook: str, *arguments: str) -> tuple[Implementation, ...]:
        """Those of `hook`, in the order in which pluggy would ask them."""
        caller: pluggy.HookCaller = getattr(self._manager.hook, hook)
        return tuple(
            Implementation(
                one.plugin_name, self._labels[one.plugin_name], _by_position(one, arguments)
            )
            for one in reversed(caller.get_hookimpls())
        )

    def hooks_of(self, name: str) -> tuple[str, ...]:
        """The hooks that the plugin `name` implements; it must be loaded."""
        callers = self._manager.get_hookcallers(self._manager.get_plugin(name)) or ()
        return tuple(sorted(caller.name for caller in callers))

    def _register(self, plugin: object, name: str, label: str) -> None:
        if self._manager.has_plugin(name) or self._manager.is_registered(plugin):
            raise PluginError(
                f"{label}: its name, or its module, is that of another plugin; take one of them "
                "out of plugins.enable"
            )
        try:
            self._manager.register(plugin, name)
            self._check(plugin, label)
        except pluggy.PluginValidationError as error:
            self._manager.unregister(plugin, name)
            raise PluginError(
                f"{label}: {_one_line(error)}; install a version of it that is made for this "
                "primeflowd, or take it out of plugins.enable"
            ) from error
        except PluginError:
            self._manager.unregister(plugin, name)
            raise
        self._labels[name] = label

    def _check(self, plugin: object, label: str) -> None:
        """Refuse what pluggy would register but that would never work."""
        if inspect.isclass(plugin):
            raise PluginError(
                f"{label}: is a class; its entry point must name a module, or an object of the "
                "class"
            )
        callers = self._manager.get_hookcallers(plugin) or []
        if not callers:
            raise PluginError(
                f"{label}: implements no hook; its functions must be named "
                f"{', '.join(self._hooks)} and marked with primeflowd.hookspecs.hookimpl"
            )
        try:
            self._manager.check_pending()
        except pluggy.PluginValidationError as error:
            [unknown, *_] = [one.name for one in callers if one.name not in self._hooks]
            close = difflib.get_close_matches(unknown, self._hooks, 1)
            remedy = f"did it mean {close[0]}?" if close else f"there are {', '.join(self._hooks)}"
            raise PluginError(f"{label}: there is no hook {unknown}; {remedy}") from error
        for caller in callers:
            for hook in caller.get_hookimpls():
                if hook.plugin is plugin and (fault := _fault(hook, caller)):
                    raise PluginError(f"{label}: {fault}")


def check_tables(enabled: Iterable[str], tables: Iterable[str]) -> list[str]:
    """The plugins that have settings and are installed, but not enabled.

    Raises:
        ConfigError: settings of a plugin that there is not: a slip of the pen, most likely.
    """
    idle = sorted(set(tables) - set(enabled))
    known = {entry.name for entry in installed()} | set(enabled)
    for name in idle:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            remedy = f'did you mean "{close[0]}"?' if close else names_installed()
            raise ConfigError(f"plugins.{name}: no such plugin is installed; {remedy}")
    return idle


def find(name: str) -> EntryPoint:
    """The one plugin of this name, not imported.

    Raises:
        PluginError: there is none, or several.
    """
    found = installed(name)
    if not found:
        raise PluginError(
            f'plugins.enable: no plugin "{name}" is installed ({names_installed()}); install '
            "its distribution where primeflowd is installed, or take the name out"
        )
    if len(found) > 1:
        raise PluginError(
            f'plugins.enable: "{name}" is the name of several installed plugins ('
            + ", ".join(sorted(map(distribution, found)))
            + "); uninstall all but one"
        )
    return found[0]


def installed(name: str | None = None) -> tuple[EntryPoint, ...]:
    """The plugins that are installed, whether enabled or not; of this name, or all."""
    found = entry_points(group=PROJECT)
    return tuple(found if name is None else found.select(name=name))


def names_installed() -> str:
    """The plugins that are installed, in words."""
    names = sorted({entry.name for entry in installed()})
    return f"installed: {', '.join(names)}" if names else "none is installed"


def distribution(entry: EntryPoint) -> str:
    """Name and version of the distribution that a plugin came with."""
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value


def label_of(entry: EntryPoint) -> str:
    """What messages call the plugin."""
    return f'plugin "{entry.name}" ({distribution(entry)})'


def at_start(hook: Implementation, name: str, call: Callable[[], Any]) -> Any:
    """What `call` returns, which calls the hook `name`.

    Raises:
        OperatorError: the plugin's own, or a PluginError for whatever else it raises.
    """
    try:
        return call()
    except OperatorError:
        raise
    except FAULTS as error:
        # Without its text, which may quote a URL with a password.
        raise PluginError(
            f"{hook.label}: {name} raised {type(error).__name__}; take it out of plugins.enable, "
            "or report this to its authors"
        ) from error


def _check_version(plugin: object, label: str) -> None:
    version = getattr(plugin, "HOOK_API", None)
    ours = f"primeflowd {__version__} has version {HOOK_API}"
    if type(version) is not int:
        raise PluginError(
            f"{label}: does not say for which version of the hooks it was written, and {ours}; "
            f"install a version of it that does, or set HOOK_API = {HOOK_API} in it"
        )
    if version != HOOK_API:
        older = "primeflowd" if version > HOOK_API else "it"
        raise PluginError(
            f"{label}: was written for version {version} of the hooks, and {ours}; upgrade "
            f"{older}, or take it out of plugins.enable"
        )


def _fault(hook: pluggy.HookImpl, caller: pluggy.HookCaller) -> str | None:
    """Why an implementation that pluggy accepts could not be called rightly."""
    if hook.wrapper or hook.hookwrapper:
        return f"wraps the hook {caller.name}; primeflowd takes plain implementations only"
    if inspect.iscoroutinefunction(hook.function):
        return f"its {caller.name} is async; hooks are called synchronously"
    if caller.spec is not None:
        for argument in caller.spec.argnames:
            if argument in hook.kwargnames:
                return (
                    f"its {caller.name} has a default for {argument}, which it would always get; "
                    "take the default away"
                )
    try:
        inspect.signature(hook.function).bind(*hook.argnames)
    except TypeError as error:
        return f"its {caller.name} cannot be called: {error}; arguments are given by position"
    return None


def _by_position(hook: pluggy.HookImpl, arguments: tuple[str, ...]) -> Callable[..., Any]:
    """The function of `hook`, called with all of `arguments`; it may want fewer, in any order."""
    function: Callable[..., Any] = hook.function
    if tuple(hook.argnames) == arguments:
        return function
    wanted = [arguments.index(name) for name in hook.argnames]
    return lambda *given: function(*(given[index] for index in wanted))


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
