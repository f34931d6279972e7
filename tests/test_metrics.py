"""What /metrics shows, from readings made by hand; and that its documentation is true."""

import re
from typing import Any

import msgspec
import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

from primeflowd.destinations import DestinationStatistics
from primeflowd.exposition import Exposition
from primeflowd.histogram import COMMIT_TIMES, Histogram
from primeflowd.hookspecs import StorageStatistics
from primeflowd.instants import SECOND
from primeflowd.metrics import MOST_DESTINATIONS, Reading, families
from primeflowd.tallies import AttemptTally, RequestTally, loop_lags
from primeflowd.transport import TransportStatistics
from tests.monitoring import documented

IDLE = DestinationStatistics(queued=0, in_flight=0, window=5, suspended_until=None)


def reading(**changes: Any) -> Reading:
    """A node that has something to tell under every label."""
    requests = RequestTally()
    requests.count("POST", "/v1/batches", 201)
    values: dict[str, Any] = {
        "now": 1_000 * SECOND,
        "ready": True,
        "accepted": 11,
        "cancelled": 2,
        "attempts": AttemptTally(),
        "waiting": 5,
        "due": 3,
        "sending": 1,
        "held_limit": 20_000,
        "senders": 64,
        "destinations": {"https://a.example:443": IDLE},
        "disabled": 2,
        "transport": TransportStatistics(open=5, idle=3, connects=7, reuses=9),
        "storage": StorageStatistics(
            healthy=True,
            backlog=4,
            commits=10,
            operations=250,
            failures=1,
            commit_times=Histogram(SECOND, COMMIT_TIMES),
        ),
        "backlog_limit": 10_000,
        "lease_held": True,
        "is_eldest": False,
        "loop_lags": loop_lags(),
        "requests": requests,
        "plugin_failures": {("archive", "attempts_recorded"): 1},
        "not_announced": 6,
        "removed": {"batches": 8, "answers": 0},
        "purged_at": 900 * SECOND,
    }
    return Reading(**values | changes)


def scraped(given: Reading) -> dict[str, Metric]:
    """The families by name, as Prometheus reads them."""
    body, _ = Exposition(lambda: families(given)).scrape("")
    return {family.name: family for family in text_string_to_metric_families(body.decode())}


def samples(given: Reading, name: str) -> dict[tuple[str, ...], float]:
    """The values of one metric, by the values of its labels in the order of these names."""
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in scraped(given).values()
        for sample in family.samples
        if sample.name == f"primeflowd_{name}"
    }


def test_plain_numbers() -> None:
    given = reading()
    expected = {
        "ready": 1,
        "deliveries_accepted_total": 11,
        "held_limit": 20_000,
        "senders": 64,
        "senders_busy": 1,
        "destinations": 1,
        "destinations_suspended": 0,
        "destinations_disabled": 2,
        "connects_total": 7,
        "connection_reuses_total": 9,
        "storage_healthy": 1,
        "storage_backlog": 4,
        "storage_backlog_limit": 10_000,
        "storage_commits_total": 10,
        "storage_operations_total": 250,
        "storage_failures_total": 1,
        "lease_held": 1,
        "eldest": 0,
        "attempts_not_announced_total": 6,
        "purged_timestamp_seconds": 900,
    }
    assert {name: samples(given, name)[()] for name in expected} == expected
    assert samples(given, "held_deliveries") == {("waiting",): 5, ("due",): 3, ("sending",): 1}
    assert samples(given, "connections") == {("idle",): 3, ("in_use",): 2}
    assert samples(given, "plugin_failures_total") == {("attempts_recorded", "archive"): 1}
    assert samples(given, "removed_total") == {("batches",): 8, ("answers",): 0}
    assert samples(given, "api_requests_total") == {("POST", "/v1/batches", "2xx"): 1}


def test_senders_are_never_more_than_all_busy() -> None:
    """Attempts that wait for their commit keep no sender."""
    assert samples(reading(sending=100), "senders_busy") == {(): 64}


def test_outcomes_are_classes_and_start_at_zero() -> None:
    attempts = AttemptTally()
    assert set(samples(reading(attempts=attempts), "attempts_total").values()) == {0}
    attempts.outcomes.update({200: 3, 204: 2, 301: 1, 503: 4, 799: 1, "tls_error": 5, None: 1})
    shown = samples(reading(attempts=attempts), "attempts_total")
    counted = {outcome: count for (outcome,), count in shown.items() if count}
    assert counted == {"2xx": 5, "3xx": 1, "5xx": 4, "7xx": 1, "tls_error": 5, "none": 1}


def test_a_cancelled_delivery_is_counted_once() -> None:
    """By the order that ended it, not by the attempt that was under way."""
    attempts = AttemptTally()
    attempts.ended.update({None: 7, "gone": 2, "cancelled": 1})
    shown = samples(reading(attempts=attempts, cancelled=4), "deliveries_ended_total")
    assert shown["", "succeeded"] == 7
    assert shown["gone", "failed"] == 2
    assert shown["cancelled", "failed"] == 4
    assert sum(shown.values()) == 13


def test_histograms_are_in_seconds_and_cumulative() -> None:
    attempts = AttemptTally()
    for milliseconds in (4, 5, 70, 90_000):
        attempts.durations.observe(milliseconds)
    attempts.first_delays.observe(2 * SECOND)
    given = reading(attempts=attempts)
    buckets = samples(given, "attempt_duration_seconds_bucket")
    assert buckets["0.005",] == 2
    assert buckets["0.1",] == buckets["60.0",] == 3
    assert buckets["+Inf",] == 4
    assert samples(given, "attempt_duration_seconds_count") == {(): 4}
    assert samples(given, "attempt_duration_seconds_sum") == {(): pytest.approx(90.079)}
    assert samples(given, "first_attempt_delay_seconds_sum") == {(): 2}


