"""Calling the hooks of plugins, and what a broken one can and cannot do."""

import re
from collections.abc import Callable

import pytest
from structlog.testing import capture_logs

from primeflowd.config import Config, from_mapping
from primeflowd.errors import ConfigError, OperatorError, PluginError
from primeflowd.hookspecs import RecordedAttempt, Storage
from primeflowd.model import Attempt, Delivery, Outcome, Verdict
from primeflowd.plugins import Plugins
from tests.distributions import Install, enabling

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
    id="a", org_id="acme", delivery_id="d", attempt_number=1, status_code=200, response_body=None,
    response_time=1, error_message=None, failure_reason=None, signing_secret_id=None, created_at=0,
)  # fmt: skip
RECORD = RecordedAttempt(ATTEMPT, DELIVERY)


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
        ("return [Signer('ed25519')]", 'of both gives a signer "ed25519"'),
        ("return [Signer('x'), Signer('x')]", 'of both gives a signer "x"'),
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
    assert 'plugin "acme" (primeflowd-acme 1.2)' in str(caught.value)
    assert "register_signers" in str(caught.value)
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
    assert re.search(r"installed: .*\bpostgresql\b", message)
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


CALLS: dict[str, Callable[[Plugins, Config], object]] = {
    "open_storage": lambda plugins, config: plugins.open_storage(config, None),
    "migrate_storage": lambda plugins, config: plugins.migrate_storage(config, check=True),
}


@pytest.mark.parametrize("hook", CALLS)
@pytest.mark.parametrize(
    ("body", "error", "expected"),
    [
        ("raise ValueError(config.storage.url)", PluginError, "{hook} raised ValueError"),
        ("return ('1', '2')", PluginError, "{hook} returned tuple, not "),
        ("raise ConfigError('acme: pool too small')", ConfigError, "acme: pool too small"),
        ("raise OperatorError('no such host')", OperatorError, "no such host"),
    ],
)
def test_a_storage_plugin_that_fails_is_named(
    install: Install, hook: str, body: str, error: type[Exception], expected: str
) -> None:
    install(
        "acme",
        f"""
        from primeflowd.errors import ConfigError, OperatorError

        @hookimpl
        def {hook}(config):
            {body}
        """,
    )
    config = enabling("acme", storage={"url": "acme://scott:tiger@db"})
    with pytest.raises(error) as caught:
        CALLS[hook](Plugins(config), config)
    assert type(caught.value) is error
    assert expected.format(hook=hook) in str(caught.value)
    assert "tiger" not in str(caught.value)


def test_a_storage_without_a_schema_has_nothing_to_migrate(install: Install) -> None:
    install("acme", "@hookimpl\ndef migrate_storage(check): return None")
    config = enabling("acme", storage={"url": "memory://"})
    assert Plugins(config).migrate_storage(config, check=False) is None


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
        "raise SystemExit(0)",
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
    assert isinstance(line["exc_info"], Exception | SystemExit)


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
            for record in loaded.recorders().values():
                record([RECORD])
            now += 1.0
        assert sorted((line["plugin"], line["hook"]) for line in logs) == [
            ("one", "attempts_recorded"),
            ("one", "classify_outcome"),
            ("two", "classify_outcome"),
        ]
        now += 10.0
        loaded.classify(NOT_FOUND, DELIVERY)
    assert len(logs) == 5
    # All are counted.
    assert loaded.failures == {
        ("one", "attempts_recorded"): 50,
        ("one", "classify_outcome"): 51,
        ("two", "classify_outcome"): 51,
    }


def test_a_plugin_that_has_not_failed_is_counted_as_that(install: Install) -> None:
    """A count that first appears at 1 never rose, as Prometheus sees it."""
    install("one", classifier("return None") + "@hookimpl\ndef attempts_recorded(): pass\n")
    assert Plugins(enabling("one")).failures == {
        ("one", "attempts_recorded"): 0,
        ("one", "classify_outcome"): 0,
    }


# Recording


def test_recorders_are_named_and_never_raise(install: Install) -> None:
    install("bad", "@hookimpl\ndef attempts_recorded(records): raise RuntimeError('boom')")
    install("worse", "@hookimpl\ndef attempts_recorded(records): raise SystemExit(0)")
    install(
        "good",
        """
        seen = []
        @hookimpl
        def attempts_recorded(records): seen.extend(records)

        @hookimpl
        def classify_outcome():
            return Verdict(decision="success", detail=" ".join(
                f"{one.attempt.id} {one.delivery.org_id}" for one in seen))
        """,
    )
    loaded = Plugins(enabling("good", "bad", "worse"))
    recorders = loaded.recorders()
    assert sorted(recorders) == ["bad", "good", "worse"]
    with capture_logs() as logs:
        for record in recorders.values():
            record([RECORD, RECORD])
    assert loaded.classify(NOT_FOUND, DELIVERY).detail == "a acme a acme"
    assert sorted(line["plugin"] for line in logs) == ["bad", "worse"]
    assert {line["hook"] for line in logs} == {"attempts_recorded"}
