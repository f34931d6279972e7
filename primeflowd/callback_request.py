"""What an attempt sends: the callback's headers (contract 6.4), put around its body.

Pure.
"""

from collections.abc import Callable
from typing import Final, TypeAlias

from primeflowd import __version__
from primeflowd.callback_url import Target
from primeflowd.destination import Held
from primeflowd.model import Delivery
from primeflowd.request_head import Request, header_lines, with_others
from primeflowd.signing import Signed

TraceHeaders: TypeAlias = Callable[[Delivery, str], tuple[tuple[str, str], ...]]
"""From a delivery and the id of an attempt at it."""

_FIXED: Final = header_lines(
    (("Content-Type", "application/json"), ("User-Agent", f"primeflowd/{__version__}"))
)


def make(
    target: Target,
    held: Held,
    attempt_id: str,
    signed: Signed,
    body: bytes,
    of_trace: TraceHeaders | None,
) -> Request:
    """With what every attempt says of itself, its signatures, its trace context if any, and what
    an operator adds.

    Raises:
        ValueError: what he adds cannot be sent.
    """
    delivery, rules = held.delivery, held.rules
    lines = (
        f"{_FIXED}Primeflow-Delivery-Id: {delivery.id}\r\n"
        f"Primeflow-Attempt: {delivery.attempt_count + 1}\r\n"
        f"Primeflow-Request-Id: {attempt_id}\r\n{signed.lines}"
    )
    if of_trace is not None:
        lines += header_lines(of_trace(delivery, attempt_id))
    if rules is None:
        return Request(target, lines, body)
    return Request(target, with_others(lines, rules.headers), body, rules.timeout)
