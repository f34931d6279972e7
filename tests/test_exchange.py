"""exchange.py: attempts without a task, over connections that are kept, or were."""

from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from primeflowd.durations import Duration
from primeflowd.exchange import CutShort, Unread
from primeflowd.model import Outcome
from primeflowd.testing.receiver import Answer, open_receiver
from tests.network import (
    Authority,
    begin,
    open_files,
    request,
    transport,
)


async def test_nothing_begins_without_a_kept_connection(nursery: trio.Nursery) -> None:
    async with open_receiver(nursery) as receiver:
        transport_ = transport()
        nursery.start_soon(transport_.run)
        await trio.testing.wait_all_tasks_blocked()
        exchange, told = begin(transport_, request(receiver.url()))
        assert (exchange, told.results) == (None, [])
        assert transport_.statistics().open == 0


@pytest.mark.parametrize("tls", [False, True])
async def test_begun_over_a_kept_connection(
    nursery: trio.Nursery, tmp_path: Path, tls: bool
) -> None:
    """The same outcomes as in a task; large bodies both ways; the connection is kept on."""
    authority = Authority(tmp_path)
    answer = Answer(body_size=500_000)
    context = authority.server("127.0.0.1") if tls else None
    async with open_receiver(nursery, answer, tls=context) as receiver:
        transport_ = transport(ca_file=authority.ca_file, max_response_body=1_000_000)
        nursery.start_soon(transport_.run)
        await transport_.send(request(receiver.url()))
        for size in (1, 1_000, 5_000_000, 2):
            body = bytes((size % 251,)) * size
            exchange, told = begin(transport_, request(receiver.url(), body))
            assert exchange is not None
            assert transport_.statistics().idle == 0
            outcome = await told.result()
            assert isinstance(outcome, Outcome)
            assert (outcome.status_code, outcome.body) == (200, bytes(500_000))
            assert outcome.started_at == exchange.started_at <= outcome.ended_at
            assert receiver.requests[-1].body == body
            assert transport_.statistics().idle == 1
        assert receiver.connections == 1
        await transport_.aclose()


async def test_a_timeout_of_its_own_is_cut_short_too(nursery: trio.Nursery) -> None:
    async with open_receiver(nursery, [Answer(), Answer(hang=True)]) as receiver:
        transport_ = transport()
        nursery.start_soon(transport_.run)
        await transport_.send(request(receiver.url()))
        ours = msgspec.structs.replace(request(receiver.url()), timeout=Duration("9s"))
        _, told = begin(transport_, ours)
        await trio.sleep(0.05)
        transport_.cut_short()
        assert isinstance(await told.result(), CutShort)
        assert transport_.statistics().open == 0


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("size", [2, 5_000_000])
async def test_a_begun_attempt_that_was_not_read_goes_on_by_send(
    nursery: trio.Nursery, reset: bool, size: int
) -> None:
    """On a new connection, as the same attempt: its time goes on."""
    script = [Answer(), Answer(cut=0, reset=reset), Answer(body=b"second")]
    async with open_receiver(nursery, script) as receiver:
        transport_ = transport(timeout="30s")
        nursery.start_soon(transport_.run)
        await transport_.send(request(receiver.url()))
        sent = request(receiver.url(), bytes(size))
        exchange, told = begin(transport_, sent)
        assert exchange is not None
        unread = await told.result()
        assert unread == Unread(exchange.started_at, exchange.began + 30)
        outcome = await transport_.send(sent, unread=unread)
        assert (outcome.body, outcome.started_at) == (b"second", exchange.started_at)
        assert receiver.connections == 2
        await transport_.aclose()


async def test_a_begun_attempt_whose_answer_breaks_off(nursery: trio.Nursery) -> None:
    """5.3: bytes of an answer prove that it was read."""
    async with open_receiver(nursery, [Answer(), Answer(cut=10)]) as receiver:
        transport_ = transport()
        nursery.start_soon(transport_.run)
        await transport_.send(request(receiver.url()))
        _, told = begin(transport_, request(receiver.url()))
        outcome = await told.result()
        assert isinstance(outcome, Outcome)
        assert outcome.failure == "response_error"
        assert transport_.statistics().open == 0


@pytest.mark.parametrize("size", [2, 5_000_000])
async def test_a_begun_attempt_is_cut_short(nursery: trio.Nursery, size: int) -> None:
    async with open_receiver(nursery, [Answer(), Answer(hang=True)]) as receiver:
        transport_ = transport()
        nursery.start_soon(transport_.run)
        await transport_.send(request(receiver.url()))
        _, told = begin(transport_, request(receiver.url(), bytes(size)))
        transport_.cut_short()
        assert isinstance(await told.result(), CutShort)
        assert transport_.statistics().open == 0


@pytest.mark.parametrize("size", [2, 5_000_000])
async def test_a_begun_attempt_is_abandoned(nursery: trio.Nursery, size: int) -> None:
    """Nobody is told, and nothing stays open."""
    before = open_files()
    async with open_receiver(nursery, [Answer(), Answer(delay=0.05)]) as receiver:
        transport_ = transport()
        async with trio.open_nursery() as running:
            running.start_soon(transport_.run)
            await transport_.send(request(receiver.url()))
            exchange, told = begin(transport_, request(receiver.url(), bytes(size)))
            assert exchange is not None
            await trio.testing.wait_all_tasks_blocked()
            transport_.abandon(exchange)
            assert transport_.statistics().open == 0
            await trio.sleep(0.1)
            assert told.results == []
            running.cancel_scope.cancel()
        await transport_.aclose()
    assert open_files() == before


async def test_a_request_that_cannot_be_sent_is_not_begun(nursery: trio.Nursery) -> None:
    """5.3: an error of our own, which `send` tells of; the connection is kept."""
    async with open_receiver(nursery) as receiver:
        transport_ = transport()
        nursery.start_soon(transport_.run)
        await transport_.send(request(receiver.url()))
        odd = msgspec.structs.replace(request(receiver.url()), lines="X-Odd: \u2028\r\n")
        exchange, told = begin(transport_, odd)
        assert (exchange, told.results) == (None, [])
        assert transport_.statistics().idle == 1
        assert (await transport_.send(odd)).failure == "internal_error"
        assert len(receiver.requests) == 1
        await transport_.aclose()