def test_a_storage_need_not_say_how_long_its_commits_take() -> None:
    """One that was written before there was such a question."""
    times = Histogram(SECOND, COMMIT_TIMES)
    times.observe(3 * SECOND // 1_000)
    plain = StorageStatistics(True, 0, 1, 1, 0)
    telling = msgspec.structs.replace(plain, commit_times=times)
    assert "primeflowd_storage_commit_seconds" not in scraped(reading(storage=plain))
    buckets = samples(reading(storage=telling), "storage_commit_seconds_bucket")
    assert (buckets["0.0025",], buckets["0.005",]) == (0, 1)


def test_destinations_are_bounded() -> None:
    """The longest queues, as many suspended ones besides, the rest as one."""
    crowd = {
        f"https://{number}.example:443": DestinationStatistics(
            queued=number,
            in_flight=1,
            window=0 if number < 100 else 5,
            suspended_until=1 if number < 100 else None,
        )
        for number in range(1000)
    }
    given = reading(destinations=crowd)
    queued = samples(given, "destination_queued")
    suspended = samples(given, "destination_suspended")
    assert len(queued) == len(suspended) == 2 * MOST_DESTINATIONS + 1
    assert {(f"https://{number}.example:443",) for number in range(980, 1000)} < set(queued)
    assert {(f"https://{number}.example:443",) for number in range(80, 100)} < set(queued)
    # Nothing is lost of the sums.
    assert sum(queued.values()) == sum(range(1000))
    assert sum(samples(given, "destination_in_flight").values()) == 1000
    assert sum(suspended.values()) == 100
    assert suspended["other",] == 80
    assert samples(given, "destinations_suspended") == {(): 100}
    assert samples(given, "destinations") == {(): 1000}
    lines = len(Exposition(lambda: families(given)).scrape("")[0].splitlines())
    assert lines < 500


def test_the_oldest_due_is_not_looked_for_where_sending_is_suspended() -> None:
    def since(due: int | None, suspended_until: int | None = None) -> DestinationStatistics:
        return DestinationStatistics(1, 0, 5, suspended_until, due)

    queues = {"a": since(990 * SECOND), "b": since(995 * SECOND), "c": since(1, 1), "d": IDLE}
    assert samples(reading(destinations=queues), "oldest_due_seconds") == {(): 10}
    assert samples(reading(destinations={"c": since(1, 1)}), "oldest_due_seconds") == {(): 0}
    assert samples(reading(destinations={"a": since(2**60)}), "oldest_due_seconds") == {(): 0}


def test_idle_destinations_neither_come_nor_go() -> None:
    """Which of them are named depends on nothing that changes."""
    names = [f"https://{number}.example:443" for number in range(50)]
    one_way = samples(reading(destinations=dict.fromkeys(names, IDLE)), "destination_queued")
    other = samples(reading(destinations=dict.fromkeys(names[::-1], IDLE)), "destination_queued")
    assert len(one_way) == MOST_DESTINATIONS + 1
    assert one_way == other


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8"),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        ("text/plain;version=bogus", "text/plain; version=0.0.4; charset=utf-8"),
        (
            "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
        ),
    ],
)
def test_formats(accept: str, content_type: str) -> None:
    body, given = Exposition(lambda: families(reading())).scrape(accept)
    assert given == content_type
    assert body.endswith(b"# EOF\n") is ("openmetrics" in content_type)


def test_both_formats_say_the_same() -> None:
    metrics = Exposition(lambda: families(reading()))
    plain, _ = metrics.scrape("")
    text, _ = metrics.scrape("application/openmetrics-text")
    ours = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(plain.decode())
        for sample in family.samples
        if not sample.name.startswith("process_")
    }
    theirs = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in openmetrics_families(text.decode())  # type: ignore[no-untyped-call]  # no hints
        for sample in family.samples
        if not sample.name.startswith("process_")
    }
    assert ours == theirs


def test_every_metric_is_documented_with_type_and_labels_and_the_other_way_round() -> None:
    exposed = {}
    for line in Exposition(lambda: families(reading())).scrape("")[0].decode().splitlines():
        if found := re.match(r"# TYPE (\S+) (\S+)", line):
            name, kind = found.groups()
            exposed[name] = ("info" if name.endswith("_info") else kind, set[str]())
        elif not line.startswith("#"):
            sample, labels = re.fullmatch(r"([a-z_]+)(?:\{(.*)\})? \S+", line).groups("")  # type: ignore[union-attr]  # else the test fails
            family = sample if sample in exposed else re.sub("_(bucket|count|sum)$", "", sample)
            exposed[family][1].update(set(re.findall(r'(\w+)="', labels)) - {"le"})
    assert documented() == exposed


def test_a_reading_is_taken_anew_for_each_scrape() -> None:
    readings = iter([reading(accepted=1), reading(accepted=2)])
    metrics = Exposition(lambda: families(next(readings)))
    assert b"accepted_total 1.0" in metrics.scrape("")[0]
    assert b"accepted_total 2.0" in metrics.scrape("")[0]


def test_readings_are_plain_values() -> None:
    """Each field must be given: none is silently zero."""
    assert all(field.required for field in msgspec.structs.fields(Reading))
