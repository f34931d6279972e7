"""The sender pool: what is sent, what goes on record, and what a cancellation leaves behind."""

from itertools import pairwise
from typing import Any

import msgspec
import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked

from primeflowd.builtin.memory import MemoryStorage
from primeflowd.clock import SystemClock
from primeflowd.config import DeliverySettings
from primeflowd.durations import Duration
from primeflowd.errors import StorageUnavailable
from primeflowd.hookspecs import RecordedAttempt
from primeflowd.instants import HOUR, MINUTE, SECOND
from primeflowd.model import Delivery, Outcome, Verdict
from primeflowd.redelivery import attempt_now, cancel_delivery
from primeflowd.sender import Wire as WireProtocol
from primeflowd.testing.factories import ORG
from primeflowd.transport import Transport
from tests.network import pairs
from tests.sending import HANGS, ILL, NODE, Answer, Line, Wire, destination, open_line

# Everything here holds for attempts in tasks and for those without one.
pytestmark = pytest.mark.usefixtures("keeps")


async def test_the_fake_wire_is_one() -> None:
    """Both are what the senders need; mypy compares the signatures here."""
    real: WireProtocol = Transport(DeliverySettings(), SystemClock())
    async with open_line() as line:
        fake: WireProtocol = line.wire
    assert type(real).send.__annotations__ == type(fake).send.__annotations__


async def test_attempts_are_numbered_without_gaps(autojump_clock: MockClock) -> None:
    """5.5: 1..n; 3.5: and no more of them than the policy has."""
    async with open_line() as line, trio.open_nursery() as nursery:
        (delivery_id,) = await line.add(delays=("1s", "2m"), max_retries=4)
        line.wire.answers["a"] = ILL
        line.start(nursery)
        await trio.sleep(3600)
        delivery = await line.delivery(delivery_id)
        attempts = await line.attempts(delivery_id)
        assert [attempt.attempt_number for attempt in attempts] == [1, 2, 3, 4, 5]
        assert (delivery.status, delivery.failure_reason) == ("failed", "connection_error")
        assert (delivery.attempt_count, delivery.due_at) == (5, None)
        assert delivery.claimed_by is None
        assert [record.attempt for record in line.announced] == attempts
        assert [record.delivery.attempt_count for record in line.announced] == [1, 2, 3, 4, 5]
        assert [record.delivery.due_at is None for record in line.announced] == [False] * 4 + [True]
        assert line.announced[-1].delivery == delivery
        assert len(line.wire.sent) == 5
        assert not line.holdings.holds(delivery_id)
        nursery.cancel_scope.cancel()


async def test_a_retry_waits_from_the_end_of_the_attempt(autojump_clock: MockClock) -> None:
    """3.6: never early, and no later than a tick or so."""
    async with open_line() as line, trio.open_nursery() as nursery:
        (delivery_id,) = await line.add(delays=("10s", "3m"), max_retries=2)
        line.wire.answers["a"] = Answer(status=500, after=7)
        line.start(nursery)
        await trio.sleep(8)
        delivery = await line.delivery(delivery_id)
        (attempt,) = await line.attempts(delivery_id)
        assert attempt.created_at + 7 * SECOND + 10 * SECOND == delivery.due_at
        assert (attempt.response_time, attempt.status_code) == (7000, 500)
        await trio.sleep(400)
        first, second, third = line.wire.times("a")
        assert 0 <= second - (first + 17 * SECOND) <= SECOND // 10
        assert 0 <= third - (second + 7 * SECOND + 3 * MINUTE) <= SECOND // 10
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("retry_after", "waits"),
    [("5", 60), ("600", 600), ("90000", 3600)],
    ids=["never shorter", "longer", "capped"],
)
async def test_retry_after(retry_after: str, waits: int, autojump_clock: MockClock) -> None:
    """3.6: honoured where it asks for longer than the policy, up to the cap."""
    async with open_line(retry_after_cap=Duration("1h")) as line, trio.open_nursery() as nursery:
        (delivery_id,) = await line.add(delays=("1m",), max_retries=1)
        line.wire.answers["a"] = Answer(503, headers=(("retry-after", retry_after),))
        line.start(nursery)
        await trio.sleep(1)
        delivery = await line.delivery(delivery_id)
        assert delivery.due_at == line.wire.times("a")[0] + waits * SECOND
        nursery.cancel_scope.cancel()


