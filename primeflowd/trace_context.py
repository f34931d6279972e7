"""Where spans belong: W3C trace contexts, and those that follow from ids alone. Pure.

A callback is on its way for a day and through restarts, and its spans must meet in one trace all
the same. No trace context is kept for that: the ids of our own objects are the ids of the trace.
A batch's automatic delivery, of which there is one, has the batch's id for the id of its trace, and
a redelivery its own; a UUID has the 16 bytes of a trace id. The last 8 bytes of an attempt's id
name its span. So any node knows after any restart where an attempt belongs, storage has nothing
more to write, and whoever has a batch's id has its trace.

The price is that a client's trace cannot go on for as long: it has the request, and what comes of
that is linked to it, as OpenTelemetry advises for messages.
"""

import re
from collections.abc import Sequence
from typing import Final, NamedTuple
from zlib import crc32

from primeflowd.model import Delivery

HEADER: Final = "traceparent"

# Version ff is none, and a later one may have more to say after a dash.
_TRACEPARENT: Final = re.compile(
    r"(?!ff)(?P<version>[0-9a-f]{2})-(?P<trace>[0-9a-f]{32})-(?P<span>[0-9a-f]{16})"
    r"-(?P<flags>[0-9a-f]{2})(?P<more>-.*)?"
)
_SAMPLED: Final = 1
_SPAN_BITS: Final = 2**64 - 1


class TraceContext(NamedTuple):
    """One span's place. `is_sampled` says whether the spans of its trace are exported."""

    trace_id: int
    span_id: int
    is_sampled: bool

    def header(self) -> str:
        """The value of `traceparent` for whoever is called from within this span."""
        flags = _SAMPLED if self.is_sampled else 0
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{flags:02x}"


def parse(written: Sequence[str]) -> TraceContext | None:
    """A client's context, from all its headers of this name; None if it sent none, or more than
    one, or one that is not valid: that is as if none had come."""
    found = _TRACEPARENT.fullmatch(written[0].strip(" \t")) if len(written) == 1 else None
    if found is None or (found["version"] == "00" and found["more"]):
        return None
    trace_id, span_id = int(found["trace"], 16), int(found["span"], 16)
    if not trace_id or not span_id:
        return None
    return TraceContext(trace_id, span_id, bool(int(found["flags"], 16) & _SAMPLED))


def of_callback(delivery: Delivery, ratio: float) -> TraceContext:
    """The span that stands for a delivery: parent of all of its attempts."""
    if not delivery.is_automatic:
        return _named_by(delivery.id, ratio)
    return of_batch(delivery, ratio)


def of_batch(delivery: Delivery, ratio: float) -> TraceContext:
    """The span that stands for the automatic delivery of its batch."""
    return _named_by(delivery.batch_id, ratio)


def of_attempt(delivery: Delivery, attempt_id: str, ratio: float) -> TraceContext:
    """The span of one attempt."""
    callback = of_callback(delivery, ratio)
    return callback._replace(span_id=_span_id(_number(attempt_id)))


def is_sampled(trace_id: int, ratio: float) -> bool:
    """Whether a trace is among the fraction that is exported: the same on all nodes, for ever.

    By a checksum: the usual test, whether the lower half of the id lies below a bound, would take
    all UUIDs or none, whose variant is the first thing in that half. A client may have chosen the
    id besides, by a rule of its own.
    """
    return crc32(trace_id.to_bytes(16)) < ratio * 2**32


def _named_by(uuid: str, ratio: float) -> TraceContext:
    # A batch's id may be its client's choice: that of no bits at all is not a valid trace id.
    trace_id = _number(uuid) or 1
    return TraceContext(trace_id, _span_id(trace_id), is_sampled(trace_id, ratio))


def _number(uuid: str) -> int:
    return int(uuid.replace("-", ""), 16)


def _span_id(number: int) -> int:
    return number & _SPAN_BITS or 1
