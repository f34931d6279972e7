"""A classifier for primeflowd that heeds what the receiver's answer says about a retry.

Who decides about an answer, first to last: a rule of the configuration; the JSON body and the
`Retry-After` header; whoever is asked after this plugin, at last primeflowd's default. A 2xx stays
a success, and nothing else becomes one, unless a rule says so. Attempts that got no answer are none
of this plugin's business.

Guarantees: whatever a receiver sends, nothing is raised and nothing of it is repeated in
`failure_detail`. Pure but for its settings; blocks on nothing.
"""

from collections.abc import Mapping
from typing import Any, Final

from primeflowd.hookspecs import hookimpl
from primeflowd.model import Delivery, FailureReason, Outcome, Verdict
from primeflowd_json_verdict.answer import Wish, wish_of
from primeflowd_json_verdict.settings import Rule, read

# As primeflowd's default sees it: statuses that tell of the whole destination being ill.
_ILL: Final = frozenset({408, 429, *range(500, 600)})


class JsonVerdict:
    """The plugin; `HOOK_API` is the version of primeflowd's hooks that it was written for."""

    HOOK_API: Final = 1

    def __init__(self) -> None:
        self._settings = read({})

    @hookimpl
    def configure(self, settings: Mapping[str, Any]) -> None:
        """Take the `[plugins.json-verdict]` table.

        Raises:
            ConfigError: something in it is unknown or not allowed.
        """
        self._settings = read(settings)

    @hookimpl
    def classify_outcome(self, outcome: Outcome, delivery: Delivery) -> Verdict | None:
        """None where neither a rule nor the answer has anything to say."""
        status = outcome.status_code
        if outcome.failure is not None or status is None:
            return None
        rule = self._settings.rule_for(delivery.destination, status)
        if rule is not None:
            return self._ruled(rule, outcome, status)
        if 200 <= status < 300:
            return None
        wish = self._wish(outcome)
        if wish.retry is None:
            return None
        return _granted(wish, status)

    def _wish(self, outcome: Outcome) -> Wish:
        return wish_of(outcome, self._settings.content_types if self._settings.trust_body else None)

    def _ruled(self, rule: Rule, outcome: Outcome, status: int) -> Verdict:
        if rule.verdict == "success":
            return Verdict(decision="success")
        detail = rule.reason_detail or f"HTTP {status}; {rule.name} of the plugin json-verdict"
        if rule.verdict == "fail":
            return Verdict(decision="fail", reason=_final_reason(status), detail=detail)
        # Where the operator names no wait, how long it takes is for the receiver to know.
        wait = rule.wait if rule.wait is not None else self._wish(outcome).wait
        return _retry(status, detail, wait)


def _granted(wish: Wish, status: int) -> Verdict:
    if wish.retry:
        return _retry(status, f"HTTP {status}; the receiver asks for a retry", wish.wait)
    # This one callback is refused, by a receiver well enough to say so: whatever the status, the
    # destination is not ill.
    return Verdict(
        decision="fail",
        reason=_final_reason(status),
        detail=f"HTTP {status}; the receiver asks for no retry",
    )


def _retry(status: int, detail: str, wait: int | None) -> Verdict:
    # Never `gone`, which says that nobody will ask again.
    return Verdict(
        decision="retry",
        reason="http_status",
        detail=detail,
        wait=wait or None,
        destination_failed=status in _ILL,
    )


def _final_reason(status: int) -> FailureReason:
    return "gone" if status == 410 else "http_status"


plugin: Final = JsonVerdict()
"""What the entry point names."""