async def test_jitter_is_added_on_top(autojump_clock: MockClock) -> None:
    """3.6: a fraction of the delay, never below it."""
    async with open_line(jitter=0.5) as line, trio.open_nursery() as nursery:
        ids = await line.add(count=40, delays=("1h",), max_retries=1)
        line.wire.answers["a"] = Answer(404)
        line.start(nursery)
        await trio.sleep(10)
        waits = set()
        for delivery_id in ids:
            (attempt,) = await line.attempts(delivery_id)
            due_at = (await line.delivery(delivery_id)).due_at
            assert due_at is not None
            waits.add(due_at - attempt.created_at)
        assert min(waits) >= HOUR
        assert max(waits) <= 1.5 * HOUR
        assert len(waits) > 20
        nursery.cancel_scope.cancel()


async def test_an_internal_error_on_the_way_says_nothing_about_the_destination(
    autojump_clock: MockClock,
) -> None:
    async with open_line(window_initial=3, suspend_after=1) as line, trio.open_nursery() as nursery:
        await line.add(count=30, delays=("1h",), max_retries=1)
        line.wire.answers["a"] = Answer(failure="internal_error")
        line.classify = lambda outcome, _: Verdict(
            decision="retry", reason=outcome.failure, destination_failed=True
        )
        line.start(nursery)
        await trio.sleep(1)
        assert len(line.wire.sent) == 30
        assert line.destinations.statistics()[destination("a")].window == 3
        nursery.cancel_scope.cancel()


async def test_a_verdict_without_a_reason_still_gives_the_attempt_one(
    autojump_clock: MockClock,
) -> None:
    """5.1, 5.3: as for the delivery."""
    async with open_line() as line, trio.open_nursery() as nursery:
        (delivery_id,) = await line.add()
        line.classify = lambda outcome, delivery: Verdict(decision="fail")
        line.start(nursery)
        await trio.sleep(1)
        (attempt,) = await line.attempts(delivery_id)
        delivery = await line.delivery(delivery_id)
        assert attempt.failure_reason == delivery.failure_reason == "internal_error"
        nursery.cancel_scope.cancel()


async def test_the_verdict_of_the_classifier_decides(autojump_clock: MockClock) -> None:
    """5.2: plugins may decide otherwise."""
    seen: list[tuple[int | None, str]] = []

    def classify(outcome: Outcome, delivery: Delivery) -> Verdict:
        seen.append((outcome.status_code, delivery.id))
        return Verdict(decision="success")

    async with open_line() as line, trio.open_nursery() as nursery:
        (delivery_id,) = await line.add()
        line.wire.answers["a"] = Answer(404, body=b"as good as done")
        line.classify = classify
        line.start(nursery)
        await trio.sleep(1)
        (attempt,) = await line.attempts(delivery_id)
        assert (await line.delivery(delivery_id)).status == "succeeded"
        assert (attempt.failure_reason, attempt.response_body) == (None, "as good as done")
        assert seen == [(404, delivery_id)]
        nursery.cancel_scope.cancel()


async def test_a_disabled_secret_is_replaced_and_that_is_recorded(
    autojump_clock: MockClock,
) -> None:
    """6.3: signed with the current one instead; the delivery says so. Without any, unsigned."""
    async with open_line() as line, trio.open_nursery() as nursery:
        (unsigned,) = await line.add("b", signing_secret_id="gone")
        line.start(nursery)
        await trio.sleep(1)
        assert (await line.delivery(unsigned)).signing_secret_id is None
        secret_id = await line.secret()
        (signed,) = await line.add(signing_secret_id="gone")
        await trio.sleep(6)
        assert (await line.delivery(signed)).signing_secret_id == secret_id
        assert [one.signing_secret_id for one in await line.attempts(signed)] == [secret_id]
        assert [one.signing_secret_id for one in await line.attempts(unsigned)] == [None]
        nursery.cancel_scope.cancel()


