"""config/: one TOML file, checked to the last key."""

import re
from pathlib import Path
from typing import Any

import pytest

from primeflowd.config import (
    DESTINATION_TABLE,
    Config,
    DestinationSettings,
    from_mapping,
    load,
    parse_bind,
    settings,
)
from primeflowd.durations import Duration
from primeflowd.errors import ConfigError

ALL_TABLES = {
    "",
    "api",
    "storage",
    "delivery",
    "delivery.egress",
    "delivery.default_policy",
    "retention",
    "signing",
    "events",
    "drain",
    "secrets",
    "log",
    "tracing",
    "plugins",
    DESTINATION_TABLE,
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "primeflow.toml"


def refusal(file: Path, text: str) -> str:
    """What `load` says of a file with this text, after the file's name."""
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: ")
    assert "\n" not in message
    return message.removeprefix(f"{file}: ")


def test_an_empty_file_is_all_defaults(file: Path) -> None:
    file.write_text("")
    assert load(file) == Config() == from_mapping({})


def test_defaults_that_the_contract_names() -> None:
    """2.10, 3.5, 3.6, 5.5, 6.2, 7."""
    config = Config()
    assert config.api.max_body == 1024**2
    assert config.api.max_bulk_body == 16 * 1024**2
    assert config.api.rate_limit == 0
    assert config.delivery.default_policy.delays == ("15m", "1h", "24h")
    assert config.delivery.default_policy.retries == 3
    assert config.delivery.retry_after_cap == Duration("24h")
    assert config.delivery.jitter == 0
    assert config.delivery.max_response_body == 8 * 1024
    assert config.delivery.max_response_header == 64 * 1024
    assert config.delivery.connect_timeout == Duration("5s")
    assert config.delivery.timeout == Duration("30s")
    assert config.delivery.egress.allow == config.delivery.egress.deny == ()
    assert config.signing.signers == ("standard-webhooks", "hmac-sha256")
    assert config.signing.hmac_header == "Primeflow-Signature"


def test_a_file_sets_what_it_names_and_nothing_else(file: Path) -> None:
    file.write_text(
        """
        state_directory = "/srv/primeflow"

        [api]
        bind = "[::1]:9000"
        rate_limit = 5

        [delivery]
        timeout = "1m30s"
        destination_share = 1

        [delivery.egress]
        allow = ["127.0.0.0/8", "::1/128"]
        allowed_ports = [443, 8443]

        [delivery.default_policy]
        delays = ["1s", "1.5h"]
        max_retries = 9

        [log]
        level = "debug"
        """
    )
    config = load(file)
    assert config.state_directory == "/srv/primeflow"
    assert config.api.bind == "[::1]:9000"
    assert config.api.rate_limit == 5.0
    assert config.api.max_body == Config().api.max_body
    assert config.delivery.timeout.seconds == 90
    assert config.delivery.destination_share == 1.0
    assert config.delivery.egress.allow == ("127.0.0.0/8", "::1/128")
    assert config.delivery.egress.allowed_ports == (443, 8443)
    assert config.delivery.default_policy.retries == 9
    assert config.log.level == "debug"
    assert config.log.format == "logfmt"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "stat_directory = ''",
            r"stat_directory: unknown key; known here: state_directory, api, storage, delivery, "
            r"retention, signing, events, drain, secrets, log, tracing, plugins, destinations$",
        ),
        ("[delivry]", r"delivry: unknown key; .*\bdelivery\b"),
        ("[api]\nbnd = ''", r"api\.bnd: unknown key; known here: bind, server, "),
        (
            "[delivery.egress]\nallowd = []",
            r"delivery\.egress\.allowd: unknown key; "
            r"known here: allow, deny, require_https, allowed_ports$",
        ),
        ("plugin_settings = {}", r"plugin_settings: unknown key"),
        ("[plugins]\nenabled = []", r"plugins\.enabled: unknown key; known here: enable$"),
        ("[[plugins.x]]", r"plugins\.x: unknown key"),
    ],
)
def test_an_unknown_key_is_named_with_those_that_are_known(
    file: Path, text: str, says: str
) -> None:
    assert re.match(says, refusal(file, text))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("api = 1", "api: expected a table, got a whole number"),
        ("plugins = 1", "plugins: expected a table, got a whole number"),
        ("[plugins.enable]\na = 1", "plugins.enable: expected a list, got a table"),
        ("[api]\nbind = 80", "api.bind: expected text in quotes, got a whole number"),
        ("[api]\nbind = 2026-05-06", "api.bind: expected text in quotes, got a date"),
        ("[api]\nmax_body = '1'", "api.max_body: expected a whole number, got text in quotes"),
        ("[api]\nmax_body = 2048.0", "api.max_body: expected a whole number, got a number"),
        ("[api]\nmax_body = true", "api.max_body: expected a whole number, got true or false"),
        (
            "[delivery.egress]\nrequire_https = 1",
            "delivery.egress.require_https: expected true or false, got a whole number",
        ),
        (
            "[delivery.egress]\nallow = '10.0.0.0/8'",
            "delivery.egress.allow: expected a list, got text in quotes",
        ),
        (
            "[delivery.egress]\ndeny = ['::/0', 1]",
            "delivery.egress.deny[1]: expected text in quotes, got a whole number",
        ),
        (
            "[delivery.default_policy]\nmax_retries = true",
            "delivery.default_policy.max_retries: expected a whole number, got true or false",
        ),
        (
            "[delivery]\ntimeout = 30",
            'delivery.timeout: expected a duration in quotes, as "30s" or "1h30m"',
        ),
        (
            "[delivery]\ntimeout = '30'",
            'delivery.timeout: not a duration: \'30\'; write it as "30s", "500ms" or "1h30m"',
        ),
    ],
)
def test_a_wrong_type_is_named_with_the_right_one(file: Path, text: str, says: str) -> None:
    assert refusal(file, text) == says


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[api]\nmax_body = 1023", "api.max_body: expected a whole number >= 1024"),
        ("[api]\nrate_limit = -0.5", "api.rate_limit: expected a number >= 0.0"),
        ("[api]\nrate_limit = nan", "api.rate_limit: expected a number >= 0.0"),
        ("[api]\nrate_limit = inf", "api.rate_limit: expected a number <= 1000000.0"),
        ("[delivery]\nconcurrency = 0", "delivery.concurrency: expected a whole number >= 1"),
        (
            "[delivery]\nconcurrency = 10001",
            "delivery.concurrency: expected a whole number <= 10000",
        ),
        (
            "[delivery]\ndestination_share = 0.0",
            "delivery.destination_share: expected a number > 0.0",
        ),
        ("[delivery]\njitter = 1.01", "delivery.jitter: expected a number <= 1.0"),
        (
            "[delivery]\nrecovery_rate = inf",
            "delivery.recovery_rate: expected a number <= 1000000.0",
        ),
        ("[delivery]\ntimeout = '0s'", "delivery.timeout: expected at least 1ms"),
        (
            "[events]\nurl = 'ftp://example.com'",
            "events.url: the URL does not start with http:// or https://",
        ),
        ("[events]\norg = '*'", "events.org: an org id has 1 to 128 printable characters"),
        (
            "[events]\nkinds = ['delivery_failed']",
            "events.kinds: no such kind: 'delivery_failed'; there are delivery.failed, "
            "destination.suspended, destination.recovered, destination.disabled, secret.rotated, "
            "secret.disabled_in_use, storage.recovered",
        ),
        ("[events]\ninterval = '999ms'", "events.interval: expected at least 1s"),
        ("[delivery]\nconnect_timeout = '0'", "delivery.connect_timeout: expected at least 1ms"),
        ("[delivery]\nsuspend_min = '1us'", "delivery.suspend_min: expected at least 1ms"),
        ("[delivery]\nhorizon = '999ms'", "delivery.horizon: expected at least 1s"),
        (
            "[delivery.egress]\nallowed_ports = [443, 65536]",
            "delivery.egress.allowed_ports[1]: expected a whole number <= 65535",
        ),
        (
            "[delivery.egress]\nallow = ['10.0.0.1/8']",
            "delivery.egress.allow: 10.0.0.1/8 has host bits set",
        ),
        (
            "[delivery.egress]\ndeny = ['example.com']",
            "delivery.egress.deny: 'example.com' does not appear to be an IPv4 or IPv6 network",
        ),
        (
            "[delivery.default_policy]\nmax_retries = 101",
            "delivery.default_policy.max_retries: expected a whole number <= 100",
        ),
        (
            "[delivery.default_policy]\ndelays = ['1w']",
            "delivery.default_policy.delays: not a duration: '1w'",
        ),
        (
            "[delivery.default_policy]\ndelays = ['31d']",
            "delivery.default_policy.delays: not within 1ms and 30d: '31d'",
        ),
        (
            "[delivery.default_policy]\ndelays = [" + "'1s'," * 51 + "]",
            "delivery.default_policy.delays: at most 50 delays",
        ),
        (
            "[delivery.default_policy]\ndelays = []\nmax_retries = 1",
            "delivery.default_policy.max_retries: must be 0 where there are no delays",
        ),
        ("[retention]\nanswers = '23h'", "retention.answers: expected at least 24h"),
        ("[retention]\nevery = '0s'", "retention.every: expected at least 1s"),
        ('[signing]\nhmac_prefix = "a\\nb"', "signing.hmac_prefix: printable ASCII only"),
        ("[signing]\nhmac_prefix = 'é'", "signing.hmac_prefix: printable ASCII only"),
        (
            "[signing]\nhmac_header = 'X: y'",
            r"signing.hmac_header: expected text in quotes matching regex '^[A-Za-z0-9-]+\\Z'",
        ),
        (
            '[signing]\nhmac_header = "X\\n"',
            r"signing.hmac_header: expected text in quotes matching regex '^[A-Za-z0-9-]+\\Z'",
        ),
        (
            "[log]\nlevel = 'loud'",
            'log.level: expected one of "debug", "info", "warning", "error", not \'loud\'',
        ),
        ("[log]\nformat = 'xml'", 'log.format: expected one of "logfmt", "json", not \'xml\''),
    ],
)
def test_a_value_out_of_range_is_named_with_the_range(file: Path, text: str, says: str) -> None:
    assert refusal(file, text) == says


