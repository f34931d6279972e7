"""The `[plugins.json-verdict]` table: what is taken, and that a refusal names the key."""

from typing import Any

import pytest

from primeflowd.errors import ConfigError
from primeflowd.instants import MINUTE
from primeflowd_json_verdict.settings import Settings, read


def refusal(**table: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        read(table)
    message = str(caught.value)
    assert "\n" not in message
    return message


def rules(*tables: dict[str, Any]) -> Settings:
    return read({"rules": list(tables)})


def test_an_empty_table_reads_json_and_has_no_rules() -> None:
    settings = read({})
    assert settings.trust_body
    assert settings.rules == ()
    types = ("application/json", "application/problem+json", "text/html", "")
    assert [any(p.match(t) for p in settings.content_types) for t in types] == [
        *(True, True),
        *(False, False),
    ]


def test_a_rule_is_read_whole() -> None:
    (rule,) = rules(
        {
            "destination": "https://*.example.com",
            "status": [409, "5xx"],
            "verdict": "retry",
            "reason_detail": "busy",
            "wait": "10m",
        }
    ).rules
    assert rule.statuses == {409, *range(500, 600)}
    assert (rule.verdict, rule.reason_detail, rule.wait) == ("retry", "busy", 10 * MINUTE)


@pytest.mark.parametrize(
    ("pattern", "destination", "matches"),
    [
        ("*", "http://127.0.0.1:8080", True),
        ("https://*.example.com", "https://a.example.com:443", True),
        ("https://*.example.com", "https://a.b.example.com:443", True),
        ("https://*.example.com", "https://a.example.com:8443", False),
        ("https://*.example.com", "https://example.com:443", False),
        ("https://*.example.com", "https://a.example.com.evil.net:443", False),
        ("https://*.example.com", "http://a.example.com:443", False),
        ("https://*.example.com", "http://a.example.com:80", False),
        ("http://a.example.com", "http://a.example.com:80", True),
        ("https://a.example.com:443", "https://a.example.com:443", True),
        ("https://*.Example.com:*", "https://a.example.com:8443", True),
        ("*://a?.example.com", "https://a1.example.com:443", True),
        ("http://[::1]:8080", "http://[::1]:8080", True),
        ("http://[::1]", "http://[::1]:80", True),
        ("http://[!a]:8080", "http://b:8080", False),
    ],
)
def test_destinations(pattern: str, destination: str, matches: bool) -> None:
    settings = rules({"destination": pattern, "status": [500], "verdict": "fail"})
    assert (settings.rule_for(destination, 500) is not None) == matches


def test_the_first_rule_that_matches_wins() -> None:
    settings = rules(
        {"destination": "https://a.example", "status": [409], "verdict": "success"},
        {"status": ["4xx"], "verdict": "fail"},
        {"status": [409, 500], "verdict": "retry"},
    )
    found = [
        settings.rule_for(destination, status)
        for destination, status in (
            ("https://a.example:443", 409),
            ("https://b.example:443", 409),
            ("https://b.example:443", 500),
            ("https://b.example:443", 503),
        )
    ]
    assert [rule and rule.name for rule in found] == ["rules[0]", "rules[1]", "rules[2]", None]


GOOD: dict[str, Any] = {"status": [409], "verdict": "retry"}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"trust_bodies": True}, "trust_bodies: unknown key; known here: trust_body, content"),
        ({"trust_body": "yes"}, "trust_body: expected `bool`, got `str`"),
        ({"content_types": "application/json"}, "content_types: expected `array`, got `str`"),
        ({"rules": {"status": [409]}}, "rules: expected `array`, got `object`"),
        ({"rules": [{"verdict": "fail"}]}, "rules[0].status: it is missing"),
        ({"rules": [GOOD, {"status": [409]}]}, "rules[1].verdict: it is missing"),
        ({"rules": [GOOD | {"when": 1}]}, "rules[0].when: unknown key; known here: status, "),
        (
            {"rules": [GOOD | {"verdict": "ignore"}]},
            'rules[0].verdict: expected one of "success", "retry", "fail", not \'ignore\'',
        ),
        ({"rules": [GOOD | {"status": 409}]}, "rules[0].status: expected `array`, got `int`"),
        ({"rules": [GOOD | {"status": []}]}, "rules[0].status: names no status"),
        ({"rules": [GOOD | {"status": [409, "5x"]}]}, "rules[0].status[1]: expected a status"),
        ({"rules": [GOOD | {"status": [99]}]}, "rules[0].status[0]: expected a status"),
        ({"rules": [GOOD | {"status": [True]}]}, "rules[0].status[0]: expected `int | str`"),
        ({"rules": [GOOD | {"wait": 600}]}, "rules[0].wait: expected `str | null`, got `int`"),
        ({"rules": [GOOD | {"wait": "10 min"}]}, "rules[0].wait: not a duration: '10 min'"),
        ({"rules": [GOOD | {"wait": "0"}]}, "rules[0].wait: expected more than nothing"),
        (
            {"rules": [GOOD | {"verdict": "fail", "wait": "1m"}]},
            'rules[0].wait: a "fail" waits for nothing',
        ),
        (
            {"rules": [GOOD | {"verdict": "success", "reason_detail": "fine"}]},
            'rules[0].reason_detail: a "success" has no reason',
        ),
        ({"rules": [GOOD | {"reason_detail": "a\nb"}]}, "rules[0].reason_detail: expected a line"),
        ({"rules": [GOOD | {"reason_detail": ""}]}, "rules[0].reason_detail: expected a line"),
        ({"rules": [GOOD | {"destination": ""}]}, "rules[0].destination: expected scheme://host"),
        (
            {"rules": [GOOD | {"destination": "https://a.example/hook"}]},
            "rules[0].destination: expected scheme://host",
        ),
    ],
)
def test_a_refusal_names_the_key(table: dict[str, Any], message: str) -> None:
    assert refusal(**table).startswith(message)