async def test_a_disabled_secret_in_use_is_told_of_once_per_delivery(
    autojump_clock: MockClock,
) -> None:
    """6.3: its next attempt is pinned to the one that it was signed with."""
    async with open_line() as line, trio.open_nursery() as nursery:
        line.wire.answers["a"] = Answer(500)
        line.wire.answers["b"] = Answer(500)
        policy: dict[str, Any] = {"delays": ("2s",), "max_retries": 2}
        # Made before its org had a secret, or with the one that there is: nothing to tell.
        (unpinned,) = await line.add("b", **policy)
        secret_id = await line.secret()
        await line.add("b", signing_secret_id=secret_id, **policy)
        (pinned,) = await line.add("a", signing_secret_id="gone", **policy)
        with capture_logs() as logs:
            line.start(nursery)
            await trio.sleep(60)
        told = [event for event in line.events if event.kind == "secret.disabled_in_use"]
        delivery = await line.delivery(pinned)
        (attempt, *_) = await line.attempts(pinned)
        assert [(event.org_id, event.subject, event.data) for event in told] == [
            (
                ORG,
                "gone",
                {
                    "org_id": ORG,
                    "secret_id": "gone",
                    "signed_with": secret_id,
                    "batch_id": delivery.batch_id,
                    "delivery_id": pinned,
                    "destination": destination("a"),
                },
            )
        ]
        assert told[0].at == attempt.created_at
        assert [e["event"] for e in logs].count("secret_disabled_in_use") == 1
        assert (await line.delivery(unpinned)).signing_secret_id == secret_id
        nursery.cancel_scope.cancel()


async def test_a_delivery_that_fails_for_good_is_told_of(autojump_clock: MockClock) -> None:
    """5.3: once, with what became of it; not what succeeds, waits, or was ended by a person."""
    async with open_line() as line, trio.open_nursery() as nursery:
        line.wire.answers["a"] = Answer(500)
        line.wire.answers["b"] = Answer(500, after=5)
        (failed,) = await line.add("a", delays=("2s",), max_retries=1)
        (cancelled,) = await line.add("b", delays=(), max_retries=0)
        await line.add("c")
        line.start(nursery)
        await trio.sleep(1)
        await line.intake.perform(lambda unit: cancel_delivery(unit, ORG, cancelled))
        assert line.events == []
        await trio.sleep(60)
        delivery = await line.delivery(failed)
        (event,) = line.events
        assert (event.kind, event.subject) == ("delivery.failed", destination("a"))
        assert (event.org_id, event.at) == (ORG, delivery.completed_at)
        assert event.data == {
            "org_id": ORG,
            "batch_id": delivery.batch_id,
            "delivery_id": failed,
            "destination": destination("a"),
            "failure_reason_code": "http_status",
            "failure_detail": "HTTP 500",
            "attempt_count": 2,
        }
        nursery.cancel_scope.cancel()


async def test_an_attempt_is_recorded_once_storage_is_back(autojump_clock: MockClock) -> None:
    """It shows as delivering until then, and the callback is not sent again."""
    async with open_line(window_initial=1) as line, trio.open_nursery() as nursery:

        def fails(_: object) -> Answer:
            line.storage.fail_with = StorageUnavailable("the disk is full")
            return Answer(body=b"thanks")

        first, second = await line.add(count=2)
        line.wire.answers["a"] = fails
        line.start(nursery)
        await trio.sleep(600)
        assert len(line.wire.sent) == 1
        assert line.senders.is_sending(first)
        assert line.destinations.statistics()[destination("a")].in_flight == 0
        line.wire.answers["a"] = Answer(body=b"thanks")
        line.storage.fail_with = None
        await trio.sleep(2)
        (attempt,) = await line.attempts(first)
        assert attempt.response_body == "thanks"
        assert (await line.delivery(second)).status == "succeeded"
        assert len(line.wire.sent) == 2
        nursery.cancel_scope.cancel()


class _InDoubt(MemoryStorage):
    """Commits, and then says that it could not: as when the connection breaks in between."""

    doubtful = 0

    async def write(self, function: Any, on_commit: Any = None) -> Any:
        if self.doubtful:
            self.doubtful -= 1
            await super().write(function)
            raise StorageUnavailable("the connection was lost")
        return await super().write(function, on_commit)