def test_no_retries_need_no_delays() -> None:
    """3.3."""
    config = from_mapping({"delivery": {"default_policy": {"delays": []}}})
    assert config.delivery.default_policy.retries == 0


def test_tables_of_plugins_are_left_to_the_plugins(file: Path) -> None:
    file.write_text(
        """
        [plugins]
        enable = ["slack"]

        [plugins.slack]
        url = "https://example.com/"
        deep = { any = 1 }

        [plugins.off]
        """
    )
    config = load(file)
    assert config.plugins.enable == ("slack",)
    assert config.plugin_settings == {
        "slack": {"url": "https://example.com/", "deep": {"any": 1}},
        "off": {},
    }


def test_a_mapping_is_not_changed_by_reading_it() -> None:
    tables: dict[str, Any] = {"plugins": {"enable": [], "x": {"a": 1}}}
    from_mapping(tables)
    assert tables == {"plugins": {"enable": [], "x": {"a": 1}}}


def test_a_mapping_without_a_file_says_so() -> None:
    with pytest.raises(ConfigError, match=r"^config: nope: unknown key"):
        from_mapping({"nope": 1})
    with pytest.raises(ConfigError, match=r"^here: api\.bind: "):
        from_mapping({"api": {"bind": "x"}}, "here")


@pytest.mark.parametrize(
    ("bind", "address"),
    [
        ("127.0.0.1:8081", ("127.0.0.1", 8081)),
        ("localhost:0", ("localhost", 0)),
        ("0.0.0.0:65535", ("0.0.0.0", 65535)),
        ("[::1]:80", ("::1", 80)),
        ("[::]:080", ("::", 80)),
    ],
)
def test_binds(bind: str, address: tuple[str, int]) -> None:
    assert parse_bind(bind) == address


