"""transport.py: attempts against real receivers that behave in every way there is."""

import gzip
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from primeflowd.clock import SystemClock, TrioClock
from primeflowd.config import Egress
from primeflowd.connector import SocketAddress
from primeflowd.durations import Duration
from primeflowd.exchange import CutShort
from primeflowd.instants import SECOND, Micros
from primeflowd.model import Outcome
from primeflowd.request_head import Request
from primeflowd.testing.receiver import Answer, Receiver, open_receiver
from primeflowd.transport import Loaded, Transport
from tests.network import (
    Authority,
    FixedResolver,
    closed_port,
    loaded,
    open_files,
    request,
    resident_memory,
    send,
    settings,
    transport,
)


async def attempt(receiver: Receiver, answer: Answer, **options: object) -> Outcome:
    """The outcome of one attempt that meets `answer`; nothing may stay open but what is idle."""
    receiver.script = answer
    transport_ = transport(**options)
    outcome = await send(transport_, request(receiver.url("/hook")))
    statistics = transport_.statistics()
    assert statistics.open == statistics.idle
    await transport_.aclose()
    assert transport_.statistics().open == 0
    return outcome


# Answers


async def test_success(nursery: trio.Nursery) -> None:
    """5.2: the outcome has everything of the answer; the receiver everything of the request."""
    async with open_receiver(nursery) as receiver:
        receiver.script = Answer(status=201, headers=(("X-Seen", "é"), ("X-SEEN", "2")), body=b"ok")
        transport_ = transport()
        headers = (("Content-Type", "application/json"), ("webhook-id", "1"))
        sent = request(receiver.url("/a/../b?c=%20"), b'{"x":1}', headers)
        outcome = await send(transport_, sent)
        assert outcome.status_code == 201
        assert tuple(outcome.headers) == (
            *(("x-seen", "é"), ("x-seen", "2")),
            ("content-length", "2"),
        )
        assert outcome.body == b"ok"
        assert outcome.failure is None
        assert outcome.error_message is None
        assert outcome.address == f"127.0.0.1:{receiver.port}"
        assert 0 <= outcome.ended_at - outcome.started_at < 5 * SECOND
        (received,) = receiver.requests
        assert (received.method, received.target) == ("POST", "/a/../b?c=%20")
        assert received.body == b'{"x":1}'
        assert received.headers == (
            ("Host", f"127.0.0.1:{receiver.port}"),
            ("Content-Length", "7"),
            *headers,
        )
        await transport_.aclose()


@pytest.mark.parametrize(
    ("answer", "status", "body"),
    [
        (Answer(status=204), 204, b""),
        (Answer(status=304), 304, b""),
        (Answer(status=500, body=b"no"), 500, b"no"),
        (Answer(status=429, headers=(("Retry-After", "7"),)), 429, b""),
        (Answer(chunked=True, body=b"chunked"), 200, b"chunked"),
        (Answer(interim=5, body=b"late"), 200, b"late"),
        (Answer(close=True, body=b"bye"), 200, b"bye"),
        (Answer(raw=b"HTTP/1.1 200 OK\r\n\r\nuntil close"), 200, b"until close"),
        (Answer(raw=b"HTTP/1.0 200 OK\r\n\r\nold"), 200, b"old"),
        (Answer(raw=b"HTTP/1.1 200 OK\n\nlone line feeds"), 200, b"lone line feeds"),
        (Answer(body=b"slow", delay=0.05), 200, b"slow"),
        (Answer(body=b"drip", drip=0.001), 200, b"drip"),
    ],
)
async def test_answers(nursery: trio.Nursery, answer: Answer, status: int, body: bytes) -> None:
    """5.2: whatever a receiver answers in HTTP is an answer, not a failure of the exchange."""
    async with open_receiver(nursery) as receiver:
        outcome = await attempt(receiver, answer)
        assert (outcome.status_code, outcome.body, outcome.failure) == (status, body, None)


async def test_redirects_are_not_followed(nursery: trio.Nursery) -> None:
    """5.2: a 3xx is the answer; nobody goes where it points."""
    async with open_receiver(nursery) as elsewhere, open_receiver(nursery) as receiver:
        to = Answer(status=307, headers=(("Location", elsewhere.url("/secret")),))
        outcome = await attempt(receiver, to)
        assert outcome.status_code == 307
        assert outcome.header("location") == elsewhere.url("/secret")
        assert elsewhere.connections == 0