@pytest.mark.parametrize("delay", ["1h", "2s"], ids=["claim given up", "claim kept"])
async def test_a_commit_in_doubt_does_not_record_an_attempt_twice(
    delay: str, autojump_clock: MockClock
) -> None:
    storage = _InDoubt(SystemClock())
    line = Line(storage, DeliverySettings())
    async with trio.open_nursery() as nursery:
        (delivery_id,) = await line.add(delays=(delay,), max_retries=1)

        def doubtful(_: object) -> Answer:
            storage.doubtful = 1
            return ILL

        line.wire.answers["a"] = doubtful
        line.start(nursery)
        await trio.sleep(1)
        line.wire.answers["a"] = Answer()
        (attempt,) = await line.attempts(delivery_id)
        assert attempt.attempt_number == 1
        await trio.sleep(2 * 3600)
        assert [one.attempt_number for one in await line.attempts(delivery_id)] == [1, 2]
        assert (await line.delivery(delivery_id)).status == "succeeded"
        nursery.cancel_scope.cancel()


async def test_lateness_is_of_retries(autojump_clock: MockClock) -> None:
    """Of a first attempt it would say how long its delivery has waited for other reasons."""
    async with open_line() as line, trio.open_nursery() as nursery:
        await line.add("a", due_in=-60)
        await line.add("b", due_in=-3, attempt_count=1, delays=("1s",), max_retries=5)
        line.start(nursery)
        await trio.sleep(10)
        assert len(line.wire.sent) == 2
        assert line.late == [pytest.approx(3 * SECOND, abs=SECOND)]
        nursery.cancel_scope.cancel()


async def test_cancelled_by_a_person_while_it_is_sent(autojump_clock: MockClock) -> None:
    """5.4: the attempt is on record, the delivery stays `cancelled`, nothing follows."""
    async with open_line() as line, trio.open_nursery() as nursery:
        (delivery_id,) = await line.add(delays=("1s",), max_retries=5)
        line.wire.answers["a"] = Answer(500, after=10)
        line.start(nursery)
        await trio.sleep(5)
        await line.intake.perform(lambda unit: cancel_delivery(unit, ORG, delivery_id))
        assert line.senders.is_sending(delivery_id)
        await trio.sleep(600)
        delivery = await line.delivery(delivery_id)
        assert (delivery.status, delivery.failure_reason) == ("failed", "cancelled")
        assert delivery.attempt_count == 1
        (attempt,) = await line.attempts(delivery_id)
        assert line.announced == [RecordedAttempt(attempt, delivery)]
        assert len(line.wire.sent) == 1
        await line.check_claims()
        nursery.cancel_scope.cancel()


async def test_cancelled_by_a_person_right_after_its_attempt(autojump_clock: MockClock) -> None:
    """In the same group commit as the record: the retry must not come from memory."""
    async with open_line() as line, trio.open_nursery() as nursery:
        (delivery_id,) = await line.add(delays=("1s",), max_retries=5)
        line.wire.answers["a"] = Answer(500, after=1)
        line.start(nursery)
        await trio.sleep(0.5)
        line.storage.hold()
        await trio.sleep(1)  # the record waits for the commit; now the order comes
        nursery.start_soon(
            line.intake.perform, lambda unit: cancel_delivery(unit, ORG, delivery_id)
        )
        await wait_all_tasks_blocked()
        line.storage.resume()
        await trio.sleep(600)
        assert len(line.wire.sent) == 1
        assert (await line.delivery(delivery_id)).failure_reason == "cancelled"
        await line.check_claims()
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("delay", ["10s", "1h"], ids=["claim kept", "claim given up"])
async def test_attempt_now_right_after_an_attempt(delay: str, autojump_clock: MockClock) -> None:
    """5.4: in the same group commit as the record, and still at once, and never lost."""
    async with open_line() as line, trio.open_nursery() as nursery:
        (delivery_id,) = await line.add(delays=(delay,), max_retries=5)
        line.wire.answers["a"] = Answer(500, after=1)
        line.start(nursery)
        await trio.sleep(0.5)
        line.storage.hold()
        await trio.sleep(1)
        line.wire.answers["a"] = Answer()
        nursery.start_soon(line.intake.perform, lambda unit: attempt_now(unit, ORG, delivery_id))
        await wait_all_tasks_blocked()
        line.storage.resume()
        await trio.sleep(0.5)
        assert len(line.wire.sent) == 2
        assert (await line.delivery(delivery_id)).status == "succeeded"
        await line.check_claims()
        nursery.cancel_scope.cancel()


