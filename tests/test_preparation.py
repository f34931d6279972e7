"""preparation.py: what is put together for an attempt, and what becomes of one without it."""

import json

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from primeflowd import __version__
from primeflowd.destination_rules import Rules
from tests.network import pairs
from tests.sending import BODY, ILL, NODE, destination, open_line

# Everything here holds for attempts in tasks and for those without one.
pytestmark = pytest.mark.usefixtures("keeps")


async def test_headers(autojump_clock: MockClock) -> None:
    """6.4: every attempt says which one it is; the signers' headers come on top."""
    async with open_line() as line, trio.open_nursery() as nursery:
        secret_id = await line.secret()
        (delivery_id,) = await line.add(delays=("1s",), max_retries=1)
        line.wire.answers["a"] = ILL
        line.start(nursery)
        await trio.sleep(2)
        attempts = await line.attempts(delivery_id)
        for number, (attempt, (_, request)) in enumerate(
            zip(attempts, line.wire.sent, strict=True), start=1
        ):
            assert pairs(request.lines) == (
                ("Content-Type", "application/json"),
                ("User-Agent", f"primeflowd/{__version__}"),
                ("Primeflow-Delivery-Id", delivery_id),
                ("Primeflow-Attempt", str(number)),
                ("Primeflow-Request-Id", attempt.id),
                ("X-Seal", f"{attempt.id} {len(BODY)} 1"),
            )
            assert request.body == BODY
            assert request.target.destination == destination("a")
            assert attempt.signing_secret_id == secret_id
        nursery.cancel_scope.cancel()


async def test_what_an_attempt_says_of_its_trace(autojump_clock: MockClock) -> None:
    """After all other headers."""
    async with open_line() as line:
        line.trace_headers = lambda delivery, attempt_id: (("T", f"{delivery.id} {attempt_id}"),)
        line.another("node-2")
        await line.secret()
        async with trio.open_nursery() as nursery:
            line.start(nursery)
            # The first has to wait for the org's secrets.
            for number in range(2):
                (delivery_id,) = await line.submit()
                await trio.sleep(0.1)
                [attempt] = await line.attempts(delivery_id)
                _, request = line.wire.sent[number]
                assert pairs(request.lines)[-1] == ("T", f"{delivery_id} {attempt.id}")
            nursery.cancel_scope.cancel()


async def test_a_failing_signer_makes_a_failed_attempt(autojump_clock: MockClock) -> None:
    """`internal_error`, naming the signer and no secret; nothing is sent, the window stays."""
    async with open_line(window_initial=3, suspend_after=1) as line, trio.open_nursery() as nursery:
        await line.secret()
        line.seal.fails = True
        ids = await line.add(count=30, delays=("1h",), max_retries=1)
        with capture_logs() as logs:
            line.start(nursery)
            await trio.sleep(1)
        assert line.wire.sent == []
        for delivery_id in ids:
            delivery = await line.delivery(delivery_id)
            (attempt,) = await line.attempts(delivery_id)
            assert delivery.status == "pending"
            assert attempt.failure_reason == delivery.failure_reason == "internal_error"
            assert attempt.error_message is not None
            assert attempt.error_message.startswith("seal: RuntimeError")
            assert (attempt.status_code, attempt.response_body) == (None, None)
        assert {entry["signer"] for entry in logs if entry["event"] == "signer_failed"} == {"seal"}
        assert "whsec_" not in repr(logs)
        assert line.destinations.statistics()[destination("a")].window == 3
        nursery.cancel_scope.cancel()


async def test_an_attempt_is_signed_once(autojump_clock: MockClock) -> None:
    """Whether its connection is there or has to be made."""
    async with open_line() as line, trio.open_nursery() as nursery:
        await line.secret()
        line.start(nursery)
        for _ in range(3):
            await line.submit(count=5)
            await trio.sleep(0.1)
        assert line.seal.asked == len(line.wire.sent) == 15
        nursery.cancel_scope.cancel()


async def test_a_header_of_an_operator_that_cannot_be_sent(autojump_clock: MockClock) -> None:
    """Accepted by an older release: it must not keep the daemon from running."""
    async with open_line() as line, trio.open_nursery() as nursery:
        secret_id = await line.secret()
        line.start(nursery)
        await line.submit("b")
        await trio.sleep(0.1)
        line.destinations.govern({destination("a"): Rules(headers=(("X-A", "1\r\nX-B: 1"),))})
        for number in range(2):
            (bad,) = await line.submit("a")
            await line.submit("b")
            await trio.sleep(0.1)
            (attempt,) = await line.attempts(bad)
            assert attempt.failure_reason == "internal_error"
            assert attempt.signing_secret_id == secret_id
            assert attempt.error_message == "the value of the header X-A is not printable ASCII"
            assert line.wire.hosts() == ["b"] * (2 + number)
        nursery.cancel_scope.cancel()


async def test_a_url_that_is_no_longer_allowed_fails_alone(autojump_clock: MockClock) -> None:
    """Accepted by an older release: it must not keep the daemon from running."""
    async with open_line() as line, trio.open_nursery() as nursery:
        (bad,) = await line.add(callback_url="gopher://a/hook", destination="gopher://a:70")
        (good,) = await line.add()
        line.start(nursery)
        await trio.sleep(1)
        delivery = await line.delivery(bad)
        assert (delivery.status, delivery.failure_reason) == ("failed", "url_not_allowed")
        assert (await line.delivery(good)).status == "succeeded"
        nursery.cancel_scope.cancel()


async def test_the_body_comes_from_memory_or_else_from_storage(autojump_clock: MockClock) -> None:
    """4.5: the same bytes either way, on the first attempt and on the next ones."""
    body = json.dumps({"event": "batch.succeeded", "output": "ü" * 1000}).encode()
    async with open_line() as line, trio.open_nursery() as nursery:
        line.wire.answers["a"] = ILL
        line.start(nursery)
        await trio.sleep(1)
        (submitted,) = await line.submit(body=body)
        await trio.sleep(0.1)
        # The org's secrets are at hand by now, so that a payload is all that may be missing.
        (claimed,) = await line.add(payload=body, claimed_by=NODE)
        line.holdings.admit([(await line.delivery(claimed), None)])
        await trio.sleep(3600)
        assert {request.body for _, request in line.wire.sent} == {body}
        for delivery_id in (submitted, claimed):
            assert len(await line.attempts(delivery_id)) == 2
        nursery.cancel_scope.cancel()
