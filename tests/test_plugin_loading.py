"""Loading plugins and handing them their settings, and what is refused at start."""

import re
from pathlib import Path
from typing import Any

import pytest

from primeflowd.config import Config, from_mapping
from primeflowd.errors import ConfigError, PluginError
from primeflowd.model import Outcome, Verdict
from primeflowd.plugins import Plugins
from primeflowd.testing.factories import make_delivery
from tests.distributions import Install, enabling

DELIVERY = make_delivery()
NOT_FOUND = Outcome(status_code=404, started_at=0, ended_at=1)
BY_DEFAULT = Verdict(decision="retry", reason="http_status", detail="HTTP 404")
RECORDER = "@hookimpl\ndef attempts_recorded(records): ..."


def refusal(config: Config) -> str:
    with pytest.raises(PluginError) as caught:
        Plugins(config)
    message = str(caught.value)
    assert "\n" not in message, "the command line prints it as one line"
    return message


def test_built_ins_are_there_without_being_enabled() -> None:
    loaded = Plugins(Config())
    names = [signer.name for signer in loaded.signers(Config())]
    assert names == ["standard-webhooks", "hmac-sha256"]
    assert loaded.classify(NOT_FOUND, DELIVERY) == BY_DEFAULT
    assert loaded.recorders() == {}


def test_only_enabled_plugins_are_imported(install: Install) -> None:
    install("good", "@hookimpl\ndef attempts_recorded(records): ...")
    install("bystander", "raise SystemExit('imported')")
    assert list(Plugins(Config()).recorders()) == []
    assert list(Plugins(enabling("good", "good")).recorders()) == ["good"]


def test_a_missing_plugin_is_named_with_those_there_are(install: Install) -> None:
    install("kafka", "")
    message = refusal(enabling("kafak"))
    assert 'no plugin "kafak" is installed' in message
    assert re.search(r"installed: .*\bkafka\b", message)


def test_two_distributions_with_one_name_are_refused(install: Install) -> None:
    install("kafka", "", distribution="primeflowd-kafka")
    install("kafka", "", distribution="other-kafka")
    message = refusal(enabling("kafka"))
    assert "other-kafka 1.2, primeflowd-kafka 1.2" in message


def test_a_name_of_a_built_in_is_taken(install: Install) -> None:
    install("primeflowd.builtin.signers", RECORDER)
    assert "is that of another plugin" in refusal(enabling("primeflowd.builtin.signers"))


def test_one_module_is_one_plugin(install: Install, tmp_path: Path) -> None:
    install("one", RECORDER)
    [info] = tmp_path.glob("*.dist-info/entry_points.txt")
    info.write_text(info.read_text() + info.read_text().splitlines()[1].replace("one =", "two ="))
    message = refusal(enabling("one", "two"))
    assert message.startswith('plugin "two" (primeflowd-one 1.2): its name, or its module, is that')


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import no_such_module", "cannot be imported: ModuleNotFoundError: No module named"),
        ("def broken(:", "cannot be imported: SyntaxError"),
        ("raise ValueError('a\\nb')", "cannot be imported: ValueError: a b"),
        ("raise SystemExit(0)", "cannot be imported: SystemExit: 0; reinstall it, or take it out"),
        (
            "@hookimpl\ndef classify_outcom(outcome): ...",
            "there is no hook classify_outcom; did it mean classify_outcome?",
        ),
        ("@hookimpl\ndef on_shutdown(): ...", "there is no hook on_shutdown; there are attempts_r"),
        (
            "@hookimpl\ndef classify_outcome(outcome, attempt): ...",
            "Argument(s) {'attempt'} are declared in the hookimpl but can not be found",
        ),
        (
            "@hookimpl\ndef attempts_recorded(attempts): ...",
            "declared in the hookimpl but can not be found in the hookspec; install a version of",
        ),
        (
            "@hookimpl\ndef classify_outcome(outcome, *, delivery): ...",
            "its classify_outcome cannot be called: missing a required",
        ),
        (
            "@hookimpl\ndef attempts_recorded(records=()): ...",
            "its attempts_recorded has a default for records, which it would always get",
        ),
        ("def classify_outcome(outcome): ...", "implements no hook"),
        (
            "@hookimpl\nasync def attempts_recorded(records): ...",
            "its attempts_recorded is async",
        ),
        (
            "@hookimpl(wrapper=True)\ndef classify_outcome(outcome):\n    return (yield)",
            "wraps the hook classify_outcome",
        ),
        (
            "@hookimpl(hookwrapper=True)\ndef classify_outcome(outcome):\n    yield",
            "wraps the hook classify_outcome",
        ),
    ],
)
def test_a_broken_plugin_stops_the_start(install: Install, source: str, expected: str) -> None:
    install("broken", source)
    message = refusal(enabling("broken"))
    assert message.startswith('plugin "broken" (primeflowd-broken 1.2): ')
    assert expected in message