async def test_cancelled_by_a_person_while_storage_cannot_be_read(
    autojump_clock: MockClock,
) -> None:
    """5.4: a sender had it and came to no attempt; nobody makes one later."""
    async with open_line() as line, trio.open_nursery() as nursery:
        (delivery_id,) = await line.add(claimed_by=NODE)
        line.holdings.admit([(await line.delivery(delivery_id), None)])
        one = await line.destinations.take()
        assert one is not None
        await line.intake.perform(lambda unit: cancel_delivery(unit, ORG, delivery_id))
        line.destinations.done(one, None, line.now())
        line.holdings.postpone(one, line.now() + SECOND)
        line.start(nursery)
        await trio.sleep(60)
        assert line.wire.sent == []
        await line.check_claims()
        nursery.cancel_scope.cancel()


async def test_a_lost_claim_writes_nothing(autojump_clock: MockClock) -> None:
    """Another node has taken over: what it does counts."""
    async with open_line() as line, trio.open_nursery() as nursery:
        (delivery_id,) = await line.add()
        line.wire.answers["a"] = Answer(500, after=10)
        line.start(nursery)
        await trio.sleep(5)
        before = await line.delivery(delivery_id)
        taken = msgspec.structs.replace(before, claimed_by="node-2")
        await line.storage.write(lambda tx: tx.update_delivery(taken))
        await trio.sleep(600)
        assert await line.delivery(delivery_id) == taken
        assert await line.attempts(delivery_id) == []
        assert line.announced == []
        assert not line.holdings.holds(delivery_id)
        assert line.destinations.statistics()[destination("a")].in_flight == 0
        assert len(line.wire.sent) == 1
        nursery.cancel_scope.cancel()


async def test_busy_is_what_is_being_sent(autojump_clock: MockClock) -> None:
    async with open_line() as line, trio.open_nursery() as nursery:
        (slow,) = await line.add(delays=("1s",), max_retries=1)
        (waiting,) = await line.add(due_in=20)
        line.wire.answers["a"] = Answer(500, after=5)
        line.start(nursery)
        await trio.sleep(1)
        assert line.senders.is_sending(slow)
        assert not line.senders.is_sending(waiting)
        assert (line.senders.busy, list(line.senders.sending)) == (1, [slow])
        await trio.sleep(4.5)
        assert not line.senders.is_sending(slow)
        assert line.senders.busy == 0
        await trio.sleep(1)
        assert line.senders.is_sending(slow)
        await trio.sleep(60)
        assert line.senders.busy == 0
        nursery.cancel_scope.cancel()


async def test_busy_where_the_next_attempt_follows_at_once(autojump_clock: MockClock) -> None:
    """The next sender may have it before the one before has gone."""
    async with open_line(window_initial=30) as line, trio.open_nursery() as nursery:
        ids = await line.add(count=30, due_in=-1, delays=("1ms",), max_retries=100)
        line.wire.answers["a"] = Answer(404, after=5)
        line.start(nursery)
        await trio.sleep(4)
        line.storage.hold()
        await trio.sleep(4)  # overdue by the time it is on record
        line.storage.resume()
        await trio.sleep(2)
        assert line.wire.under_way == 30
        assert set(line.senders.sending) == set(ids)
        assert line.senders.busy == 30
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("concurrency", [1, 3, 20])
async def test_the_pool_is_bounded(concurrency: int, autojump_clock: MockClock) -> None:
    async with open_line(concurrency=concurrency) as line, trio.open_nursery() as nursery:
        for host in range(40):
            line.wire.answers[str(host)] = Answer(after=1)
            await line.add(str(host), count=3)
        line.start(nursery)
        await trio.sleep(0.5)
        assert line.senders.busy == concurrency
        await trio.sleep(200)
        assert line.wire.most_under_way == concurrency
        assert len(line.wire.sent) == 120
        nursery.cancel_scope.cancel()


