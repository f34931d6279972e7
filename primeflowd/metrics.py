"""`/metrics`: what the daemon counts, as families of samples.

The daemon's parts count in plain numbers; a scrape reads them (`Reading`) and turns them into
families of samples, which exposition.py writes out. Pure.

Labels are bounded whatever clients and receivers do: outcomes, reasons, statuses and routes are
few by nature, and of destinations those with the most to do are named, the rest is `other`.
systemd/monitoring/README.md lists every family.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from heapq import nlargest
from typing import Final, get_args

import msgspec

from primeflowd import __version__
from primeflowd.destinations import DestinationStatistics
from primeflowd.exposition import (
    Family,
    Samples,
    counter,
    gauge,
    histogram,
    info,
    labelled_gauge,
)
from primeflowd.histogram import Histogram
from primeflowd.hookspecs import StorageStatistics
from primeflowd.instants import SECOND, Micros
from primeflowd.model import FailureReason
from primeflowd.tallies import AttemptTally, RequestTally
from primeflowd.transport import TransportStatistics

MOST_DESTINATIONS: Final = 20
"""How many destinations are named for their queue, and how many more for being suspended."""

REST: Final = "other"
"""The destination that stands for all that are not named."""

# Shown from the start, at 0: a counter that first appears at 1 never rose, as Prometheus sees it.
_OUTCOMES: Final = (
    *("2xx", "3xx", "4xx", "5xx"),
    *("timeout", "dns_error", "connection_error", "tls_error", "response_error"),
    *("url_not_allowed", "interrupted", "internal_error"),
)
_REASONS: Final[tuple[FailureReason, ...]] = get_args(FailureReason)


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """The daemon's numbers at one instant. Those that only grow count since its start.

    Attributes:
        now: on the clock by which deliveries are due.
        accepted: deliveries made. `cancelled`: those of which a person's order was the end.
        waiting, due, sending: held deliveries: in the timer wheel, in the queue of their
            destination, with a sender. `held_limit` bounds all of them.
        senders: how many there are.
        disabled: destinations that nothing is sent to, for a reason.
        plugin_failures: by plugin and hook.
        removed: rows that were old, by kind. `purged_at`: when the last purge that left nothing
            old began; None before the first.
    """

    now: Micros
    ready: bool
    accepted: int
    cancelled: int
    attempts: AttemptTally
    waiting: int
    due: int
    sending: int
    held_limit: int
    senders: int
    destinations: Mapping[str, DestinationStatistics]
    disabled: int
    transport: TransportStatistics
    storage: StorageStatistics
    backlog_limit: int
    lease_held: bool
    is_eldest: bool
    loop_lags: Histogram
    requests: RequestTally
    plugin_failures: Mapping[tuple[str, str], int]
    not_announced: int
    removed: Mapping[str, int]
    purged_at: Micros | None


def families(reading: Reading) -> Iterator[Family]:
    """Everything that is exposed, but for what the kernel knows."""
    yield info("build", "The version.", {"version": __version__})
    yield gauge("ready", "1 if the node should get requests.", reading.ready)
    yield from _of_deliveries(reading)
    yield from _of_destinations(reading.destinations, reading.now)
    yield gauge("destinations_disabled", "Destinations that are disabled.", reading.disabled)
    yield from _of_connections(reading.transport)
    yield from _of_storage(reading)
    yield from _of_plugins(reading)
    yield histogram("loop_lag_seconds", "How late the event loop wakes a task.", reading.loop_lags)
    yield counter(
        "api_requests_total",
        "API requests answered, by template of the route.",
        ("method", "route", "status"),
        _by_class(reading.requests),
    )


def _of_deliveries(reading: Reading) -> Iterator[Family]:
    attempts = reading.attempts
    yield counter(
        "deliveries_accepted_total", "Deliveries made durable.", (), [((), reading.accepted)]
    )
    yield counter(
        "deliveries_ended_total",
        "Deliveries that reached a final state.",
        ("status", "reason"),
        _ended(attempts, reading.cancelled),
    )
    yield counter(
        "attempts_total",
        "Attempts on record, by what they met.",
        ("outcome",),
        _outcomes(attempts),
    )
    yield histogram(
        "first_attempt_delay_seconds",
        "From the acceptance of a delivery to its first attempt.",
        attempts.first_delays,
    )
    yield histogram("attempt_duration_seconds", "Attempts from start to end.", attempts.durations)
    yield histogram(
        "retry_lateness_seconds",
        "Start of later attempts after the instant at which they were due.",
        attempts.lateness,
    )
    states = {"waiting": reading.waiting, "due": reading.due, "sending": reading.sending}
    yield labelled_gauge(
        "held_deliveries",
        "Deliveries in memory.",
        "state",
        states,
    )
    yield gauge("held_limit", "Most deliveries in memory.", reading.held_limit)
    yield gauge("senders", "Size of the sender pool.", reading.senders)
    yield gauge(
        "senders_busy", "Senders that have a delivery.", min(reading.sending, reading.senders)
    )


def _of_destinations(
    all_of_them: Mapping[str, DestinationStatistics], now: Micros
) -> Iterator[Family]:
    suspended = sum(one.suspended_until is not None for one in all_of_them.values())
    yield gauge("destinations", "Destinations that are known.", len(all_of_them))
    yield gauge("destinations_suspended", "Destinations that are suspended.", suspended)
    waiting = [
        one.oldest_due
        for one in all_of_them.values()
        if one.oldest_due is not None and one.suspended_until is None
    ]
    yield gauge(
        "oldest_due_seconds",
        "How long the longest due delivery is in its queue, suspended destinations left out.",
        max(0, now - min(waiting, default=now)) / SECOND,
    )
    named = _named(all_of_them)
    rest = [one for name, one in all_of_them.items() if name not in named]
    shown = [(name, [all_of_them[name]]) for name in named] + ([(REST, rest)] if rest else [])
    about: dict[str, tuple[str, Callable[[DestinationStatistics], float]]] = {
        "queued": ("Due deliveries in the queue.", lambda one: one.queued),
        "in_flight": ("Attempts under way.", lambda one: one.in_flight),
        "window": ("Attempts allowed at once.", lambda one: one.window),
        "suspended": ("1 if it is suspended.", lambda one: one.suspended_until is not None),
    }
    for what, (meaning, value) in about.items():
        sums = {name: sum(map(value, ones)) for name, ones in shown}
        yield labelled_gauge(f"destination_{what}", meaning, "destination", sums)


def _of_connections(transport: TransportStatistics) -> Iterator[Family]:
    states = {"idle": transport.idle, "in_use": transport.open - transport.idle}
    yield labelled_gauge("connections", "Open connections to destinations.", "state", states)
    yield counter("connects_total", "Connections made.", (), [((), transport.connects)])
    yield counter(
        "connection_reuses_total", "Attempts over a kept connection.", (), [((), transport.reuses)]
    )


def _of_storage(reading: Reading) -> Iterator[Family]:
    storage = reading.storage
    yield gauge("storage_healthy", "0 from a failed commit until the next.", storage.healthy)
    yield gauge("storage_backlog", "Writes that wait for the next commit.", storage.backlog)
    yield gauge("storage_backlog_limit", "Most writes that may wait.", reading.backlog_limit)
    yield counter("storage_commits_total", "Group commits.", (), [((), storage.commits)])
    yield counter("storage_operations_total", "Operations in them.", (), [((), storage.operations)])
    if storage.commit_times is not None:
        yield histogram(
            "storage_commit_seconds",
            "Transactions from begin to commit.",
            storage.commit_times,
        )
    yield counter("storage_failures_total", "Failed commits.", (), [((), storage.failures)])
    yield counter(
        "removed_total",
        "Rows that were old, and removed.",
        ("kind",),
        [((kind,), count) for kind, count in reading.removed.items()],
    )
    yield gauge(
        "purged_timestamp_seconds",
        "When the last purge that left nothing old began, 0 before the first.",
        (reading.purged_at or 0) / SECOND,
    )
    yield gauge("lease_held", "1 while the node may act on its claims.", reading.lease_held)
    yield gauge("eldest", "1 if it does the chores of all nodes.", reading.is_eldest)


def _of_plugins(reading: Reading) -> Iterator[Family]:
    yield counter(
        "plugin_failures_total",
        "Calls of a hook that raised or returned nonsense.",
        ("plugin", "hook"),
        reading.plugin_failures.items(),
    )
    yield counter(
        "attempts_not_announced_total",
        "Attempts that plugins were too slow for.",
        (),
        [((), reading.not_announced)],
    )


def _named(destinations: Mapping[str, DestinationStatistics]) -> list[str]:
    """Those with the most to do, and suspended ones besides."""
    busiest = nlargest(
        MOST_DESTINATIONS,
        destinations,
        # By name where there is nothing else, so that idle ones do not come and go.
        key=lambda name: (destinations[name].queued, destinations[name].in_flight, name),
    )
    chosen = dict.fromkeys(busiest)
    suspended = [
        name
        for name, one in destinations.items()
        if one.suspended_until is not None and name not in chosen
    ]
    chosen |= dict.fromkeys(
        nlargest(MOST_DESTINATIONS, suspended, key=lambda name: (destinations[name].queued, name))
    )
    return list(chosen)


def _ended(attempts: AttemptTally, cancelled: int) -> Samples:
    # An attempt that was under way when a person ended its delivery shows that end, too.
    ended = {**attempts.ended, "cancelled": cancelled}
    yield ("succeeded", ""), ended.get(None, 0)
    for reason in _REASONS:
        yield ("failed", reason), ended.get(reason, 0)


def _outcomes(attempts: AttemptTally) -> Samples:
    counts = Counter(dict.fromkeys(_OUTCOMES, 0))
    for met, count in attempts.outcomes.items():
        # A plugin may take for a success what met no answer, and then gives no reason.
        counts[f"{met // 100}xx" if isinstance(met, int) else met or "none"] += count
    return [((outcome,), count) for outcome, count in counts.items()]


def _by_class(requests: RequestTally) -> Samples:
    counts: Counter[tuple[str, ...]] = Counter()
    for (method, route, status), count in requests.counts.items():
        counts[method, route, f"{status // 100}xx"] += count
    return counts.items()