@pytest.mark.parametrize(
    "bind",
    [
        "",
        ":",
        "localhost",
        "localhost:",
        ":80",
        "[]:80",
        "::1",
        "::1:80",
        "[::1]",
        "[::1:80",
        "::1]:80",
        "[localhost]:80",
        "[[::1]]:80",
        "localhost:65536",
        "localhost:-1",
        "localhost:+1",
        "localhost: 80",
        "localhost:http",
        "localhost:\u0668\u0660",
        "localhost:" + "1" * 5000,
    ],
)
def test_binds_refused(file: Path, bind: str) -> None:
    says = refusal(file, f'[api]\nbind = "{bind}"')
    assert says == f'api.bind: expected "host:port" or "[v6]:port", not {bind!r}'


def test_files_that_cannot_be_read(file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file or directory"):
        load(file)
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load(tmp_path)
    file.write_bytes(b"# \xff")
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        load(file)
    assert refusal(file, "[api\n").startswith("not TOML: ")
    assert refusal(file, "[api]\n[api]\n").startswith("not TOML: ")


def test_the_state_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The file, else systemd's, else XDG's, else the home directory's."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    default = Config()
    assert default.state_path == tmp_path / ".local" / "state" / "primeflowd"

    monkeypatch.setenv("XDG_STATE_HOME", "/xdg")
    assert default.state_path == Path("/xdg/primeflowd")
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/primeflowd:/var/lib/other")
    assert default.state_path == Path("/var/lib/primeflowd")
    assert default.storage_url == "sqlite:////var/lib/primeflowd/primeflowd.db"

    given = from_mapping({"state_directory": "/srv", "storage": {"url": ""}})
    assert given.state_path == Path("/srv")
    assert given.storage_url == "sqlite:////srv/primeflowd.db"
    assert from_mapping({"storage": {"url": "memory://"}}).storage_url == "memory://"


def test_every_setting_is_described() -> None:
    """Setting, default and meaning in one place: the example file and `init` show these."""
    described = list(settings())
    assert {table for table, _, _, _ in described} == ALL_TABLES
    assert len(described) == len({(table, key) for table, key, _, _ in described})
    for table, key, _, description in described:
        assert len(description) > 10, f"{table}.{key}"


def test_every_field_of_every_table_is_a_setting() -> None:
    """A field without Annotated would be taken from the file but shown nowhere."""

    def fields(section: Any, table: str) -> set[tuple[str, str]]:
        found = set()
        for name in section.__struct_fields__:
            value = getattr(section, name)
            if hasattr(value, "__struct_fields__"):
                found |= fields(value, f"{table}.{name}".lstrip("."))
            else:
                found.add((table, name))
        return found

    shown = {(table, key) for table, key, _, _ in settings()}
    assert fields(Config(), "") - shown == {("", "plugin_settings"), ("", "destinations")}
    destinations = {("", name) for _, name in fields(DestinationSettings(), "")}
    assert destinations == {("", key) for table, key in shown if table == DESTINATION_TABLE}


def test_tables_of_destinations() -> None:
    """By the name that deliveries have for them, however they are spelled."""
    tables = {
        "https://Example.com": {"rate": 2.5, "timeout": "5s", "headers": {"X-A": "b"}},
        "http://[::1]:8080/": {"disabled": "moves", "while_disabled": "fail"},
        "https://nothing.example": {},
    }
    found = from_mapping({"destinations": tables}).destinations
    assert found == {
        "https://example.com:443": DestinationSettings(
            rate=2.5, timeout=Duration("5s"), headers={"X-A": "b"}
        ),
        "http://[::1]:8080": DestinationSettings(disabled="moves", while_disabled="fail"),
    }


@pytest.mark.parametrize(
    ("name", "table", "says"),
    [
        ("example.com", {}, r"the URL does not start with http:// or https://$"),
        ("https://example.com/hook", {"rate": 1}, "a destination has no path"),
        ("https://a", {"rte": 1}, "rte: unknown key; known here: rate, burst, .*, headers$"),
        ("https://a", {"rate": -1}, r"rate: expected a number >= 0"),
        ("https://a", {"burst": 0}, r"burst: expected a whole number >= 1"),
        ("https://a", {"timeout": "soon"}, r"timeout: not a duration"),
        ("https://a", {"timeout": "31d"}, r"timeout: expected 1ms to 30d, or 0s$"),
        ("https://a", {"disable_after": "1us"}, r"disable_after: expected 1ms to 30d, or 0s$"),
        ("https://a", {"while_disabled": "drop"}, r'expected one of "wait", "fail", not '),
        ("https://a", {"headers": {"Host": "b"}}, r"headers: the header Host is primeflowd's"),
        ("https://a", {"headers": {"X": "s3cret\n"}}, r"headers: the value of X is not printable"),
        ("https://a", {"headers": {"X": "a", "x": "b"}}, r"headers: the header x is there twice$"),
        ("https://a", {"disabled": "a\nb"}, r"disabled: printable characters only$"),
        ("https://a", 1, "expected a table"),
    ],
)
def test_what_a_table_of_a_destination_may_not_say(name: str, table: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        from_mapping({"destinations": {name: table}})
    assert str(refused.value).startswith(f'config: destinations."{name}": ')
    assert "s3cret" not in str(refused.value)


def test_destinations_are_tables_and_each_is_there_once() -> None:
    with pytest.raises(ConfigError, match=r"destinations: expected tables, as \[destinations"):
        from_mapping({"destinations": ["https://a"]})
    twice = {"https://a": {"rate": 1}, "https://a:443": {"rate": 2}}
    with pytest.raises(ConfigError, match="https://a:443 has a table already"):
        from_mapping({"destinations": twice})


def test_the_configuration_is_frozen() -> None:
    config = Config()
    with pytest.raises(AttributeError):
        config.api = Config().api  # type: ignore[misc]
    with pytest.raises(AttributeError):
        config.delivery.egress.require_https = True  # type: ignore[misc]