async def test_run_ends_when_the_queues_are_closed_and_all_is_sent(
    autojump_clock: MockClock,
) -> None:
    """What is under way is finished; what is due, but with no sender yet, is not begun."""
    async with open_line(window_initial=1) as line, trio.open_nursery() as nursery:
        under_way, due = await line.add(count=2)
        line.wire.answers["a"] = Answer(after=20)

        async def close() -> None:
            await trio.sleep(10)
            line.holdings.close()
            line.destinations.close()

        nursery.start_soon(line.scheduler.run)
        nursery.start_soon(close)
        await line.senders.run()
        assert trio.current_time() >= 20
        assert (await line.delivery(under_way)).status == "succeeded"
        assert (await line.delivery(due)).attempt_count == 0
        nursery.cancel_scope.cancel()


async def test_cancelled_while_it_is_sent(autojump_clock: MockClock) -> None:
    """5.6: on record as interrupted, next number, no retry used up, due again at once."""
    async with open_line() as line:
        secret_id = await line.secret()
        (delivery_id,) = await line.add(delays=("1h",), max_retries=1)
        line.wire.answers["a"] = HANGS
        async with trio.open_nursery() as nursery:
            line.start(nursery)
            await trio.sleep(10)
            nursery.cancel_scope.cancel()
        (attempt,) = await line.attempts(delivery_id)
        delivery = await line.delivery(delivery_id)
        assert (attempt.attempt_number, attempt.failure_reason) == (1, "interrupted")
        assert attempt.error_message is not None
        assert "interrupted" in attempt.error_message
        assert attempt.response_time == 10_000
        assert attempt.signing_secret_id == secret_id
        assert (delivery.status, delivery.due_at) == ("pending", line.now())
        assert (delivery.attempt_count, delivery.interruptions) == (1, 1)
        assert delivery.claimed_by is None
        assert line.announced == [RecordedAttempt(attempt, delivery)]
        assert line.senders.busy == 0

        # The next node makes it at once, and all retries of the policy are left.
        line.another("node-2")
        line.wire.answers["a"] = ILL
        async with trio.open_nursery() as nursery:
            line.start(nursery)
            await trio.sleep(1)
            assert dict(pairs(line.wire.sent[1][1].lines))["Primeflow-Attempt"] == "2"
            await trio.sleep(2 * 3600)
            nursery.cancel_scope.cancel()
        assert [one.attempt_number for one in await line.attempts(delivery_id)] == [1, 2, 3]
        assert (await line.delivery(delivery_id)).status == "failed"


async def test_the_last_words_of_a_sender_are_bounded(autojump_clock: MockClock) -> None:
    """A storage that hangs must not hold up the drain; the attempt is made again then."""
    async with open_line() as line:
        (delivery_id,) = await line.add()
        line.wire.answers["a"] = HANGS
        async with trio.open_nursery() as nursery:
            line.start(nursery)
            await trio.sleep(1)
            line.storage.hold()
            cancelled_at = trio.current_time()
            nursery.cancel_scope.cancel()
        assert trio.current_time() - cancelled_at == 2
        line.storage.resume()  # it was queued, and may still be written: either way is well
        assert len(await line.attempts(delivery_id)) in (0, 1)


async def test_last_words_outlast_a_short_failure_of_storage(autojump_clock: MockClock) -> None:
    async with open_line() as line:
        (delivery_id,) = await line.add()
        line.wire.answers["a"] = HANGS
        async with trio.open_nursery() as nursery:
            line.start(nursery)
            await trio.sleep(1)
            line.storage.fail_with = StorageUnavailable("locked")

            async def unlock() -> None:
                with trio.CancelScope(shield=True):
                    await trio.sleep(1)
                line.storage.fail_with = None

            nursery.start_soon(unlock)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert [one.failure_reason for one in await line.attempts(delivery_id)] == ["interrupted"]


async def test_cancelled_between_tries_to_record(autojump_clock: MockClock) -> None:
    """5.6: its outcome was not recorded, so it is made again under the same number."""
    async with open_line() as line:
        (delivery_id,) = await line.add()

        def fails(_: object) -> Answer:
            line.storage.fail_with = StorageUnavailable("the disk is full")
            return Answer()

        line.wire.answers["a"] = fails
        async with trio.open_nursery() as nursery:
            line.start(nursery)
            await trio.sleep(10)
            nursery.cancel_scope.cancel()
        line.storage.fail_with = None
        line.wire.answers["a"] = Answer()
        assert await line.attempts(delivery_id) == []
        line.another("node-2")
        await line.storage.write(lambda tx: tx.release_lost())
        async with trio.open_nursery() as nursery:
            line.start(nursery)
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
        numbers = [dict(pairs(request.lines))["Primeflow-Attempt"] for _, request in line.wire.sent]
        assert numbers == ["1", "1"]
        assert [one.attempt_number for one in await line.attempts(delivery_id)] == [1]


