"""conversation.py: requests by which batches come in, begun and answered while the task of their
connection sleeps, and whose move it is.

They are told from the others by the steps of that task: none. Time is Trio's, and jumps while all
is quiet; a key is known for a second, so that each test begins by making it known.
"""

import dataclasses
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import msgspec
import pytest
import structlog.testing
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from primeflowd.api.conversation import CROWDED, SHORT
from primeflowd.config import Api as ApiSettings
from primeflowd.config import Config, StorageSettings, TracingSettings
from primeflowd.errors import StorageUnavailable
from primeflowd.ready_set import MOST_HELD
from primeflowd.tracing import Tracing
from tests.api.harness import Api, open_api
from tests.api.line import BULK, ENDED, ask, introduce, open_line, sized, storage
from tests.api.steps import Steps
from tests.api.test_front_door import GET, PERIOD, answer_from, batches, connected, open_door, post
from tests.api.wire import replies, rest_of
from tests.spans import Sink

LAST = GET[:-2] + b"Connection: close\r\n\r\n"
ID = re.compile(rb"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
DATE = re.compile(rb"date: [^\r]*\r\n")


def planned(plan: int | str) -> bytes:
    return b'{"plan_id":"%b"}' % str(plan).encode()


@asynccontextmanager
async def known(api: Api, **options: Any) -> AsyncIterator[trio.SocketStream]:
    """A connection whose key is known, and whose task sleeps."""
    async with open_door(api, **options) as (address, _), connected(address) as stream:
        await introduce(api, stream)
        with trio.fail_after(200):
            yield stream


# What takes no task, and what does


async def test_a_request_that_is_all_here_wakes_no_task(
    api: Api, clock: MockClock, steps: Steps
) -> None:
    """From the second request on; whatever becomes of it, and however its body is framed."""
    bulk = b'{"batches":[{},{}]}'
    once = b"Idempotency-Key: once"
    chunks = post(api, b"Transfer-Encoding: chunked", body=b"1\r\n{\r\n1\r\n}\r\n0\r\n\r\n")
    async with known(api) as stream:
        assert steps.since() > 0
        statuses = [
            (await ask(stream, sent)).status
            for sent in [
                post(api),
                post(api),
                post(api, body=b"{"),
                post(api, sized(b"{}"), once),
                post(api, sized(b"{}"), once),
                post(api, sized(bulk), body=bulk, target=BULK),
                chunks,
            ]
        ]
        assert statuses == [201, 201, 400, 201, 201, 200, 201]
        assert steps.since() == 0


async def test_a_head_in_pieces_wakes_no_task(api: Api, clock: MockClock, steps: Steps) -> None:
    """The last of which brings all that was missing."""
    sent = post(api)
    async with known(api) as stream:
        steps.since()
        await stream.send_all(sent[:50])
        await wait_all_tasks_blocked(0.001)
        assert (await ask(stream, sent[50:])).status == 201
        assert steps.since() == 0


@pytest.mark.parametrize(
    "pieces",
    [
        lambda api: [post(api)[:-1], b"}"],
        lambda api: [post(api, b"Transfer-Encoding: chunked", body=b"2\r\n{}\r\n"), b"0\r\n\r\n"],
        lambda api: [post(api, target=b"/v1/batches?x")],
        lambda api: [GET],
        lambda api: [post(api).replace(api.key.encode(), b"pfk_" + b"a" * 40)],
        lambda api: [post(api).replace(b"X-Reevit-Key", b"X-Key")],
    ],
    ids=["body", "chunks", "spelling", "route", "unknown-key", "no-key"],
)
async def test_what_takes_waiting_wakes_the_task(
    api: Api, clock: MockClock, steps: Steps, pieces: Callable[[Api], list[bytes]]
) -> None:
    """And is answered all the same; then the task sleeps again."""
    async with known(api) as stream:
        steps.since()
        *first, last = pieces(api)
        for piece in first:
            await stream.send_all(piece)
            await wait_all_tasks_blocked(0.001)
        assert (await ask(stream, last)).status in (200, 201, 401)
        assert steps.since() > 0
        await wait_all_tasks_blocked(0.001)
        steps.since()
        assert (await ask(stream, post(api))).status == 201
        assert steps.since() == 0


async def test_a_key_is_looked_up_by_the_task(api: Api, clock: MockClock, steps: Steps) -> None:
    """2.1: once a second, on a connection that was answered without it before."""
    async with known(api) as stream:
        for expected in (False, True, False):
            if expected:
                await trio.sleep(1)
            await wait_all_tasks_blocked(0.001)
            steps.since()
            assert (await ask(stream, post(api))).status == 201
            assert (steps.since() > 0) is expected


async def test_a_request_that_is_traced_takes_a_task(
    api: Api, clock: MockClock, steps: Steps
) -> None:
    sink = Sink()
    tracing = Tracing(TracingSettings(), sink, api.clock)
    api.serve(dataclasses.replace(api.services(), tracing=tracing))
    async with known(api) as stream:
        steps.since()
        assert (await ask(stream, post(api))).status == 201
        assert steps.since() > 0
    assert len(sink.spans) == 2


# Answers


class Case(NamedTuple):
    """A request, the status of its answer, and what makes it so."""

    status: int
    fields: tuple[bytes, ...] = ()
    body: bytes = b"{}"
    prepare: Callable[[Api], object] = lambda _: None
    settings: ApiSettings = ApiSettings()
    backlog: int = 10_000


CASES = {
    "accepted": Case(201, settings=ApiSettings(rate_limit=0.1, rate_burst=5)),
    "no-json": Case(400, body=b"{ "),
    "unknown-field": Case(400, body=b'{"x":1}'),
    "two-idempotency-keys": Case(400, fields=(b"Idempotency-Key: a", b"Idempotency-Key: b")),
    "other-org": Case(403, fields=(b"X-Org-Id: other",)),
    "too-large": Case(413, body=b" " * 1025, settings=ApiSettings(max_body=1024)),
    "rate": Case(429, settings=ApiSettings(rate_limit=0.1, rate_burst=1)),
    "draining": Case(503, prepare=lambda api: api.node.intake.close()),
    "overloaded": Case(503, prepare=lambda api: storage(api).hold(), backlog=0),
    "broken": Case(
        503,
        prepare=lambda api: setattr(storage(api), "fail_with", StorageUnavailable("disk")),
    ),
}


class Said(NamedTuple):
    """An answer, without what no two have in common, and what was counted and logged for it."""

    answer: bytes
    counted: dict[Any, int]
    logged: list[tuple[object, ...]]


async def said_to(case: Case, steps: Steps, *, in_pieces: bool) -> Said:
    config = msgspec.structs.replace(
        Config(), api=case.settings, storage=StorageSettings(max_backlog=case.backlog)
    )
    async with open_api(config) as api, known(api) as stream:
        api.clock.instant += 1
        case.prepare(api)
        steps.since()
        counted = dict(api.requests.counts)
        fields = (sized(case.body), b"X-Request-Id: this", *case.fields)
        sent = post(api, *fields, body=case.body)
        with structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]) as logged:
            if in_pieces:
                await stream.send_all(sent[:-1])
                await wait_all_tasks_blocked(0.001)
                await stream.send_all(sent[-1:])
                await wait_all_tasks_blocked(0.001)
            else:
                await stream.send_all(sent)
            received = await answer_from(stream)
        assert (steps.since() > 0) is in_pieces
        after = {key: n - counted.get(key, 0) for key, n in api.requests.counts.items()}
        return Said(
            ID.sub(b"ID", DATE.sub(b"", received)),
            {key: n for key, n in after.items() if n},
            sorted((each["event"], each.get("status"), each["request_id"]) for each in logged),
        )


