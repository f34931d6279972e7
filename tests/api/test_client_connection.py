"""client_connection.py: what its task does about what was begun while it slept, and what ending it
early leaves behind.

Requests that it sees to from their beginning are in test_front_door.py. Time is Trio's, and jumps
while all is quiet.
"""

import json
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from primeflowd.api.client_connection import LINGERING, WRITING
from primeflowd.api.listener import GRACE
from tests.api.harness import Api
from tests.api.line import BULK, ENDED, Line, ask, introduce, open_line, sized, storage
from tests.api.steps import Steps
from tests.api.test_front_door import PERIOD, answer_from, batches, connected, open_door, post
from tests.api.wire import replies, rest_of
from tests.network import open_files

# It takes a task, to find out that there is no key, and is the last of its connection.
NOBODYS = b"\r\n".join(
    [b"POST /v1/batches HTTP/1.1", b"Host: x", b"Content-Length: 0", b"Connection: close", b"", b""]
)


def thousand() -> bytes:
    return b'{"batches":[%b]}' % b",".join([b"{}"] * 1000)


# A client that does not read, or has gone


async def test_an_answer_that_does_not_fit_goes_on(
    api: Api, clock: MockClock, steps: Steps
) -> None:
    """Once the client reads; then the connection is as before."""
    async with open_line(api) as line:
        line.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 10_000)
        steps.since()
        await line.stream.send_all(post(api, body=thousand(), target=BULK))
        await wait_all_tasks_blocked(0.001)
        # Which waits for room.
        assert steps.since() == 1
        await trio.sleep(WRITING / 2)
        received = b""
        while received[-2:] != b"]}":
            received += await answer_from(line.stream)
        [reply] = replies(received)
        assert len(json.loads(reply.body)["results"]) == 1000
        await introduce(api, line.stream)
        steps.since()
        assert (await ask(line.stream, post(api))).status == 201
        assert steps.since() == 0


async def test_a_client_that_never_reads_is_dropped(api: Api, clock: MockClock) -> None:
    async with open_line(api) as line:
        line.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 10_000)
        await line.stream.send_all(post(api, body=thousand(), target=BULK))
        await trio.sleep(WRITING - PERIOD)
        assert line.house.connections
        await trio.sleep(2.5 * PERIOD)
        assert not line.house.connections


def once(api: Api, body: bytes = ENDED) -> bytes:
    """One with an idempotency key; its batch has a callback."""
    return post(api, sized(body), b"Idempotency-Key: once", body=body)


async def hang_up(line: Line) -> None:
    await line.stream.aclose()
    await trio.sleep(3 * PERIOD)


async def half_close(line: Line) -> None:
    await line.stream.send_eof()
    await trio.sleep(3 * PERIOD)
    assert await rest_of(line.stream) == b""


async def cancel(line: Line) -> None:
    line.serving.cancel()
    await wait_all_tasks_blocked(0.001)


@pytest.mark.parametrize("leave", [hang_up, half_close, cancel])
async def test_what_is_under_way_is_stored_without_its_client(
    api: Api, clock: MockClock, leave: Callable[[Line], Any]
) -> None:
    """5.6, 2.6: with its callback; whoever asks again is told to wait, and then has the answer."""
    async with open_line(api) as line:
        storage(api).hold()
        await line.stream.send_all(once(api))
        await wait_all_tasks_blocked(0.001)
        await leave(line)
        assert not line.house.connections
        assert line.ours.fileno() == -1
        headers = {"Idempotency-Key": "once"}
        early = await api.post("/v1/batches", content=ENDED, headers=headers)
        assert (early.status_code, early.json()["code"]) == (409, "idempotency_in_progress")
        assert await batches(api) == 0
        storage(api).resume()
        assert await batches(api) == 1
        assert len(api.node.schedule.admitted) == 1
        late = await api.post("/v1/batches", content=ENDED, headers=headers)
        assert (late.status_code, late.headers["idempotency-replayed"]) == (201, "true")
    assert await batches(api) == 1


# Draining


async def test_drained_while_a_request_is_under_way(api: Api, clock: MockClock) -> None:
    """8: answered, as the last, and what the client sent behind it is not looked at."""
    async with open_door(api) as (address, shutdown), connected(address) as stream:
        await introduce(api, stream)
        storage(api).hold()
        await stream.send_all(post(api))
        await wait_all_tasks_blocked(0.001)
        shutdown.set()
        await trio.sleep(GRACE / 2)
        await stream.send_all(post(api))
        storage(api).resume()
        started = trio.current_time()
        [reply] = replies(await rest_of(stream))
        assert (reply.status, reply.headers["connection"]) == (201, "close")
        assert trio.current_time() - started <= LINGERING + 2 * PERIOD
    assert await batches(api) == 1


async def test_a_drain_cuts_off_what_has_no_end(api: Api, clock: MockClock) -> None:
    """8: and a storage that wakes up later finds nobody to answer."""
    before = open_files()
    async with AsyncExitStack() as stack:
        async with open_door(api) as (address, shutdown):
            stream = await stack.enter_async_context(connected(address))
            await introduce(api, stream)
            storage(api).hold()
            await stream.send_all(post(api))
            await wait_all_tasks_blocked(0.001)
            started = trio.current_time()
            shutdown.set()
        assert GRACE <= trio.current_time() - started <= GRACE + 0.5
        assert await rest_of(stream) == b""
    assert open_files() == before
    storage(api).resume()
    assert await batches(api) == 1


# Cancellation


class CancelAtStep(trio.abc.Instrument):
    """Cancels `scope` after the n-th step by which a connection moves on, whoever takes it."""

    def __init__(self, scope: trio.CancelScope, step: int) -> None:
        self._scope = scope
        self._left = step

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task.name.endswith(("ClientConnection.run", "ReadySet.run")):
            self._left -= 1
            if self._left == 0:
                self._scope.cancel()


async def test_cancelled_at_every_step(api: Api, clock: MockClock) -> None:
    """Wherever it is: the socket is closed, what was asked for is done or not, no key is taken for
    that of a request that is still running, and nobody is answered twice."""
    before = open_files()
    step, cancelled = 0, True
    while cancelled:
        step += 1
        key = b"Idempotency-Key: %d" % step
        async with open_line(api) as line:
            line.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 10_000)
            canceller = CancelAtStep(line.serving, step)
            trio.lowlevel.add_instrument(canceller)
            bulk, received = thousand(), b""
            asked = [
                [post(api, sized(bulk), key, body=bulk, target=BULK)],
                [post(api, sized(b"{}"), key)],
                [post(api)[:-1], b"}"],
                [NOBODYS],
            ]
            try:
                for pieces in asked:
                    for piece in pieces:
                        await line.stream.send_all(piece)
                        await wait_all_tasks_blocked(0.001)
                received = await rest_of(line.stream)
            except trio.BrokenResourceError:
                pass
            trio.lowlevel.remove_instrument(canceller)
            cancelled = line.serving.cancel_called
            if not cancelled:
                assert [reply.status for reply in replies(received)] == [200, 201, 201, 401]
        headers = {"Idempotency-Key": str(step)}
        answers = [
            await api.post("/v1/batches/bulk", content=bulk, headers=headers),
            await api.post("/v1/batches", content=b"{}", headers=headers),
        ]
        assert [answer.status_code for answer in answers] == [200, 201]
        assert open_files() == before
    assert step > 5
