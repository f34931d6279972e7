"""client_socket.py: what is known of a socket without waiting for it, and who is told."""

import socket
import struct
from collections.abc import AsyncIterator, Iterator

import pytest
import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from primeflowd.api.client_socket import ClientSocket
from primeflowd.ready_set import ReadySet, TrioReadiness
from tests.network import open_files


def reset(sock: socket.socket) -> None:
    """Close it so that the other side is told of an error."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Ours and the client's, connected over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        theirs = socket.create_connection(listener.getsockname())
        ours, _ = listener.accept()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
async def ready(nursery: trio.Nursery) -> AsyncIterator[ReadySet]:
    ready = ReadySet()
    nursery.start_soon(ready.run)
    yield ready
    ready.close()


@pytest.fixture
async def ours(
    pair: tuple[socket.socket, socket.socket], ready: ReadySet
) -> AsyncIterator[ClientSocket]:
    sock = ClientSocket(pair[0], ready)
    yield sock
    if pair[0].fileno() >= 0:
        sock.close()


@pytest.fixture
def theirs(pair: tuple[socket.socket, socket.socket], ours: ClientSocket) -> socket.socket:
    return pair[1]


async def test_reading_never_waits(ours: ClientSocket, theirs: socket.socket) -> None:
    """Nothing yet is not the end; and an end is not somebody gone: it may still read."""
    assert ours.read(10) is None
    theirs.sendall(b"abc")
    assert ours.read(10) == b"abc"
    assert ours.read(10) is None
    theirs.shutdown(socket.SHUT_WR)
    assert ours.read(10) == b""
    assert not ours.gone
    assert ours.send(b"answer") == 6
    assert theirs.recv(10) == b"answer"


@pytest.mark.parametrize(
    ("wanted", "drained"), [(2, False), (3, False), (4, True)], ids=["less", "all", "more"]
)
async def test_a_read_that_got_all_it_asked_for_may_not_be_the_last(
    ours: ClientSocket, theirs: socket.socket, wanted: int, drained: bool
) -> None:
    """A set that tells of what comes only once would never tell of the rest."""
    theirs.sendall(b"abc")
    assert ours.read(wanted) == b"abc"[:wanted]
    assert ours.drained is drained
    # Having found nothing is as good.
    while ours.read(wanted) is not None:
        pass
    assert ours.drained


async def test_a_reset_is_the_end(ours: ClientSocket, theirs: socket.socket) -> None:
    """Of what the client sends, and of its interest: what it is sent is as good as taken."""
    reset(theirs)
    assert ours.peek() == b""
    assert ours.read(10) == b""
    assert ours.send(b"answer") == 6
    assert ours.gone
    assert not ours.end()


async def test_an_error_seen_by_reading_is_somebody_gone(
    ours: ClientSocket, theirs: socket.socket
) -> None:
    reset(theirs)
    assert ours.read(10) == b""
    assert ours.gone


async def test_a_peek_takes_nothing(ours: ClientSocket, theirs: socket.socket) -> None:
    assert ours.peek() is None
    theirs.sendall(b"abc")
    assert ours.peek() == b"a"
    assert ours.read(10) == b"abc"
    theirs.close()
    assert ours.peek() == b""


async def test_quiet_until_something_comes(ours: ClientSocket, theirs: socket.socket) -> None:
    """And again once that is read. Of an end it is told for good."""
    assert ours.is_quiet()
    theirs.sendall(b"abc")
    await wait_all_tasks_blocked()
    assert not ours.is_quiet()
    # The set told it once; it is not forgotten for that.
    assert not ours.is_quiet()
    assert ours.read(10) == b"abc"
    assert ours.is_quiet()
    theirs.close()
    await wait_all_tasks_blocked()
    assert not ours.is_quiet()
    assert ours.read(10) == b""
    assert not ours.is_quiet()


async def test_not_quiet_where_nobody_can_call(pair: tuple[socket.socket, socket.socket]) -> None:
    """Trio's own readiness has tasks wait, and nothing else."""
    ours = ClientSocket(pair[0], TrioReadiness())
    assert not ours.is_quiet()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.receive, 10)
        await wait_all_tasks_blocked()
        pair[1].sendall(b"abc")
    ours.close()


async def test_calls_when_something_has_come(ours: ClientSocket, theirs: socket.socket) -> None:
    came: list[bytes | None] = []
    ours.call_when_readable(lambda: came.append(ours.read(10)))
    await wait_all_tasks_blocked()
    assert came == []
    theirs.sendall(b"abc")
    await wait_all_tasks_blocked()
    assert came == [b"abc"]


async def test_waits_for_what_comes(ours: ClientSocket, theirs: socket.socket) -> None:
    """Also if it was told of something that has been read already; and for the end."""
    received: list[bytes] = []

    async def receive() -> None:
        received.append(await ours.receive(10))

    theirs.sendall(b"abc")
    await wait_all_tasks_blocked()
    assert ours.read(10) == b"abc"
    assert not ours.is_quiet()
    for expected in (b"def", b""):
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive)
                await wait_all_tasks_blocked()
                if expected:
                    theirs.sendall(expected)
                else:
                    theirs.close()
        assert received.pop() == expected


async def test_whoever_sends_much_takes_turns(ours: ClientSocket, theirs: socket.socket) -> None:
    """What is there already is given only after the others had a turn."""
    theirs.sendall(b"abcd")
    assert ours.read(2) == b"ab"
    with assert_checkpoints():
        assert await ours.receive(10) == b"cd"


async def test_sends_what_fits(ours: ClientSocket, theirs: socket.socket) -> None:
    """And can wait for room."""
    answer = bytes(range(256)) * 100_000
    rest = memoryview(answer)
    rest = rest[ours.send(rest) :]
    while sent := ours.send(rest):
        rest = rest[sent:]
    assert rest
    assert not ours.gone
    received = bytearray()
    with trio.fail_after(10):
        while rest:
            while len(received) < len(answer) - len(rest):
                received += theirs.recv(1_000_000)
            await ours.wait_writable()
            rest = rest[ours.send(rest) :]
    assert ours.end()
    while data := theirs.recv(1_000_000):
        received += data
    assert received == answer


async def test_the_end_of_what_is_sent(ours: ClientSocket, theirs: socket.socket) -> None:
    """The client is told, and may still send."""
    assert ours.end()
    assert theirs.recv(10) == b""
    theirs.sendall(b"abc")
    assert await ours.receive(10) == b"abc"


async def test_closed_while_it_is_waited_for(pair: tuple[socket.socket, socket.socket]) -> None:
    """Nobody is called for the next socket of the same number, and nothing is left open."""
    before = open_files()
    called: list[str] = []
    ready = ReadySet()
    ours = ClientSocket(pair[0], ready)
    assert ours.address == pair[1].getpeername()
    ours.call_when_readable(lambda: called.append("it is closed"))
    pair[1].sendall(b"abc")
    ours.close()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ready.run)
            await wait_all_tasks_blocked()
            assert called == []
            ready.close()
    # Its own, and the one of the set, which was opened after the count.
    assert open_files() == before - 1
