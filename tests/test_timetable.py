"""timetable.py: the schedule is what retry.py will do."""

from hypothesis import given
from hypothesis import strategies as st

from primeflowd.instants import HOUR, MILLISECOND, MINUTE, SECOND, Micros
from primeflowd.model import Attempt, Delivery, Verdict
from primeflowd.retry import after_attempt, after_interruption
from primeflowd.testing.factories import NOW, make_attempt, make_delivery
from primeflowd.timetable import Step, steps, waits

RETRY = Verdict(decision="retry", reason="http_status", detail="500")


def scheduled(delivery: Delivery, *attempts: Attempt, now: Micros = NOW) -> list[Step]:
    return list(steps(delivery, attempts, delivering=False, now=now))


def failed(number: int, at: Micros, took: int = 0, reason: str = "http_status") -> Attempt:
    return make_attempt(
        attempt_number=number,
        status_code=500 if reason == "http_status" else None,
        failure_reason=reason,
        error_message=f"{reason} it was",
        created_at=at,
        response_time=took,
    )


def test_waits_add_up_and_the_last_delay_repeats() -> None:
    """3.3, 3.6: from any number of retries used up on."""
    assert list(waits(("1s", "5s"), 3, NOW)) == [
        ("1s", NOW + SECOND),
        ("5s", NOW + 6 * SECOND),
        ("5s", NOW + 11 * SECOND),
    ]
    assert list(waits(("1s", "5s"), 3, NOW, used=2)) == [("5s", NOW + 5 * SECOND)]
    assert list(waits((), 0, NOW)) == []


def test_schedule_of_a_new_delivery() -> None:
    """3.5, 3.6: the first attempt at once, then each delay from the end of the one before."""
    found = scheduled(make_delivery())
    assert [(each.attempt_number, each.state, each.delay, each.at - NOW) for each in found] == [
        (1, "waiting", None, 0),
        (2, "planned", "15m", 15 * MINUTE),
        (3, "planned", "1h", 75 * MINUTE),
        (4, "planned", "24h", 75 * MINUTE + 24 * HOUR),
    ]


def test_an_overdue_attempt_puts_off_those_after_it() -> None:
    """3.6: their delays run from an end that is still to come."""
    found = scheduled(make_delivery(), now=NOW + HOUR)
    assert [each.at - NOW for each in found[:2]] == [0, HOUR + 15 * MINUTE]


def test_attempts_on_record_and_the_one_that_waits() -> None:
    """5.5: what each met; 3.6: `hastened` is one that did not wait for its delay."""
    first = failed(1, NOW, took=2_000)
    due = NOW + 2 * SECOND + 15 * MINUTE
    early, in_time = failed(2, due - MILLISECOND), failed(2, due)
    waiting = make_delivery(attempt_count=2, due_at=due + HOUR)
    for second, hastened in ((early, True), (in_time, False)):
        found = scheduled(waiting, first, second, now=due + SECOND)
        assert [(each.state, each.delay, each.hastened) for each in found] == [
            ("made", None, False),
            ("made", "15m", hastened),
            ("waiting", "1h", False),
            ("planned", "24h", False),
        ]
        assert [each.attempt for each in found] == [first, second, None, None]


def test_an_interrupted_attempt_takes_a_number_and_no_retry() -> None:
    """5.6: the next one waits for no delay, and as many retries are left as before."""
    cut = failed(1, NOW, reason="interrupted")
    delivery = make_delivery(attempt_count=1, interruptions=1)
    found = scheduled(delivery, cut)
    assert [(each.attempt_number, each.state, each.delay) for each in found] == [
        (1, "interrupted", None),
        (2, "waiting", None),
        (3, "planned", "15m"),
        (4, "planned", "1h"),
        (5, "planned", "24h"),
    ]


@given(
    delays=st.lists(st.sampled_from(["1s", "15m", "1h30m", "7d"]), max_size=5).map(tuple),
    more=st.integers(0, 4),
    events=st.lists(st.sampled_from(["fail", "interrupt"]), max_size=12),
    late=st.integers(0, HOUR),
)
def test_the_schedule_is_what_retry_does(
    delays: tuple[str, ...], more: int, events: list[str], late: Micros
) -> None:
    """3.3, 3.6: foretold from any state on, it is what comes if every attempt fails at once."""
    retries = len(delays) + more if delays else 0
    delivery = make_delivery(delays=delays, max_retries=retries)
    attempts: list[Attempt] = []
    for event in events:
        if delivery.due_at is None:
            break
        at = delivery.due_at
        number = delivery.attempt_count + 1
        if event == "fail":
            attempts.append(failed(number, at))
            delivery = after_attempt(delivery, RETRY, at, wait_cap=0)
        else:
            attempts.append(failed(number, at, reason="interrupted"))
            delivery = after_interruption(delivery, at)
    now = NOW if delivery.due_at is None else delivery.due_at + late
    found = scheduled(delivery, *attempts, now=now)
    assert [step.attempt_number for step in found] == list(range(1, len(found) + 1))
    assert not any(step.hastened for step in found)
    foretold = [step.at for step in found if step.attempt is None]
    came: list[Micros] = []
    while delivery.due_at is not None:
        came.append(delivery.due_at)
        delivery = after_attempt(delivery, RETRY, max(now, delivery.due_at), wait_cap=0)
    assert foretold == came


def test_the_first_to_come_may_be_under_way() -> None:
    """5.1: shown by the node that is sending."""
    [first, *later] = steps(make_delivery(), (), delivering=True, now=NOW)
    assert first.state == "under_way"
    assert {step.state for step in later} == {"planned"}