async def test_nothing_is_decompressed(nursery: trio.Nursery) -> None:
    """7: a gzip bomb stays as small as it came."""
    bomb = gzip.compress(bytes(5_000_000))
    async with open_receiver(nursery) as receiver:
        answer = Answer(headers=(("Content-Encoding", "gzip"),), body=bomb)
        outcome = await attempt(receiver, answer)
        assert outcome.status_code == 200
        assert outcome.body == bomb[:8192]


@pytest.mark.parametrize("chunked", [False, True])
async def test_body_over_the_limit_is_cut(nursery: trio.Nursery, chunked: bool) -> None:
    """5.5: 8 KiB are kept, the connection is dropped, the status stands."""
    async with open_receiver(nursery) as receiver:
        exact = await attempt(receiver, Answer(body_size=8192, chunked=chunked))
        assert (exact.status_code, len(exact.body)) == (200, 8192)
        over = await attempt(receiver, Answer(body_size=8193, chunked=chunked))
        assert (over.status_code, len(over.body), over.failure) == (200, 8192, None)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(body_size=2 << 30),
        Answer(body_size=2 << 30, chunked=True),
        Answer(endless_head=True),
        Answer(interim=1_000_000),
    ],
    ids=["huge body", "huge chunked body", "endless head", "endless 1xx"],
)
async def test_memory_stays_flat(nursery: trio.Nursery, answer: Answer) -> None:
    """7: two gigabytes of anything are refused after the first kilobytes, eight times at once."""
    async with open_receiver(nursery, answer) as receiver:
        transport_ = transport()
        await send(transport_, request(receiver.url()))
        nursery.start_soon(transport_.run)
        before = resident_memory()

        async def one() -> None:
            outcome = await transport_.send(request(receiver.url()))
            if answer.body_size:
                assert (outcome.status_code, len(outcome.body)) == (200, 8192)
            else:
                assert outcome.failure == "response_error"

        with trio.fail_after(10):
            async with trio.open_nursery() as senders:
                for _ in range(8):
                    senders.start_soon(one)
        assert resident_memory() - before < 16_000_000
        assert transport_.statistics().open == 0


@pytest.mark.parametrize(
    ("answer", "failure", "words"),
    [
        (Answer(cut=0), "connection_error", "closed the connection without an answer"),
        (Answer(cut=0, reset=True), "connection_error", "without an answer"),
        (Answer(cut=10), "response_error", "in the middle of the head"),
        (Answer(cut=10, reset=True), "response_error", "in the middle of the head"),
        (Answer(raw=b"SSH-2.0-OpenSSH_9.9\r\n"), "response_error", "not HTTP/1.1"),
        (Answer(raw=b"HTTP/1.1 101 Switching Protocols\r\n\r\n"), "response_error", "101"),
        (Answer(endless_head=True), "response_error", "over 65536 bytes"),
        (Answer(interim=10_000), "response_error", "over 65536 bytes"),
        (Answer(hang=True), "timeout", "no answer within 200ms"),
        (Answer(hang=True, cut=30), "timeout", "no answer within 200ms"),
        (Answer(drip=0.05), "timeout", "no answer within 200ms"),
        (Answer(delay=60), "timeout", "no answer within 200ms"),
    ],
)
async def test_failures(nursery: trio.Nursery, answer: Answer, failure: str, words: str) -> None:
    """5.3: each kind of failure has its reason and says what happened."""
    async with open_receiver(nursery) as receiver:
        limit = "200ms" if failure == "timeout" else "5s"
        outcome = await attempt(receiver, answer, timeout=limit)
        assert outcome.failure == failure
        assert outcome.status_code is None
        assert outcome.error_message is not None
        assert words in outcome.error_message
        assert outcome.address == f"127.0.0.1:{receiver.port}"
        assert len(receiver.requests) == 1


