"""What the plugin says of an outcome, and that no answer can make it raise."""

import email.utils
import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from primeflowd.instants import HOUR, MINUTE, SECOND, Micros
from primeflowd.model import Outcome, Verdict
from primeflowd.testing.factories import make_delivery
from primeflowd_json_verdict import JsonVerdict

ENDED = 1_778_061_600 * SECOND  # 2026-05-06T10:00:00Z
JSON = ("content-type", "application/json")
DELIVERY = make_delivery(destination="https://hooks.example.com:443")


def answered(status: int, body: bytes | Any = b"", *headers: tuple[str, str]) -> Outcome:
    """An answer with this body: bytes as they are, anything else as JSON."""
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
        headers = (JSON, *headers)
    return Outcome(status_code=status, headers=headers, body=body, started_at=0, ended_at=ENDED)


def judge(outcome: Outcome, **table: Any) -> Verdict | None:
    plugin = JsonVerdict()
    plugin.configure(table)
    return plugin.classify_outcome(outcome, DELIVERY)


def retry(status: int, wait: Micros | None = None, *, ill: bool = False) -> Verdict:
    return Verdict(
        decision="retry",
        reason="http_status",
        detail=f"HTTP {status}; the receiver asks for a retry",
        wait=wait,
        destination_failed=ill,
    )


# Nothing to say


@pytest.mark.parametrize("status", [200, 204, 301, 404, 410, 429, 500, 503])
def test_an_answer_that_asks_nothing_is_left_to_others(status: int) -> None:
    assert judge(answered(status)) is None
    assert judge(answered(status, {"error": "no"})) is None


@pytest.mark.parametrize("body", [{"retry": False}, {"retry": True}, {"retry_after": 60}])
def test_a_2xx_is_none_of_its_business(body: Any) -> None:
    assert judge(answered(200, body, ("retry-after", "60"))) is None


@pytest.mark.parametrize("status", [None, 500])
def test_no_answer_is_none_of_its_business(status: int | None) -> None:
    outcome = Outcome(status_code=status, failure="timeout", started_at=0, ended_at=ENDED)
    assert judge(outcome, rules=[{"status": ["5xx"], "verdict": "success"}]) is None


@pytest.mark.parametrize(
    "outcome",
    [
        answered(422, b'{"retry":false}'),
        answered(422, b'{"retry":false}', ("content-type", "text/html")),
        answered(422, b'{"retry":false', JSON),
        answered(422, b'\xef\xbb\xbf{"retry":false}', JSON),
        answered(422, b'[{"retry":false}]', JSON),
        answered(422, b'{"retry":false,"x":"\xff"}', JSON),
        answered(422, {"retry": 0}),
        answered(422, {"retry": None}),
        answered(422, {"retry": "false"}),
        answered(422, {"error": {"retry": False}}),
        answered(422, {"Retry": False}),
    ],
)
def test_what_is_no_plain_wish_asks_nothing(outcome: Outcome) -> None:
    assert judge(outcome) is None


def test_a_cut_body_asks_nothing() -> None:
    """Its first bytes may be an object of their own."""
    body = b'{"retry":false}'
    cut = answered(422, body, JSON, ("content-length", "9000"))
    assert judge(cut) is None
    whole = answered(422, body, JSON, ("content-length", "15"))
    assert judge(whole) is not None


# The body


@pytest.mark.parametrize("status", [301, 404, 422, 500, 503])
def test_retry_false_fails(status: int) -> None:
    """And speaks for this callback only: the destination is not ill."""
    assert judge(answered(status, {"retry": False, "retry_at": 1e10})) == Verdict(
        decision="fail",
        reason="http_status",
        detail=f"HTTP {status}; the receiver asks for no retry",
    )


def test_retry_false_beats_the_header() -> None:
    verdict = judge(answered(503, {"retry": False}, ("retry-after", "60")))
    assert verdict is not None
    assert verdict.decision == "fail"


def test_retry_false_at_410_is_gone() -> None:
    verdict = judge(answered(410, {"retry": False}))
    assert verdict is not None
    assert verdict.reason == "gone"