@pytest.mark.parametrize("name", CASES)
async def test_an_answer_is_the_same_either_way(clock: MockClock, steps: Steps, name: str) -> None:
    """2.5: byte for byte, and counted and logged as one that a task answers."""
    case = CASES[name]
    by_task = await said_to(case, steps, in_pieces=True)
    said = await said_to(case, steps, in_pieces=False)
    assert said == by_task
    assert said.answer.startswith(b"HTTP/1.1 %d " % case.status)
    assert list(said.counted.values()) == [1]
    assert ("answered", case.status, "this") in said.logged


async def test_a_limit_counts_what_wakes_no_task(clock: MockClock, steps: Steps) -> None:
    """2.11: also where the head is known, and who sent it."""
    config = msgspec.structs.replace(Config(), api=ApiSettings(rate_limit=0.1, rate_burst=4))
    async with open_api(config) as api, known(api) as stream:
        steps.since()
        found = [await ask(stream, post(api)) for _ in range(4)]
        assert steps.since() == 0
    assert [reply.status for reply in found] == [201, 201, 201, 429]
    assert [reply.headers["x-ratelimit-remaining"] for reply in found] == ["2", "1", "0", "0"]
    assert int(found[3].headers["retry-after"]) >= 1


async def test_no_line_of_the_log_bears_the_id_of_another_request(
    api: Api, clock: MockClock, steps: Steps
) -> None:
    """2.7: of one that a task answered, of one that none did, and of what is no request."""
    named = [post(api, b"Content-Length: 2", b"X-Request-Id: " + name) for name in (b"a", b"b")]
    with structlog.testing.capture_logs([structlog.contextvars.merge_contextvars]) as logged:
        async with open_door(api) as (address, _), connected(address) as stream:
            assert (await ask(stream, named[0])).status == 201
            await wait_all_tasks_blocked(0.001)
            steps.since()
            storage(api).fail_with = StorageUnavailable("disk")
            assert (await ask(stream, named[1])).status == 503
            assert steps.since() == 0
            await stream.send_all(b"\x00")
            [malformed] = replies(await rest_of(stream))
    found = [(each["event"], each.get("request_id")) for each in logged]
    assert found == [
        ("answered", "a"),
        ("request_failed", "b"),
        ("answered", "b"),
        ("malformed_request", malformed.headers["x-request-id"]),
    ]