@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize(
    "answer",
    [
        Answer(body=b"body" * 20, cut=70),
        Answer(body=b"body" * 20, cut=70, reset=True),
        Answer(body=b"body" * 20, cut=70, hang=True),
        Answer(body=b"body" * 500, drip=0.0005),
        Answer(raw=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\nzz\r\n"),
    ],
    ids=["cut", "reset", "hangs", "drips", "bad chunk"],
)
async def test_a_head_is_an_answer(nursery: trio.Nursery, answer: Answer, status: int) -> None:
    """5.2: any 2xx is a success, whatever becomes of its body; other statuses stand as well."""
    async with open_receiver(nursery) as receiver:
        fields = {name: getattr(answer, name) for name in answer.__struct_fields__}
        fields |= {
            "status": status,
            "raw": answer.raw and answer.raw.replace(b"200", b"%d" % status),
        }
        outcome = await attempt(receiver, Answer(**fields), timeout="400ms")
        assert outcome.status_code == status
        assert outcome.failure is None
        assert outcome.body.startswith(b"body"[: len(outcome.body)])


async def test_a_drip_cannot_hold_a_sender(nursery: trio.Nursery) -> None:
    """7: the deadline is over the whole attempt, not over each read."""
    async with open_receiver(nursery, Answer(body=b"x" * 1000, drip=0.01)) as receiver:
        started = trio.current_time()
        outcome = await send(transport(timeout="200ms"), request(receiver.url()))
        assert 0.2 <= trio.current_time() - started < 2
        assert outcome.ended_at - outcome.started_at >= 200_000


async def test_early_answer(nursery: trio.Nursery) -> None:
    """A 413 in the middle of the request is an answer."""
    async with open_receiver(nursery, Answer(status=413), read_bodies=False) as receiver:
        outcome = await send(transport(), request(receiver.url(), bytes(20_000_000)))
        assert outcome.status_code == 413


class BackwardsClock:
    """A clock that is set back whenever it is looked at."""

    def __init__(self) -> None:
        self._now = 1_700_000_000 * SECOND

    def now(self) -> Micros:
        self._now -= SECOND
        return self._now


async def test_a_clock_set_back(nursery: trio.Nursery) -> None:
    """No attempt takes less than no time."""
    async with open_receiver(nursery) as receiver:
        transport_ = Transport(settings(), BackwardsClock())
        outcome = await send(transport_, request(receiver.url()))
        assert outcome.ended_at == outcome.started_at
        await transport_.aclose()


# Not reached


async def test_connection_refused() -> None:
    """5.3: connection_error, with no address since no connection was made."""
    outcome = await send(transport(), request(f"http://127.0.0.1:{closed_port()}/"))
    assert (outcome.failure, outcome.address) == ("connection_error", None)


@pytest.mark.parametrize(
    ("egress", "words"),
    [
        (Egress(), "loopback"),
        (Egress(allow=("127.0.0.0/8",), require_https=True), "https"),
        (Egress(allow=("127.0.0.0/8",), allowed_ports=(443,)), "port"),
        (Egress(allow=("127.0.0.0/8",), deny=("127.0.0.1/32",)), "denies"),
    ],
)
async def test_not_allowed(nursery: trio.Nursery, egress: Egress, words: str) -> None:
    """7: refused at once, no connection made."""
    async with open_receiver(nursery) as receiver:
        outcome = await send(transport(egress=egress), request(receiver.url()))
        assert outcome.failure == "url_not_allowed"
        assert words in (outcome.error_message or "")
        assert outcome.address is None
        assert receiver.connections == 0


async def test_rebinding(nursery: trio.Nursery) -> None:
    """7: the address is judged at every dial, not once per name."""
    async with open_receiver(nursery, Answer(close=True)) as receiver:
        resolver = FixedResolver([("127.0.0.1", receiver.port)], [("10.0.0.1", 80)])
        transport_ = Transport(settings(), SystemClock(), resolver=resolver)
        first = await send(transport_, request("http://rebinding.test/"))
        assert (first.status_code, first.failure) == (200, None)
        second = await send(transport_, request("http://rebinding.test/"))
        assert (second.status_code, second.failure) == (None, "url_not_allowed")


async def test_lookup_takes_of_the_deadline() -> None:
    """7: the total deadline covers the name lookup."""
    transport_ = Transport(settings(timeout="50ms"), SystemClock(), resolver=FixedResolver(None))
    outcome = await send(transport_, request("http://slow.test/"))
    assert (outcome.failure, outcome.address) == ("timeout", None)


async def test_connecting_has_the_timeout_of_the_request() -> None:
    """7"""
    resolver = FixedResolver(None)
    transport_ = Transport(settings(timeout="5s"), SystemClock(), resolver=resolver)
    sent = msgspec.structs.replace(request("http://slow.test/"), timeout=Duration("50ms"))
    outcome = await send(transport_, sent)
    assert (outcome.failure, outcome.error_message) == ("timeout", "no answer within 50ms")


async def test_dns_error() -> None:
    """5.3: dns_error."""
    outcome = await send(transport(), request(f"http://{'a' * 64}/"))
    assert outcome.failure == "dns_error"


# Keeping connections


async def test_connections_are_reused(nursery: trio.Nursery) -> None:
    """One connection serves as many attempts as come one after the other."""
    async with open_receiver(nursery) as receiver:
        transport_ = transport()
        for n in range(5):
            outcome = await send(transport_, request(receiver.url(f"/{n}"), b"%d" % n))
            assert outcome.status_code == 200
        assert receiver.connections == 1
        assert [r.body for r in receiver.requests] == [b"%d" % n for n in range(5)]
        statistics = transport_.statistics()
        assert (statistics.open, statistics.idle) == (1, 1)
        assert (statistics.connects, statistics.reuses) == (1, 4)
        await transport_.aclose()
        assert transport_.statistics().open == 0


async def test_destinations_share_no_connections(nursery: trio.Nursery) -> None:
    """The same address under another name is another destination (another Host, other trust)."""
    async with open_receiver(nursery, host="0.0.0.0") as receiver:
        transport_ = transport()
        for host in ("127.0.0.1", "127.0.0.2", "0x7f.1", "127.0.0.1"):
            await send(transport_, request(f"http://{host}:{receiver.port}/"))
        assert receiver.connections == 3
        await transport_.aclose()


async def test_attempts_at_once_have_connections_of_their_own(nursery: trio.Nursery) -> None:
    """Afterwards no more of them are kept than max_idle_per_destination."""
    async with open_receiver(nursery, Answer(delay=0.05)) as receiver:
        transport_ = transport(max_idle_per_destination=2)
        nursery.start_soon(transport_.run)
        async with trio.open_nursery() as senders:
            for _ in range(5):
                senders.start_soon(transport_.send, request(receiver.url()))
            await receiver.wait_requests(5)
            assert transport_.statistics().open == 5
        assert receiver.connections == 5
        assert transport_.statistics().open == 2
        await transport_.aclose()


@pytest.mark.parametrize(
    "answer",
    [
        Answer(close=True),
        Answer(body_size=8193),
        Answer(cut=40, body=b"x" * 100),
        Answer(raw=b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\n\r\n"),
    ],
    ids=["close", "over the limit", "cut", "stray bytes"],
)
async def test_what_is_not_kept(nursery: trio.Nursery, answer: Answer) -> None:
    """Only a complete, clean exchange leaves a connection for the next."""
    async with open_receiver(nursery, answer) as receiver:
        transport_ = transport()
        assert (await send(transport_, request(receiver.url()))).failure is None
        assert transport_.statistics().open == 0


async def test_idle_close_is_noticed(nursery: trio.Nursery) -> None:
    """A receiver that restarted meanwhile costs a connection, not an attempt."""
    transport_ = transport()
    nursery.start_soon(transport_.run)
    async with open_receiver(nursery) as receiver:
        assert (await transport_.send(request(receiver.url()))).status_code == 200
        port = receiver.port
    async with open_receiver(nursery, port=port) as receiver:
        assert (await transport_.send(request(receiver.url()))).status_code == 200
        assert (receiver.connections, len(receiver.requests)) == (1, 1)
    assert transport_.statistics().reuses == 0
    await transport_.aclose()


@pytest.mark.parametrize("reset", [False, True])
async def test_a_kept_connection_that_dies_is_replaced_once(
    nursery: trio.Nursery, reset: bool
) -> None:
    """Closed while the request was on its way: once more, on a new connection, same attempt."""
    async with open_receiver(nursery) as receiver:
        receiver.script = [Answer(), Answer(cut=0, reset=reset), Answer(body=b"second")]
        transport_ = transport()
        await send(transport_, request(receiver.url()))
        outcome = await send(transport_, request(receiver.url()))
        assert (outcome.status_code, outcome.body) == (200, b"second")
        assert receiver.connections == 2
        assert transport_.statistics().open == 1
        # A new connection that dies is not replaced.
        receiver.script = [*[Answer()] * 3, Answer(cut=0)]
        outcome = await send(transport_, request(receiver.url()))
        assert outcome.failure == "connection_error"
        assert (receiver.connections, len(receiver.requests)) == (3, 5)
        assert transport_.statistics().open == 0


async def test_a_kept_connection_that_answered_is_not_replaced(nursery: trio.Nursery) -> None:
    """Bytes of an answer prove that the request was read: no second one."""
    async with open_receiver(nursery, [Answer(), Answer(cut=10)]) as receiver:
        transport_ = transport()
        await send(transport_, request(receiver.url()))
        outcome = await send(transport_, request(receiver.url()))
        assert outcome.failure == "response_error"
        assert len(receiver.requests) == 2


async def test_replacement_is_within_the_deadline(nursery: trio.Nursery) -> None:
    """7: dying and hanging by turns buys no more time than hanging."""
    script = [Answer(), Answer(cut=0, delay=0.4), Answer(hang=True)]
    async with open_receiver(nursery, script) as receiver:
        transport_ = transport(timeout="500ms")
        await send(transport_, request(receiver.url()))
        started = trio.current_time()
        outcome = await send(transport_, request(receiver.url()))
        assert outcome.failure == "timeout"
        assert trio.current_time() - started < 0.85


async def test_idle_timeout(nursery: trio.Nursery, mock_clock: MockClock) -> None:
    """Connections idle for longer are closed when anything is sent anywhere."""
    async with open_receiver(nursery) as quiet, open_receiver(nursery) as busy:
        transport_ = Transport(settings(), TrioClock())
        await send(transport_, request(quiet.url()))
        await send(transport_, request(busy.url()))
        mock_clock.jump(59)
        await send(transport_, request(busy.url()))
        assert transport_.statistics().idle == 2
        mock_clock.jump(2)
        await send(transport_, request(busy.url()))
        assert transport_.statistics().idle == 1
        assert (quiet.connections, busy.connections) == (1, 1)
        await transport_.aclose()


async def test_idle_connections_are_bounded_in_all(nursery: trio.Nursery) -> None:
    """However many destinations: no more than twice the attempts at once."""
    async with open_receiver(nursery, host="0.0.0.0") as receiver:
        transport_ = transport(concurrency=2)
        for n in range(10):
            await send(transport_, request(f"http://127.0.0.{n + 1}:{receiver.port}/"))
        assert transport_.statistics().idle == 4
        await transport_.aclose()


async def test_closing_with_attempts_under_way(nursery: trio.Nursery) -> None:
    """They end as they would have; their connections are not kept."""
    async with open_receiver(nursery, Answer(delay=0.05)) as receiver:
        transport_ = transport()
        nursery.start_soon(transport_.run)
        async with trio.open_nursery() as senders:
            senders.start_soon(transport_.send, request(receiver.url()))
            await receiver.wait_requests(1)
            await transport_.aclose()
        assert transport_.statistics().open == 0


# TLS


async def test_tls(nursery: trio.Nursery, tmp_path: Path) -> None:
    """7: HTTPS with a configured bundle; large bodies both ways; the connection is kept."""
    authority = Authority(tmp_path)
    tls = authority.server("127.0.0.1")
    async with open_receiver(nursery, Answer(body_size=500_000), tls=tls) as receiver:
        transport_ = transport(ca_file=authority.ca_file, max_response_body=1_000_000)
        for n in range(3):
            body = bytes((n,)) * 1_000_000
            outcome = await send(transport_, request(receiver.url(), body))
            assert outcome.status_code == 200
            assert outcome.body == bytes(500_000)
            assert receiver.requests[-1].body == body
        assert receiver.connections == 1
        await transport_.aclose()


async def test_tls_close_while_idle(nursery: trio.Nursery, tmp_path: Path) -> None:
    """A TLS receiver that went away while the connection was idle is noticed."""
    authority = Authority(tmp_path)
    tls = authority.server("127.0.0.1")
    transport_ = transport(ca_file=authority.ca_file)
    nursery.start_soon(transport_.run)
    async with open_receiver(nursery, tls=tls) as receiver:
        assert (await transport_.send(request(receiver.url()))).status_code == 200
        port = receiver.port
    async with open_receiver(nursery, tls=tls, port=port) as receiver:
        assert (await transport_.send(request(receiver.url()))).status_code == 200
    assert transport_.statistics().reuses == 0
    await transport_.aclose()


async def test_a_client_certificate_is_demanded(tmp_path: Path) -> None:
    """5.3: a TLS 1.3 server says so only after the handshake; it is a TLS error all the same."""
    authority = Authority(tmp_path)
    tls = authority.server("127.0.0.1")
    tls.verify_mode = ssl.CERT_REQUIRED

    def shake_hands_in_vain(listener: socket.socket) -> None:
        # The standard library's server, because Trio's closes without the alert.
        sock, _ = listener.accept()
        with pytest.raises(ssl.SSLError, match="did not return a certificate"):
            tls.wrap_socket(sock, server_side=True)
        sock.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, shake_hands_in_vain, listener)
            url = f"https://127.0.0.1:{listener.getsockname()[1]}/"
            outcome = await send(transport(ca_file=authority.ca_file), request(url))
    assert outcome.failure == "tls_error"
    assert "certificate required" in (outcome.error_message or "")


# Cancellation


class CancelAtStep(trio.abc.Instrument):
    """Cancels `scope` after the n-th step of `task` and its children."""

    def __init__(self, scope: trio.CancelScope, task: trio.lowlevel.Task, step: int) -> None:
        self._scope = scope
        self._task = task
        self._left = step

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        parent = task.parent_nursery.parent_task if task.parent_nursery else None
        if self._task in (task, parent):
            self._left -= 1
            if self._left == 0:
                self._scope.cancel()


async def cancelled_at(step: int, transport_: Transport, request_: Request) -> bool:
    """Send, and cancel after so many steps; False if it was done before that."""
    with trio.CancelScope() as scope:
        instrument = CancelAtStep(scope, trio.lowlevel.current_task(), step)
        trio.lowlevel.add_instrument(instrument)
        try:
            await transport_.send(request_)
        finally:
            trio.lowlevel.remove_instrument(instrument)
    return scope.cancelled_caught


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("kept", [False, True], ids=["new connection", "kept connection"])
async def test_cancelled_at_every_step(
    nursery: trio.Nursery, tmp_path: Path, scheme: str, kept: bool
) -> None:
    """Wherever an attempt is cancelled, it leaves no file open and nothing half-used to others."""
    authority = Authority(tmp_path)
    tls = authority.server("h.test") if scheme == "https" else None
    body = bytes(3_000_000)
    before = open_files()
    step = 0
    cancelled = True
    while cancelled:
        step += 1
        script = [Answer()] * kept + [Answer(body=b"body", drip=0.0001)]
        async with open_receiver(nursery, script, tls=tls) as receiver:
            resolver = FixedResolver([("127.0.0.1", closed_port()), ("127.0.0.1", receiver.port)])
            chosen = settings(ca_file=authority.ca_file)
            transport_ = Transport(chosen, SystemClock(), resolver=resolver)
            sent = request(f"{scheme}://h.test/", body)
            if kept:
                await send(transport_, sent)
            async with trio.open_nursery() as running:
                running.start_soon(transport_.run)
                cancelled = await cancelled_at(step, transport_, sent)
                running.cancel_scope.cancel()
            statistics = transport_.statistics()
            assert statistics.open == statistics.idle == (0 if cancelled else 1)
            await transport_.aclose()
        assert open_files() == before
    assert step > (10 if kept else 20)


# Attempts that are not to be made any more


async def test_cut_short_ends_every_attempt_under_way(nursery: trio.Nursery) -> None:
    async with open_receiver(nursery) as receiver:
        receiver.script = Answer(hang=True)
        transport_ = transport(timeout="30s")
        nursery.start_soon(transport_.run)
        ends: list[str] = []

        async def one() -> None:
            try:
                await transport_.send(request(receiver.url()))
            except CutShort:
                ends.append("cut short")

        async with trio.open_nursery() as attempts:
            for _ in range(3):
                attempts.start_soon(one)
            await receiver.wait_requests(3)
            transport_.cut_short()
        assert ends == ["cut short"] * 3
        assert transport_.statistics().open == 0
        # It is over with those: the next one is an attempt like any other.
        receiver.script = Answer()
        assert (await transport_.send(request(receiver.url()))).status_code == 200
        await transport_.aclose()


async def test_cut_short_leaves_an_answer_that_has_arrived(nursery: trio.Nursery) -> None:
    """Its head is here and only its body hangs: a success that was sent twice helps nobody."""
    async with open_receiver(nursery) as receiver:
        receiver.script = Answer(body=b"body" * 20, cut=70, hang=True)
        transport_ = transport(timeout="30s")
        nursery.start_soon(transport_.run)
        outcomes: list[Outcome] = []

        async def one() -> None:
            outcomes.append(await transport_.send(request(receiver.url())))

        async with trio.open_nursery() as attempts:
            attempts.start_soon(one)
            await receiver.wait_requests(1)
            await trio.sleep(0.2)  # for the head to get here
            transport_.cut_short()
        assert [outcome.status_code for outcome in outcomes] == [200]


async def test_nothing_is_sent_if_the_right_to_is_lost_while_connecting(
    nursery: trio.Nursery,
) -> None:
    async with open_receiver(nursery) as receiver:
        transport_ = transport()
        nursery.start_soon(transport_.run)
        with pytest.raises(CutShort):
            await transport_.send(request(receiver.url()), may_send=lambda: False)
        assert transport_.statistics().open == 0
        assert (await transport_.send(request(receiver.url()))).status_code == 200
        assert len(receiver.requests) == 1
        await transport_.aclose()


# Other settings


async def test_kept_connections_go_with_what_they_were_made_by(nursery: trio.Nursery) -> None:
    """8, 7: where these say who may be connected to, or how much is read; else they stay."""
    async with open_receiver(nursery) as receiver:
        transport_ = transport()
        await send(transport_, request(receiver.url()))
        transport_.reconfigure(loaded(timeout="7s", concurrency=3))
        await send(transport_, request(receiver.url()))
        assert transport_.statistics().reuses == 1
        transport_.reconfigure(loaded(max_response_body=3))
        assert transport_.statistics().open == 0
        receiver.script = Answer(body=b"12345")
        assert (await send(transport_, request(receiver.url()))).body == b"123"
        transport_.reconfigure(loaded(max_idle_per_destination=0, max_response_body=3))
        assert transport_.statistics().open == 0
        transport_.reconfigure(loaded(egress=Egress()))
        outcome = await send(transport_, request(receiver.url()))
        assert outcome.failure == "url_not_allowed"
        assert receiver.connections == 2


async def test_connection_made_meanwhile_is_judged_anew(nursery: trio.Nursery) -> None:
    """8, 7: nothing is sent where the settings of now refuse it."""
    async with open_receiver(nursery) as receiver:
        transport_ = Transport(settings(), SystemClock(), resolver=late)
        RESOLVED.append((receiver.port, lambda: transport_.reconfigure(loaded(egress=Egress()))))
        outcome = await send(transport_, request("http://late.test/"))
        assert outcome.failure == "url_not_allowed"
        assert receiver.requests == []
        assert transport_.statistics().open == 0


RESOLVED: list[tuple[int, Callable[[], None]]] = []


async def late(host: str, port: int) -> list[tuple[int, SocketAddress]]:
    """Resolves to what was noted, and does what was noted, in time to be too late."""
    await trio.lowlevel.checkpoint()
    to_port, act = RESOLVED[-1]
    act()
    return [(socket.AF_INET, ("127.0.0.1", to_port))]


async def test_other_authorities(nursery: trio.Nursery, tmp_path: Path) -> None:
    """8: a CA file is read anew, under its old name, too."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    trusted, other = Authority(tmp_path / "a"), Authority(tmp_path / "b")
    async with open_receiver(nursery, tls=trusted.server("h.test")) as receiver:
        resolver = FixedResolver([("127.0.0.1", receiver.port)])
        chosen = settings(ca_file=trusted.ca_file)
        transport_ = Transport(chosen, SystemClock(), resolver=resolver)
        assert (await send(transport_, request("https://h.test/"))).status_code == 200
        trusted.ca_file.write_bytes(other.ca_file.read_bytes())
        transport_.reconfigure(Loaded.of(chosen))
        assert (await send(transport_, request("https://h.test/"))).failure == "tls_error"