@pytest.mark.parametrize(("status", "ill"), [(410, False), (404, False), (429, True), (500, True)])
def test_retry_true_retries(status: int, ill: bool) -> None:
    """Also a 410, which fails by default."""
    assert judge(answered(status, {"retry": True})) == retry(status, ill=ill)


@pytest.mark.parametrize(
    ("body", "wait"),
    [
        ({"retry_at": "2026-05-06T10:10:00Z"}, 10 * MINUTE),
        ({"retry_at": "2026-05-06T12:10:00.5+02:00"}, 10 * MINUTE + SECOND // 2),
        ({"retry_at": 1_778_061_600 + 60}, MINUTE),
        ({"retry_at": 1_778_061_600.5}, SECOND // 2),
        ({"retry_at": "2026-05-06T09:00:00Z"}, None),
        ({"retry_at": 0}, None),
        ({"retry_after": 90}, 90 * SECOND),
        ({"retry_after": 0.25}, SECOND // 4),
        ({"retry_after": "1h30m"}, 90 * MINUTE),
        ({"retry_after": 0}, None),
        ({"retry_after": 1e300}, 10**12 * SECOND),
        ({"retry_after": 60, "retry_at": 1_778_061_600 + 90}, 90 * SECOND),
        ({"retry_after": 60, "retry_at": "soon"}, MINUTE),
        ({"retry": True, "retry_after": 60}, MINUTE),
        ({"retry": "please", "retry_after": 60}, MINUTE),
    ],
)
def test_times_in_the_body(body: Any, wait: Micros | None) -> None:
    """They ask for a retry, at 410 too, and for the later of all times given."""
    assert judge(answered(410, body)) == retry(410, wait)


@pytest.mark.parametrize(
    "body",
    [
        {"retry_at": "2026-05-06T10:10:00"},  # of which zone?
        {"retry_at": "tomorrow"},
        {"retry_at": "\x00"},
        {"retry_at": -1},
        {"retry_at": 1_778_061_600_000},  # milliseconds
        {"retry_at": True},
        {"retry_at": None},
        {"retry_after": "60"},
        {"retry_after": "1 week"},
        {"retry_after": -5},
        {"retry_after": [60]},
    ],
)
def test_times_that_are_none(body: Any) -> None:
    assert judge(answered(500, body)) is None


def test_the_body_can_be_distrusted() -> None:
    outcome = answered(500, {"retry": False}, ("retry-after", "60"))
    assert judge(outcome, trust_body=False) == retry(500, MINUTE, ill=True)


@pytest.mark.parametrize("content_type", ["Application/JSON; charset=utf-8", "application/x+json"])
def test_content_types(content_type: str) -> None:
    outcome = answered(500, b'{"retry":false}', ("content-type", content_type))
    assert judge(outcome) is not None
    assert judge(outcome, content_types=["text/x"]) is None


def test_all_content_types_can_be_trusted() -> None:
    assert judge(answered(500, b' {"retry":false}'), content_types=["*"]) is not None


# The header


@pytest.mark.parametrize("status", [301, 404, 410, 418, 500])
def test_retry_after_on_any_status(status: int) -> None:
    assert judge(answered(status, b"", ("retry-after", "120"))) == retry(
        status, 2 * MINUTE, ill=status == 500
    )


def test_retry_after_as_a_date() -> None:
    date = email.utils.format_datetime(datetime(2026, 5, 6, 11, tzinfo=UTC), usegmt=True)
    assert judge(answered(410, b"", ("retry-after", date))) == retry(410, HOUR)
    assert judge(answered(410, b"", ("retry-after", "Wed May  6 11:00:00 2026"))) == retry(
        410, HOUR
    )
    past = "Wed, 06 May 2026 09:00:00 GMT"
    assert judge(answered(410, b"", ("retry-after", past))) == retry(410)


@pytest.mark.parametrize("value", ["", "soon", "-1", "1.5", "²", "Mon, 32 Jan 2026 00:00:00 GMT"])
def test_a_retry_after_that_is_none(value: str) -> None:
    assert judge(answered(500, b"", ("retry-after", value))) is None


def test_the_longer_of_header_and_body_counts() -> None:
    assert judge(answered(404, {"retry_after": 5}, ("retry-after", "9"))) == retry(404, 9 * SECOND)
    assert judge(answered(404, {"retry_after": 9}, ("retry-after", "5"))) == retry(404, 9 * SECOND)


# Rules


def rule(verdict: str, *status: int | str, **more: Any) -> dict[str, Any]:
    return {"rules": [{"status": list(status), "verdict": verdict, **more}]}


def test_a_rule_makes_a_success_of_a_failure() -> None:
    assert judge(answered(409), **rule("success", 409)) == Verdict(decision="success")
    assert judge(answered(404), **rule("success", 409)) is None


def test_a_rule_makes_a_failure_of_a_success() -> None:
    assert judge(answered(202), **rule("retry", 202)) == Verdict(
        decision="retry",
        reason="http_status",
        detail="HTTP 202; rules[0] of the plugin json-verdict",
    )


def test_a_rule_beats_the_body() -> None:
    table = rule("fail", "5xx", reason_detail="never twice")
    assert judge(answered(500, {"retry": True}), **table) == Verdict(
        decision="fail", reason="http_status", detail="never twice"
    )


def test_a_rule_without_a_wait_leaves_it_to_the_receiver() -> None:
    verdict = judge(answered(410, {"retry_after": 60}), **rule("retry", 410))
    assert verdict is not None
    assert (verdict.decision, verdict.wait) == ("retry", MINUTE)
    refused = judge(answered(410, {"retry": False, "retry_after": 60}), **rule("retry", 410))
    assert refused is not None
    assert (refused.decision, refused.wait) == ("retry", None)


def test_the_wait_of_a_rule_beats_the_receivers() -> None:
    verdict = judge(answered(503, {"retry_after": 5}), **rule("retry", 503, wait="10m"))
    assert verdict is not None
    assert verdict.wait == 10 * MINUTE
    assert verdict.destination_failed


def test_a_rule_is_for_its_destinations() -> None:
    table = rule("fail", 500, destination="https://*.example.com")
    assert judge(answered(500), **table) is not None
    table = rule("fail", 500, destination="https://example.org")
    assert judge(answered(500), **table) is None


# Strangers

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
wishes = st.fixed_dictionaries(
    {}, optional={"retry": anything, "retry_at": anything, "retry_after": anything}
)
bodies = st.binary() | wishes.map(lambda wish: json.dumps(wish).encode())
header_values = st.text(st.characters(max_codepoint=255)) | st.integers().map(str)
headers = st.lists(
    st.tuples(
        st.sampled_from(["retry-after", "content-type", "content-length", "x"]), header_values
    )
)


@given(status=st.integers(100, 999), body=bodies, headers=headers, trust=st.booleans())
@example(status=500, body=b"[" * 8192, headers=[], trust=True)
@example(status=500, body=b'{"retry":' + b'{"a":' * 2000, headers=[], trust=True)
@example(status=500, body=b'{"retry_at":1e400}', headers=[], trust=True)
@example(status=500, body=b'{"retry_after":' + b"9" * 8000 + b"}", headers=[], trust=True)
@example(status=500, body=b'{"retry_at":"0001-01-01T00:00:00+23:59"}', headers=[], trust=True)
@example(status=500, body=b"", headers=[("retry-after", "9" * 5000)], trust=True)
def test_no_answer_makes_it_raise(
    status: int, body: bytes, headers: list[tuple[str, str]], trust: bool
) -> None:
    outcome = answered(status, body, JSON, *headers)
    verdict = judge(outcome, trust_body=trust)
    if verdict is None:
        return
    # What the host demands of a verdict, and what storage can hold.
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(verdict), type=Verdict) == verdict
    assert verdict.decision != "success"
    assert verdict.reason is not None
    assert not 200 <= status < 300
    assert verdict.wait is None or 0 < verdict.wait < 2**62