async def test_a_write_that_has_begun_is_seen_through(autojump_clock: MockClock) -> None:
    """Cancelled while it waits for the commit: the outcome is known, and goes on record."""
    async with open_line() as line:
        (delivery_id,) = await line.add()
        line.wire.answers["a"] = Answer(after=1)
        async with trio.open_nursery() as nursery:
            line.start(nursery)
            await trio.sleep(0.5)
            line.storage.hold()
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.sleep(1)
            line.storage.resume()
        assert (await line.delivery(delivery_id)).status == "succeeded"
        assert len(await line.attempts(delivery_id)) == 1


async def test_nothing_goes_wrong_after_a_commit(autojump_clock: MockClock) -> None:
    """What follows a commit must not raise: storage would only log it."""
    async with open_line(concurrency=8, suspend_after=1) as line, trio.open_nursery() as nursery:
        for host, answer in {"a": ILL, "b": Answer(410), "c": HANGS, "d": Answer(404)}.items():
            line.wire.answers[host] = answer
            await line.add(host, count=20, delays=("1s", "1m"), max_retries=3)
        with capture_logs() as logs:
            line.start(nursery)
            await trio.sleep(4 * 3600)
        assert [entry for entry in logs if "after" in entry["event"]] == []
        events = {entry["event"] for entry in logs}
        assert {"destination_suspended", "delivery_failed"} <= events
        assert {one.status for one in await line.deliveries()} == {"failed"}
        await line.check_claims()
        nursery.cancel_scope.cancel()


async def test_a_destination_that_recovers_is_told_of(autojump_clock: MockClock) -> None:
    async with open_line(suspend_after=1) as line, trio.open_nursery() as nursery:
        await line.add(count=50, delays=("1s",), max_retries=50)
        line.wire.answers["a"] = ILL
        with capture_logs() as logs:
            line.start(nursery)
            await trio.sleep(10)
            line.wire.answers["a"] = Answer()
            await trio.sleep(60)
        events = [entry["event"] for entry in logs if entry["event"].startswith("destination_")]
        assert events.index("destination_suspended") < events.index("destination_recovered")
        assert [e.log_name for e in line.events] == [e for e in events if not e.endswith("probe")]
        assert {event.subject for event in line.events} == {destination("a")}
        assert {one.status for one in await line.deliveries()} == {"succeeded"}
        nursery.cancel_scope.cancel()


async def test_response_body_on_record(autojump_clock: MockClock) -> None:
    """5.5: what was read, whatever the status; none where no answer came."""
    async with open_line(max_response_body=10) as line, trio.open_nursery() as nursery:
        line.wire.answers["a"] = Answer(500, body="zu viel für".encode()[:10])
        line.wire.answers["b"] = Answer(failure="connection_error")
        (answered,), (unanswered,) = await line.add("a"), await line.add("b")
        line.start(nursery)
        await trio.sleep(1)
        (attempt,) = await line.attempts(answered)
        assert (attempt.response_body, attempt.error_message) == ("zu viel f", None)
        (attempt,) = await line.attempts(unanswered)
        assert (attempt.response_body, attempt.status_code) == (None, None)
        assert attempt.error_message == "it was connection_error"
        nursery.cancel_scope.cancel()


def test_the_wire_counts() -> None:
    """The fake itself: what it says of attempts under way is true."""

    async def main() -> None:
        async with open_line() as line, trio.open_nursery() as nursery:
            line.wire.answers["a"] = HANGS
            await line.add(count=3)
            line.start(nursery)
            await trio.sleep(1)
            assert isinstance(line.wire, Wire)
            assert line.wire.under_way == 3
            nursery.cancel_scope.cancel()
        assert line.wire.under_way == 0

    trio.run(main, clock=MockClock(autojump_threshold=0))


