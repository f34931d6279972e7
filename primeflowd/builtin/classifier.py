"""The default answer to what an outcome means (contract 5.2, 5.3). Pure; every plugin goes first.

Any 2xx is success. 410 and a refused address are final. Everything else is retried as the policy
says; redirects are among it, since they are not followed.
"""

import email.utils
from datetime import UTC
from typing import Final

from primeflowd.hookspecs import hookimpl
from primeflowd.instants import SECOND, Micros, from_datetime
from primeflowd.model import Delivery, Outcome, Verdict

_SUCCESS: Final = Verdict(decision="success")
# The receiver's side as a whole looks ill; what it says of this one callback is not among them.
_ILL_FAILURES: Final = frozenset(
    {"timeout", "dns_error", "connection_error", "tls_error", "response_error"}
)
_ILL_STATUSES: Final = frozenset({408, 429, *range(500, 600)})
_RETRY_AFTER_STATUSES: Final = frozenset({429, 503})
# 10**12 seconds are beyond any cap; more digits would only make integers that storage cannot hold.
_MAX_DIGITS: Final = 12


@hookimpl(trylast=True)
def classify_outcome(outcome: Outcome, delivery: Delivery) -> Verdict:
    """Never None: this is the last implementation to be asked."""
    status = outcome.status_code
    if outcome.failure is not None or status is None:
        return _without_answer(outcome)
    if 200 <= status < 300:
        return _SUCCESS
    detail = f"HTTP {status}"
    if status == 410:
        return Verdict(decision="fail", reason="gone", detail=detail)
    return Verdict(
        decision="retry",
        reason="http_status",
        detail=detail,
        wait=retry_after(outcome) if status in _RETRY_AFTER_STATUSES else None,
        destination_failed=status in _ILL_STATUSES,
    )


def retry_after(outcome: Outcome) -> Micros | None:
    """How long from `outcome.ended_at` the receiver asks to be left alone; None if it does not.

    Takes RFC 9110's number of seconds and its three forms of a date. What is neither, or lies in
    the past, asks nothing.
    """
    value = outcome.header("retry-after")
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        seconds = value.lstrip("0")
        if len(seconds) > _MAX_DIGITS:
            seconds = "9" * _MAX_DIGITS
        return int(seconds or "0") * SECOND or None
    try:
        moment = email.utils.parsedate_to_datetime(value)
        # The form of asctime names no zone; an HTTP date is always UTC.
        instant = from_datetime(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        # Not a date, or one with a number that no date has.
        return None
    return instant - outcome.ended_at if instant > outcome.ended_at else None


def _without_answer(outcome: Outcome) -> Verdict:
    reason = outcome.failure or "internal_error"
    return Verdict(
        decision="fail" if reason == "url_not_allowed" else "retry",
        reason=reason,
        detail=outcome.error_message,
        destination_failed=reason in _ILL_FAILURES,
    )