async def test_requests_that_come_together_are_answered_in_turn(api: Api, clock: MockClock) -> None:
    """RFC 9112, 9.3.2: each once."""
    bodies = [planned(number) for number in range(20)]
    async with known(api) as stream:
        await stream.send_all(b"".join(post(api, body=body) for body in bodies) + LAST)
        *made, _ = replies(await rest_of(stream))
    assert [json.loads(reply.body)["plan_id"] for reply in made] == [str(n) for n in range(20)]
    assert await batches(api) == 20


async def test_what_comes_while_a_request_is_under_way_has_its_turn(
    api: Api, clock: MockClock, steps: Steps
) -> None:
    """Nobody is told of it again: it is in the socket, or has been read, when the answer goes."""
    async with known(api) as stream:
        storage(api).hold()
        await stream.send_all(post(api, body=planned(0)))
        await wait_all_tasks_blocked(0.001)
        steps.since()
        for number in (1, 2):
            await stream.send_all(post(api, body=planned(number)))
            await wait_all_tasks_blocked(0.001)
        storage(api).resume()
        await wait_all_tasks_blocked(0.001)
        made = replies(await answer_from(stream))
        assert [json.loads(reply.body)["plan_id"] for reply in made] == ["0", "1", "2"]
        assert (await ask(stream, post(api))).status == 201


async def test_what_is_malformed_comes_after_what_is_not(api: Api, clock: MockClock) -> None:
    """2.5: whoever was in order has its answer first, whole."""
    async with known(api) as stream:
        storage(api).hold()
        await stream.send_all(post(api) + b"\x00")
        await wait_all_tasks_blocked(0.001)
        storage(api).resume()
        made, refused = replies(await rest_of(stream))
    assert (made.status, refused.status) == (201, 400)
    assert ("connection" in made.headers, refused.headers["connection"]) == (False, "close")


# Others, while a request waits for its commit


async def delay(stream: trio.SocketStream) -> float:
    """Seconds until a request that nothing keeps is answered."""
    asked = trio.current_time()
    assert (await ask(stream, GET)).status == 200
    return trio.current_time() - asked


@pytest.mark.parametrize("length", [len(ENDED), SHORT, SHORT + 1])
async def test_others_are_left_alone_during_the_commit_of_a_short_request(
    api: Api, clock: MockClock, steps: Steps, length: int
) -> None:
    """For a moment: storage may hang. And not at all during that of a long one."""
    body = ENDED.ljust(length)
    async with open_door(api) as (address, _), connected(address) as one, connected(address) as two:
        await introduce(api, one)
        # As long as the one before: it is read in one go.
        await ask(one, post(api, sized(body), body=body))
        await wait_all_tasks_blocked(0.001)
        steps.since()
        storage(api).hold()
        await one.send_all(post(api, sized(body), body=body))
        await wait_all_tasks_blocked(0.001)
        assert steps.since() == 0
        waited = await delay(two)
        assert (0.5 if length <= SHORT else 0) * MOST_HELD <= waited <= MOST_HELD
        assert (waited == 0) == (length > SHORT)
        storage(api).resume()
        assert replies(await answer_from(one))[0].status == 201
        await wait_all_tasks_blocked(0.001)
        assert await delay(two) == 0