async def test_nothing_is_sent_once_the_lease_has_lapsed(autojump_clock: MockClock) -> None:
    """Another node may have taken over what this one holds."""
    async with open_line() as line, trio.open_nursery() as nursery:
        (one,) = await line.submit()
        line.lease.lapsed = True
        line.start(nursery)
        await trio.sleep(60)
        assert (line.wire.sent, await line.attempts(one)) == ([], [])
        line.lease.lapsed = False
        await trio.sleep(2)
        assert [a.attempt_number for a in await line.attempts(one)] == [1]
        nursery.cancel_scope.cancel()


async def test_what_was_claimed_under_a_lost_lease_is_not_sent(autojump_clock: MockClock) -> None:
    """The node has a lease again, but the claim is from before."""
    async with open_line() as line, trio.open_nursery() as nursery:
        (one,) = await line.submit()
        line.lease.node_id = "node-1/2"
        nursery.start_soon(line.senders.run)
        await trio.sleep(60)
        assert (line.wire.sent, await line.attempts(one)) == ([], [])
        assert not line.holdings.holds(one)
        nursery.cancel_scope.cancel()


async def test_an_attempt_that_is_cut_short_is_on_record_and_costs_no_retry(
    autojump_clock: MockClock,
) -> None:
    """5.6: also where it is not a drain that cuts it short, but a lease that has lapsed."""
    async with open_line() as line, trio.open_nursery() as nursery:
        (one,) = await line.add(max_retries=0)
        line.wire.answers["a"] = HANGS
        line.start(nursery)
        await trio.sleep(1)
        line.wire.cut.set()
        line.wire.answers["a"] = Answer(200)
        line.wire.cut = trio.Event()
        await trio.sleep(10)
        first, second = await line.attempts(one)
        assert (first.failure_reason, second.failure_reason) == ("interrupted", None)
        assert first.error_message == (
            "interrupted: this node lost touch with its storage during this attempt"
        )
        assert (await line.delivery(one)).status == "succeeded"
        nursery.cancel_scope.cancel()


async def test_an_attempt_cut_short_that_is_anothers_by_now_is_not_recorded(
    autojump_clock: MockClock,
) -> None:
    async with open_line() as line, trio.open_nursery() as nursery:
        (one,) = await line.add()
        line.wire.answers["a"] = HANGS
        line.start(nursery)
        await trio.sleep(1)
        await line.storage.write(lambda tx: tx.release(NODE, None))
        await line.storage.write(lambda tx: tx.claim("node-2", line.now(), 1, 1, {}))
        line.wire.cut.set()
        await trio.sleep(10)
        assert await line.attempts(one) == []
        assert (await line.delivery(one)).claimed_by == "node-2"
        assert not line.holdings.holds(one)
        nursery.cancel_scope.cancel()


async def test_others_have_their_turn_while_many_are_begun(autojump_clock: MockClock) -> None:
    """Answers are read, and requests taken in, between some attempts and the next."""
    async with open_line(concurrency=1024, window_initial=256) as line:
        line.wire.answers["a"] = Answer(after=1)
        ids = await line.submit(count=200)
        seen: list[int] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(line.senders.run)
            while line.senders.busy < len(ids):
                await trio.lowlevel.checkpoint()
                seen.append(line.senders.busy)
            nursery.cancel_scope.cancel()
        # Of two tasks that are ready one may come last, and then first: two turns of 32.
        assert max(after - before for before, after in pairwise([0, *seen])) <= 64


async def test_more_concurrency_counts_at_once(autojump_clock: MockClock) -> None:
    """8: not when the next attempt ends; less of it is kept to as attempts end."""
    async with open_line(concurrency=2) as line, trio.open_nursery() as nursery:
        hosts = "abcdefghijkl"
        for host in hosts:
            line.wire.answers[host] = Answer(after=20)
            await line.add(host)
        line.start(nursery)
        await trio.sleep(1)
        assert line.wire.under_way == 2
        line.senders.reconfigure(DeliverySettings(concurrency=8))
        await trio.sleep(0.1)
        assert line.wire.under_way == 8
        line.senders.reconfigure(DeliverySettings(concurrency=1))
        await trio.sleep(19.5)
        assert line.wire.under_way == 6
        await trio.sleep(1)
        assert line.wire.under_way == 1
        await trio.sleep(100)
        assert len(line.wire.sent) == len(hosts)
        nursery.cancel_scope.cancel()
