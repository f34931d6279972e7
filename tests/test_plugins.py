"""Plugins: built-ins and enabled entry points, and what a broken one can and cannot do."""

import itertools
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from structlog.testing import capture_logs

from primeflowd.config import Config, from_mapping
from primeflowd.errors import ConfigError, PluginError
from primeflowd.hookspecs import Storage
from primeflowd.model import Attempt, Delivery, Outcome, Verdict
from primeflowd.plugins import Plugins

Install = Callable[..., None]
_serial = itertools.count()

DELIVERY = Delivery(
    id="d", batch_id="b", org_id="acme", callback_url="https://example.com/",
    destination="https://example.com:443", is_automatic=True, status="pending",
    failure_reason=None, failure_detail=None, attempt_count=0, interruptions=0, delays=("1s",),
    max_retries=1, policy_source="default", policy_plan_id="", signing_secret_id=None, due_at=0,
    claimed_by=None, created_at=0, updated_at=0, completed_at=None,
)  # fmt: skip
NOT_FOUND = Outcome(status_code=404, started_at=0, ended_at=1)
BY_DEFAULT = Verdict(decision="retry", reason="http_status", detail="HTTP 404")
ATTEMPT = Attempt(
    id="a", delivery_id="d", attempt_number=1, status_code=200, response_body=None,
    response_time=1, error_message=None, failure_reason=None, signing_secret_id=None, created_at=0,
)  # fmt: skip

HEAD = """
from primeflowd.hookspecs import hookimpl
from primeflowd.model import Verdict
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a distribution with one plugin, the way an installer lays it out on disk."""
    monkeypatch.syspath_prepend(tmp_path)

    def install_one(name: str, source: str, distribution: str = "") -> None:
        # A module of its own each time: one imported by another test must not answer for it.
        module = f"plugin_of_a_test_{next(_serial)}"
        distribution = distribution or f"primeflowd-{name}"
        (tmp_path / f"{module}.py").write_text(HEAD + dedent(source))
        info = tmp_path / f"{distribution.replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n"
        )
        (info / "entry_points.txt").write_text(f"[primeflowd]\n{name} = {module}\n")
        monkeypatch.syspath_prepend(tmp_path)  # drops what the import system remembers

    return install_one


def enabling(*names: str, **tables: Any) -> Config:
    return from_mapping({**tables, "plugins": {"enable": list(names)}})


def refusal(config: Config) -> str:
    with pytest.raises(PluginError) as caught:
        Plugins(config)
    message = str(caught.value)
    assert "\n" not in message, "the command line prints it as one line"
    return message


# Loading


def test_built_ins_are_there_without_being_enabled() -> None:
    loaded = Plugins(Config())
    names = [signer.name for signer in loaded.signers(Config())]
    assert names == ["standard-webhooks", "hmac-sha256"]
    assert loaded.classify(NOT_FOUND, DELIVERY) == BY_DEFAULT
    loaded.recorded([ATTEMPT])


def test_only_enabled_plugins_are_imported(install: Install) -> None:
    install("good", "@hookimpl\ndef attempts_recorded(attempts): raise RuntimeError('called')")
    install("bystander", "raise SystemExit('imported')")
    with capture_logs() as logs:
        Plugins(Config()).recorded([ATTEMPT])
        assert logs == []
        Plugins(enabling("good", "good")).recorded([ATTEMPT])
    assert [line["plugin"] for line in logs] == ["good"]


def test_a_missing_plugin_is_named_with_those_there_are(install: Install) -> None:
    install("kafka", "")
    message = refusal(enabling("kafak"))
    assert 'no plugin "kafak" is installed' in message
    assert "installed: kafka" in message


def test_two_distributions_with_one_name_are_refused(install: Install) -> None:
    install("kafka", "", distribution="primeflowd-kafka")
    install("kafka", "", distribution="other-kafka")
    message = refusal(enabling("kafka"))
    assert "other-kafka 1.2, primeflowd-kafka 1.2" in message