async def test_a_long_request_begun_by_the_answer_to_a_short_one(
    api: Api, clock: MockClock
) -> None:
    """Each lets go of what itself has held."""
    body = ENDED.ljust(SHORT + 1)
    # Long enough for the next one to be read in one go.
    short = ENDED.ljust(SHORT // 2)
    async with open_door(api) as (address, _), connected(address) as one, connected(address) as two:
        await introduce(api, one)
        storage(api).hold()
        await one.send_all(post(api, sized(short), body=short))
        await wait_all_tasks_blocked(0.001)
        await one.send_all(post(api, sized(body), body=body))
        # By now it is known that there is more to read.
        await delay(two)
        await wait_all_tasks_blocked(0.001)
        storage(api).resume()
        received = b""
        while received.count(b"HTTP/1.1 201") < 2:
            received += await answer_from(one)
        storage(api).hold()
        await one.send_all(post(api, sized(body), body=body))
        await wait_all_tasks_blocked(0.001)
        assert await delay(two) == 0
        storage(api).resume()


# Deadlines


async def test_whoever_half_closes_is_answered_without_a_task(api: Api, clock: MockClock) -> None:
    """As one whose request a task answers: if that takes no longer than a second."""
    async with open_line(api) as line:
        storage(api).hold()
        await line.stream.send_all(post(api))
        await line.stream.send_eof()
        await trio.sleep(1.5 * PERIOD)
        storage(api).resume()
        [reply] = replies(await rest_of(line.stream))
        assert reply.status == 201


async def test_whoever_half_closes_has_that_second_for_each_request(
    api: Api, clock: MockClock
) -> None:
    """Also for one that had come together with the one before."""
    async with open_line(api) as line:
        storage(api).hold()
        await line.stream.send_all(post(api) * 2)
        await line.stream.send_eof()
        for seconds in (1.5, 1):
            await trio.sleep(seconds * PERIOD)
            storage(api).resume()
            storage(api).hold()
        assert [reply.status for reply in replies(await rest_of(line.stream))] == [201, 201]


async def test_no_room_for_others_is_no_reason_to_drop_a_request(
    api: Api, clock: MockClock
) -> None:
    """Only who says nothing makes room; whoever was answered is one of those again."""
    async with open_line(api) as line:
        storage(api).hold()
        await line.stream.send_all(post(api))
        await wait_all_tasks_blocked(0.001)
        line.house.crowded = True
        await trio.sleep(100)
        storage(api).resume()
        assert replies(await answer_from(line.stream))[0].status == 201
        answered = trio.current_time()
        assert await rest_of(line.stream) == b""
        assert trio.current_time() - answered <= CROWDED + 2 * PERIOD


@pytest.mark.parametrize("sent", [b"", b"GET /hea"])
async def test_the_next_request_has_a_deadline(api: Api, clock: MockClock, sent: bytes) -> None:
    """Whether nothing of it has come behind one that took no task, or not all of its head."""
    async with known(api) as stream:
        started = trio.current_time()
        await stream.send_all(post(api) + sent)
        [reply] = replies(await rest_of(stream))
        assert reply.status == 201
        assert 60 <= trio.current_time() - started <= 60 + 2 * PERIOD


def brim(api: Api) -> bytes:
    """A request and the beginning of another's head: as much as is read at once, to the byte."""
    request = post(api) + b"GET / HTTP/1.1\r\nA: "
    wanted = len(b"null") + 16_384
    return request + b"b" * (wanted - len(request))


@pytest.mark.parametrize("draining", [False, True])
async def test_a_head_of_which_there_may_be_more_has_a_deadline(
    api: Api, clock: MockClock, draining: bool
) -> None:
    """There was none: the task, woken to read on, is not told of a request, but waits for one. And
    8: a drain does not wait for it."""
    async with open_line(api) as line:
        started = trio.current_time()
        await line.stream.send_all(brim(api))
        [reply] = replies(await answer_from(line.stream))
        assert reply.status == 201
        await wait_all_tasks_blocked(0.001)
        line.house.draining = draining
        assert await rest_of(line.stream) == b""
        waited = trio.current_time() - started
        assert waited <= 2 * PERIOD if draining else 60 <= waited <= 60 + 2 * PERIOD


class AfterReading(trio.abc.Instrument):
    """Does something between a step that reads what has come, and any of another task."""

    def __init__(self, then: Callable[[], None]) -> None:
        self._then = then

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task.name.endswith("ReadySet.run"):
            self._then()


async def test_what_has_been_read_is_not_dropped_by_a_drain(api: Api, clock: MockClock) -> None:
    """8: nothing of it is left in the socket, and the task that answers it has not run yet."""
    _, another = await api.make_key()
    async with open_line(api) as line:
        look = AfterReading(lambda: line.connection.watch(trio.current_time()))
        # Storage must be asked about the key.
        await line.stream.send_all(post(api).replace(api.key.encode(), another.encode()))
        line.house.draining = True
        trio.lowlevel.add_instrument(look)
        [reply] = replies(await rest_of(line.stream))
        trio.lowlevel.remove_instrument(look)
        assert (reply.status, reply.headers["connection"]) == (201, "close")