@pytest.mark.parametrize(
    ("api", "expected"),
    [
        (None, "does not say for which version of the hooks it was written, and primeflowd "),
        ("1", "does not say for which version of the hooks it was written"),
        (True, "does not say for which version of the hooks it was written"),
        (0, "was written for version 0 of the hooks, and primeflowd "),
        (0, "has version 1; upgrade it, or take it out of plugins.enable"),
        (2, "has version 1; upgrade primeflowd, or take it out of plugins.enable"),
    ],
)
def test_a_plugin_for_other_hooks_is_refused(
    install: Install, api: int | str | None, expected: str
) -> None:
    install("acme", RECORDER, api=api)
    message = refusal(enabling("acme"))
    assert message.startswith('plugin "acme" (primeflowd-acme 1.2): ')
    assert expected in message


OBJECT = """
class Acme:
    HOOK_API = 1

    @hookimpl
    def classify_outcome(self, outcome):
        return Verdict(decision="success", detail=f"{outcome.status_code}")

acme = Acme()
"""


def test_a_plugin_may_be_an_object(install: Install) -> None:
    install("acme", OBJECT, api=None, attribute="acme")
    verdict = Plugins(enabling("acme")).classify(NOT_FOUND, DELIVERY)
    assert verdict.detail == "404"


def test_a_class_is_refused_since_its_hooks_would_lack_self(install: Install) -> None:
    install("acme", OBJECT, api=None, attribute="Acme")
    assert "is a class; its entry point must name a module" in refusal(enabling("acme"))


# Settings

CONFIGURED = """
from primeflowd.errors import ConfigError

kept = None

@hookimpl
def configure(settings):
    global kept
    assert kept is None, "called twice"
    kept = settings
    if "bad" in settings:
        raise ConfigError(f"bad: not {settings['bad']!r}")
    if "password" in settings:
        raise LookupError(settings["password"])

@hookimpl
def classify_outcome(outcome):
    return Verdict(decision="success", detail=repr(kept))
"""


def with_settings(name: str, settings: dict[str, Any], *enabled: str) -> Config:
    return from_mapping({"plugins": {"enable": list(enabled), name: settings}})


def test_a_plugin_gets_its_own_settings(install: Install) -> None:
    install("acme", CONFIGURED)
    install("other", CONFIGURED.replace("classify_outcome(outcome)", "attempts_recorded()"))
    config = with_settings("acme", {"a": {"b": [1]}}, "other", "acme")
    assert Plugins(config).classify(NOT_FOUND, DELIVERY).detail == "{'a': {'b': [1]}}"


def test_a_plugin_without_settings_gets_an_empty_mapping(install: Install) -> None:
    install("acme", CONFIGURED)
    assert Plugins(enabling("acme")).classify(NOT_FOUND, DELIVERY).detail == "{}"


def test_settings_are_there_before_any_other_hook(install: Install) -> None:
    """Whatever the order in which plugins are enabled."""
    install(
        "acme",
        """
        names = []

        @hookimpl
        def configure(settings): names.append(settings["signer"])

        class Signer:
            def __init__(self, name): self.name = name
            def sign(self, request): return ()

        @hookimpl
        def register_signers(config): return [Signer(name) for name in names]
        """,
    )
    config = from_mapping(
        {
            "plugins": {"enable": ["acme"], "acme": {"signer": "acme-v2"}},
            "signing": {"signers": ["acme-v2", "ed25519"]},
        }
    )
    names = [signer.name for signer in Plugins(config).signers(config)]
    assert names == ["acme-v2 (plugin acme)", "ed25519"]


@pytest.mark.parametrize(
    ("settings", "error", "expected"),
    [
        ({"bad": 3}, ConfigError, "plugins.acme: bad: not 3"),
        (
            {"password": "hunter2"},
            PluginError,
            'plugin "acme" (primeflowd-acme 1.2): configure raised LookupError; take it out of '
            "plugins.enable, or report this to its authors",
        ),
    ],
)
def test_settings_that_a_plugin_refuses_stop_the_start(
    install: Install, settings: dict[str, Any], error: type[Exception], expected: str
) -> None:
    install("acme", CONFIGURED)
    with pytest.raises(error) as caught:
        Plugins(with_settings("acme", settings, "acme"))
    assert str(caught.value) == expected


def test_settings_for_a_plugin_that_takes_none(install: Install) -> None:
    install("acme", RECORDER)
    with pytest.raises(ConfigError) as caught:
        Plugins(with_settings("acme", {}, "acme"))
    assert str(caught.value) == "plugins.acme: this plugin takes no settings"


def test_settings_for_no_plugin_are_a_slip_of_the_pen(install: Install) -> None:
    install("acme", CONFIGURED)
    for name, remedy in (("amce", 'did you mean "acme"\\?$'), ("qqq", r"installed: .*\bacme\b")):
        with pytest.raises(ConfigError) as caught:
            Plugins(with_settings(name, {}, "acme"))
        assert re.match(f"plugins.{name}: no such plugin is installed; {remedy}", str(caught.value))


def test_settings_of_a_plugin_that_is_not_enabled_may_stay(install: Install) -> None:
    """Taking its name out of `enable` is all that it takes to do without it for a while."""
    install("acme", "raise SystemExit('imported')")
    assert Plugins(with_settings("acme", {"bad": 1})).idle == ["acme"]