def test_a_name_of_a_built_in_is_taken(install: Install) -> None:
    install("primeflowd.builtin.signers", "@hookimpl\ndef attempts_recorded(attempts): ...")
    assert "already registered" in refusal(enabling("primeflowd.builtin.signers"))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import no_such_module", "cannot be imported: ModuleNotFoundError: No module named"),
        ("def broken(:", "cannot be imported: SyntaxError"),
        ("raise ValueError('a\\nb')", "cannot be imported: ValueError: a b"),
        (
            "@hookimpl\ndef classify_outcom(outcome): ...",
            "there is no hook classify_outcom; did it mean classify_outcome?",
        ),
        ("@hookimpl\ndef on_shutdown(): ...", "there is no hook on_shutdown; there are attempts_r"),
        (
            "@hookimpl\ndef classify_outcome(outcome, attempt): ...",
            "Argument(s) {'attempt'} are declared in the hookimpl but can not be found",
        ),
        ("def classify_outcome(outcome): ...", "implements no hook"),
        (
            "@hookimpl\nasync def attempts_recorded(attempts): ...",
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


def test_a_plugin_gets_its_settings_with_the_config(install: Install) -> None:
    install(
        "acme",
        """
        class Signer:
            def __init__(self, name): self.name = name
            def sign(self, request): return ()

        @hookimpl
        def register_signers(config):
            yield Signer(config.plugin_settings["acme"]["signer"])
        """,
    )
    config = from_mapping(
        {
            "plugins": {"enable": ["acme"], "acme": {"signer": "acme-v2"}},
            "signing": {"signers": ["acme-v2", "ed25519"]},
        }
    )
    assert [s.name for s in Plugins(config).signers(config)] == ["acme-v2", "ed25519"]


# Signers


def test_6_2_config_names_the_signers_and_their_order() -> None:
    config = from_mapping({"signing": {"signers": ["ed25519", "hmac-sha256"]}})
    assert [s.name for s in Plugins(config).signers(config)] == ["ed25519", "hmac-sha256"]
    none = from_mapping({"signing": {"signers": []}})
    assert Plugins(none).signers(none) == ()


def test_6_2_an_unknown_signer_is_named_with_the_known_ones() -> None:
    config = from_mapping({"signing": {"signers": ["hmac-sha1"]}})
    with pytest.raises(ConfigError) as caught:
        Plugins(config).signers(config)
    assert str(caught.value) == (
        'signing.signers: there is no signer "hmac-sha1"; known are ed25519, hmac-sha256, '
        "standard-webhooks"
    )


def test_6_2_a_signer_named_twice_is_refused() -> None:
    config = from_mapping({"signing": {"signers": ["ed25519", "ed25519"]}})
    with pytest.raises(ConfigError, match='"ed25519" stands there twice'):
        Plugins(config).signers(config)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("return [Signer('ed25519')]", 'both register a signer "ed25519"'),
        ("return [Signer('x'), Signer('x')]", 'both register a signer "x"'),
        ("return [object()]", "gave a object, which has no name or no sign()"),
        ("return [Signer(5)]", "gave a Signer, which has no name or no sign()"),
        ("return 5", "register_signers raised TypeError"),
        ("yield Signer('x'); raise KeyError('pw=hunter2')", "register_signers raised KeyError"),
    ],
)
def test_6_2_signers_that_cannot_be_used_stop_the_start(
    install: Install, body: str, expected: str
) -> None:
    install(
        "acme",
        f"""
        class Signer:
            def __init__(self, name): self.name = name
            def sign(self, request): return ()

        @hookimpl
        def register_signers(config):
            {body}
        """,
    )
    loaded = Plugins(enabling("acme"))
    with pytest.raises(PluginError) as caught:
        loaded.signers(Config())
    assert expected in str(caught.value)
    assert '"acme"' in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_plugin_that_registers_no_signers_may_say_so_with_none(install: Install) -> None:
    install("acme", "@hookimpl\ndef register_signers(): return None")
    assert len(Plugins(enabling("acme")).signers(Config())) == 2


