"""Contract 5.2, 5.3 and 3.6: what an outcome means when no plugin has its own view."""

import email.utils
from typing import get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from primeflowd.builtin.classifier import classify_outcome, retry_after
from primeflowd.instants import HOUR, SECOND
from primeflowd.model import FailureReason, Outcome, Verdict
from primeflowd.testing.factories import make_delivery

ENDED = 784_111_777 * SECOND  # 1994-11-06 08:49:37 UTC, the example of RFC 9110


def answered(status: int, *headers: tuple[str, str]) -> Outcome:
    return Outcome(status_code=status, headers=headers, started_at=0, ended_at=ENDED)


def failed(failure: FailureReason, status: int | None = None) -> Outcome:
    return Outcome(
        status_code=status,
        failure=failure,
        error_message="what happened",
        started_at=0,
        ended_at=ENDED,
    )


def judge(outcome: Outcome) -> Verdict:
    return classify_outcome(outcome, make_delivery())


@given(st.integers(min_value=100, max_value=999))
def test_5_2_by_status(status: int) -> None:
    """5.2: 2xx is success; 410 is final; all else, redirects too, is retried by the policy."""
    verdict = judge(answered(status))
    if 200 <= status <= 299:
        assert verdict == Verdict(decision="success")
    elif status == 410:
        assert verdict == Verdict(decision="fail", reason="gone", detail="HTTP 410")
    else:
        assert verdict == Verdict(
            decision="retry",
            reason="http_status",
            detail=f"HTTP {status}",
            destination_failed=status in (408, 429) or 500 <= status <= 599,
        )


@pytest.mark.parametrize(
    "failure", ["timeout", "dns_error", "connection_error", "tls_error", "response_error"]
)
def test_5_2_no_answer_is_retried_and_speaks_against_the_destination(
    failure: FailureReason,
) -> None:
    assert judge(failed(failure)) == Verdict(
        decision="retry", reason=failure, detail="what happened", destination_failed=True
    )


def test_5_2_a_refused_address_is_final() -> None:
    assert judge(failed("url_not_allowed")) == Verdict(
        decision="fail", reason="url_not_allowed", detail="what happened"
    )


def test_5_3_an_error_of_our_own_is_retried_and_no_fault_of_the_destination() -> None:
    assert judge(failed("internal_error")) == Verdict(
        decision="retry", reason="internal_error", detail="what happened"
    )


def test_5_2_a_2xx_head_without_a_whole_answer_is_no_success() -> None:
    assert judge(failed("response_error", status=200)).decision == "retry"


@pytest.mark.parametrize("failure", get_args(FailureReason))
def test_5_1_every_verdict_but_success_has_a_reason(failure: FailureReason) -> None:
    assert judge(failed(failure)).reason == failure


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("120", 120),
        (" 0120 ", 120),
        ("0", None),
        ("Sun, 06 Nov 1994 08:51:37 GMT", 120),
        ("Sunday, 06-Nov-94 08:51:37 GMT", 120),
        ("Sun Nov  6 08:51:37 1994", 120),
        ("Sun, 06 Nov 1994 09:51:37 +0100", 120),
        ("Sun, 06 Nov 1994 08:49:37 GMT", None),
        ("Sun, 06 Nov 1993 08:49:37 GMT", None),
        ("Sun, 31 Feb 1995 08:49:37 GMT", None),
        ("Sun, 06 Nov 1994 08:51:37 +9999", None),
        ("-120", None),
        ("+120", None),
        ("1.5", None),
        ("120s", None),
        ("١٢٠", None),
        ("", None),
        ("soon", None),
    ],
)
def test_3_6_retry_after(status: int, value: str, seconds: int | None) -> None:
    """3.6: seconds or a date, counted from the end of the attempt; anything else asks nothing."""
    wait = judge(answered(status, ("retry-after", value))).wait
    assert wait == (None if seconds is None else seconds * SECOND)


@pytest.mark.parametrize("status", [301, 404, 500, 502])
def test_3_6_retry_after_counts_on_429_and_503_only(status: int) -> None:
    assert judge(answered(status, ("retry-after", "120"))).wait is None


def test_3_6_the_fraction_of_the_end_of_the_attempt_counts() -> None:
    outcome = Outcome(
        status_code=503,
        headers=(("retry-after", "Sun, 06 Nov 1994 08:51:37 GMT"),),
        started_at=0,
        ended_at=ENDED + 250_000,
    )
    assert judge(outcome).wait == 120 * SECOND - 250_000


@given(st.text(max_size=80) | st.from_regex(r"[0-9A-Za-z,: +-]{0,60}", fullmatch=True))
@example("9" * 5000)
@example("Sun, 06 Nov 99999999999999999999 08:49:37 GMT")
@example("Mon, 99 Zzz 99999999999999999999 99:99:99 GMT")
@example("Fri, 31 Dec 9999 23:59:59 -2359")
@example("Sat, 01 Jan 0001 00:00:00 +2359")
def test_3_6_garbage_never_raises(value: str) -> None:
    wait = retry_after(answered(503, ("retry-after", value)))
    assert wait is None or 0 < wait < 2**63


@given(st.integers(min_value=1, max_value=10**12 - 1))
def test_3_6_seconds_are_exact(seconds: int) -> None:
    assert retry_after(answered(503, ("retry-after", str(seconds)))) == seconds * SECOND


@given(st.integers(min_value=1, max_value=1000 * HOUR // SECOND))
def test_3_6_dates_are_exact(seconds: int) -> None:
    value = email.utils.formatdate(ENDED // SECOND + seconds, usegmt=True)
    assert retry_after(answered(429, ("retry-after", value))) == seconds * SECOND