# Storage


async def test_the_built_in_storage_opens_by_its_url() -> None:
    config = from_mapping({"storage": {"url": "memory://"}})
    async with Plugins(config).open_storage(config, "node") as storage:
        assert isinstance(storage, Storage)
        assert await storage.read(lambda tx: tx.note("none")) is None


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("oracle+thin://scott:tiger@db/x", "no plugin opens oracle+thin:// URLs"),
        ("scott:tiger@db/x", "no plugin opens what it says, which is no URL"),
    ],
)
def test_a_url_that_nobody_opens_is_not_repeated(install: Install, url: str, expected: str) -> None:
    install("postgresql", "")
    config = from_mapping({"storage": {"url": url}})
    with pytest.raises(ConfigError) as caught:
        Plugins(config).open_storage(config, "node")
    message = str(caught.value)
    assert message.startswith(f"storage.url: {expected}; ")
    assert "installed: postgresql" in message
    assert "tiger" not in message


def test_a_storage_plugin_goes_before_the_built_in(install: Install) -> None:
    install(
        "acme",
        """
        import contextlib

        @hookimpl
        def open_storage(config, node_id):
            if config.storage.url.startswith("memory:"):
                return contextlib.nullcontext(node_id)
        """,
    )
    config = enabling("acme", storage={"url": "memory://"})
    opened: object = Plugins(config).open_storage(config, "mine")
    assert getattr(opened, "enter_result", None) == "mine"


@pytest.mark.parametrize(
    ("body", "error", "expected"),
    [
        ("raise ValueError(config.storage.url)", PluginError, "open_storage raised ValueError"),
        ("return 5", PluginError, "open_storage returned a int"),
        ("raise ConfigError('acme: pool too small')", ConfigError, "acme: pool too small"),
    ],
)
def test_a_storage_plugin_that_fails_is_named(
    install: Install, body: str, error: type[Exception], expected: str
) -> None:
    install(
        "acme",
        f"""
        from primeflowd.errors import ConfigError

        @hookimpl
        def open_storage(config):
            {body}
        """,
    )
    config = enabling("acme", storage={"url": "acme://scott:tiger@db"})
    with pytest.raises(error) as caught:
        Plugins(config).open_storage(config, None)
    assert type(caught.value) is error
    assert expected in str(caught.value)
    assert "tiger" not in str(caught.value)


# Classifying


def classifier(body: str, arguments: str = "outcome, delivery", options: str = "") -> str:
    return f"@hookimpl{options}\ndef classify_outcome({arguments}):\n    {body}\n"


def test_5_2_a_plugin_decides_before_the_default(install: Install) -> None:
    install("acme", classifier("return Verdict(decision='fail', reason='gone', wait=7)"))
    verdict = Plugins(enabling("acme")).classify(NOT_FOUND, DELIVERY)
    assert verdict == Verdict(decision="fail", reason="gone", wait=7)


def test_5_2_a_plugin_that_passes_leaves_it_to_the_default(install: Install) -> None:
    install("acme", classifier("return None"))
    with capture_logs() as logs:
        assert Plugins(enabling("acme")).classify(NOT_FOUND, DELIVERY) == BY_DEFAULT
    assert logs == []


@pytest.mark.parametrize(
    ("arguments", "condition"),
    [
        ("delivery, outcome", "delivery.org_id == 'acme' and outcome.status_code == 404"),
        ("delivery", "delivery.org_id == 'acme'"),
        ("", "True"),
        ("outcome, memory=[]", "outcome.status_code == 404 and memory == []"),
    ],
)
def test_a_plugin_takes_the_arguments_it_wants(
    install: Install, arguments: str, condition: str
) -> None:
    install("acme", classifier(f"return Verdict(decision='success') if {condition} else None",
                               arguments))  # fmt: skip
    verdict = Plugins(enabling("acme")).classify(NOT_FOUND, DELIVERY)
    assert verdict.decision == "success"


def test_the_last_enabled_is_asked_first_and_trylast_still_before_the_default(
    install: Install,
) -> None:
    for name in ("one", "two"):
        install(
            name, classifier(f"return Verdict(decision='fail', reason='gone', detail='{name}')")
        )
    install(
        "late",
        classifier("return Verdict(decision='fail', reason='gone', detail='late')",
                   options="(trylast=True)"),
    )  # fmt: skip

    def ask(*names: str) -> str | None:
        return Plugins(enabling(*names)).classify(NOT_FOUND, DELIVERY).detail

    assert ask("one", "two") == "two"
    assert ask("two", "one") == "one"
    assert ask("one", "late") == "one"
    assert ask("late") == "late"


@pytest.mark.parametrize(
    "body",
    [
        "raise RuntimeError('boom')",
        "return 'success'",
        "return True",
        "return Verdict(decision='again')",
        "return Verdict(decision='fail')",
        "return Verdict(decision='retry')",
        "return Verdict(decision='fail', reason='because')",
        "return Verdict(decision='retry', reason='gone', wait='soon')",
        "return Verdict(decision='retry', reason='gone', wait=2**70)",
        "return Verdict(decision='retry', reason='gone', detail='\\ud800')",
    ],
)
def test_5_2_a_faulty_classifier_is_logged_by_name_and_the_default_decides(
    install: Install, body: str
) -> None:
    install("acme", classifier(body))
    loaded = Plugins(enabling("acme"))
    with capture_logs() as logs:
        assert loaded.classify(NOT_FOUND, DELIVERY) == BY_DEFAULT
    [line] = logs
    assert (line["event"], line["log_level"]) == ("plugin_failed", "error")
    assert (line["plugin"], line["hook"]) == ("acme", "classify_outcome")
    assert isinstance(line["exc_info"], Exception)


def test_5_2_a_faulty_classifier_does_not_keep_others_from_answering(install: Install) -> None:
    install("good", classifier("return Verdict(decision='success')"))
    install("bad", classifier("raise RuntimeError"))
    with capture_logs() as logs:
        verdict = Plugins(enabling("good", "bad")).classify(NOT_FOUND, DELIVERY)
    assert verdict.decision == "success"
    assert [line["plugin"] for line in logs] == ["bad"]


def test_faults_are_logged_once_a_minute_for_each_plugin_and_hook(install: Install) -> None:
    fault = "raise RuntimeError"
    install("one", classifier(fault) + f"@hookimpl\ndef attempts_recorded():\n    {fault}\n")
    install("two", classifier(fault))
    now = 1000.0
    loaded = Plugins(enabling("one", "two"), monotonic=lambda: now)
    with capture_logs() as logs:
        for _ in range(50):
            loaded.classify(NOT_FOUND, DELIVERY)
            loaded.recorded([ATTEMPT])
            now += 1.0
        assert sorted((line["plugin"], line["hook"]) for line in logs) == [
            ("one", "attempts_recorded"),
            ("one", "classify_outcome"),
            ("two", "classify_outcome"),
        ]
        now += 10.0
        loaded.classify(NOT_FOUND, DELIVERY)
    assert len(logs) == 5


# Recording


def test_recorded_tells_every_plugin_and_never_raises(install: Install) -> None:
    install("bad", "@hookimpl\ndef attempts_recorded(attempts): raise RuntimeError('boom')")
    install(
        "good",
        """
        seen = []
        @hookimpl(trylast=True)
        def attempts_recorded(attempts): seen.extend(attempts)

        class Signer:
            name = "witness"
            def sign(self, request): return [("X-Seen", str(len(seen)))]
        @hookimpl
        def register_signers(): return [Signer()]
        """,
    )
    config = enabling("good", "bad", signing={"signers": ["witness"]})
    loaded = Plugins(config)
    with capture_logs() as logs:
        loaded.recorded([ATTEMPT, ATTEMPT])
    [witness] = loaded.signers(config)
    assert list(witness.sign(None)) == [("X-Seen", "2")]  # type: ignore[arg-type]  # unused
    assert [line["plugin"] for line in logs] == ["bad"]
