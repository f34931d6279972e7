"""idle_connections.py: last in, first out, and bounded three ways."""

import socket
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import trio
from trio.testing import MockClock

from primeflowd.connection import Connection
from primeflowd.http_response import ResponseReader
from primeflowd.idle_connections import IdleConnections


class Peers:
    """Connections with their other ends at hand."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.other_end: dict[Connection, socket.socket] = {}

    def make(self) -> Connection:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        connection = Connection(ours, "192.0.2.1:80", ResponseReader(1024, 1024))
        # As if its exchange were over, and had gone well.
        connection.response.keep_alive = True
        self.other_end[connection] = self._stack.enter_context(theirs)
        self._stack.callback(ours.close)
        return connection

    def closed(self, connection: Connection) -> bool:
        """We have closed our end."""
        end = self.other_end[connection]
        end.setblocking(False)
        try:
            return end.recv(1) == b""
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True


@pytest.fixture
def peers() -> Iterator[Peers]:
    with ExitStack() as stack:
        yield Peers(stack)


async def test_what_is_not_reusable_is_closed(peers: Peers, mock_clock: MockClock) -> None:
    idle = IdleConnections(limit=10, limit_per_destination=10, timeout=60)
    kept, ended, broken = peers.make(), peers.make(), peers.make()
    ended.end("somebody")
    broken.response.keep_alive = False
    for connection in (kept, ended, broken):
        idle.put("a", connection, trio.current_time())
    assert (len(idle), idle.reuses) == (1, 0)
    assert [peers.closed(one) for one in (kept, ended, broken)] == [False, True, True]
    assert idle.take("a", trio.current_time()) is kept
    assert idle.take("a", trio.current_time()) is None
    assert idle.reuses == 1


async def test_last_in_first_out(peers: Peers, mock_clock: MockClock) -> None:
    idle = IdleConnections(limit=10, limit_per_destination=10, timeout=60)
    first, second, other = peers.make(), peers.make(), peers.make()
    idle.put("a", first, trio.current_time())
    idle.put("b", other, trio.current_time())
    idle.put("a", second, trio.current_time())
    assert len(idle) == 3
    assert idle.take("a", trio.current_time()) is second
    assert idle.take("a", trio.current_time()) is first
    assert idle.take("a", trio.current_time()) is None
    assert idle.take("b", trio.current_time()) is other
    assert len(idle) == 0


async def test_limit_per_destination(peers: Peers, mock_clock: MockClock) -> None:
    """The one that has been idle longest makes room."""
    idle = IdleConnections(limit=10, limit_per_destination=2, timeout=60)
    connections = [peers.make() for _ in range(3)]
    for connection in connections:
        idle.put("a", connection, trio.current_time())
    assert [peers.closed(connection) for connection in connections] == [True, False, False]
    assert len(idle) == 2
    idle.close_all()


async def test_limit_over_all(peers: Peers, mock_clock: MockClock) -> None:
    """The one that has been idle longest anywhere makes room."""
    idle = IdleConnections(limit=2, limit_per_destination=2, timeout=60)
    connections = [peers.make() for _ in range(3)]
    for destination, connection in zip("abc", connections, strict=True):
        idle.put(destination, connection, trio.current_time())
    assert [peers.closed(connection) for connection in connections] == [True, False, False]
    assert idle.take("a", trio.current_time()) is None
    idle.close_all()


async def test_none_kept(peers: Peers, mock_clock: MockClock) -> None:
    idle = IdleConnections(limit=10, limit_per_destination=0, timeout=60)
    connection = peers.make()
    idle.put("a", connection, trio.current_time())
    assert peers.closed(connection)
    assert len(idle) == 0


async def test_expiry(peers: Peers, mock_clock: MockClock) -> None:
    """Expired ones are closed when that is asked for, and never given out: none piles up."""
    idle = IdleConnections(limit=10, limit_per_destination=10, timeout=60)
    vanished, quiet, busy = peers.make(), peers.make(), peers.make()
    idle.put("vanished", vanished, trio.current_time())
    mock_clock.jump(30)
    idle.put("b", quiet, trio.current_time())
    mock_clock.jump(29)
    assert idle.take("vanished", trio.current_time()) is vanished
    idle.put("vanished", vanished, trio.current_time())
    assert idle.close_expired(trio.current_time()) == trio.current_time() + 31
    mock_clock.jump(31)
    idle.put("b", busy, trio.current_time())
    assert idle.close_expired(trio.current_time()) == trio.current_time() + 29
    assert [peers.closed(c) for c in (quiet, vanished, busy)] == [True, False, False]
    mock_clock.jump(29)
    assert idle.take("b", trio.current_time()) is busy
    assert idle.take("vanished", trio.current_time()) is None
    assert peers.closed(vanished)
    assert len(idle) == 0
    assert idle.close_expired(trio.current_time()) is None
    busy.close()


async def test_stale_ones_are_passed_over(peers: Peers, mock_clock: MockClock) -> None:
    """The other side closed it, or spoke unasked: not to be used again."""
    idle = IdleConnections(limit=10, limit_per_destination=10, timeout=60)
    good, closed, spoke = peers.make(), peers.make(), peers.make()
    for connection in (good, closed, spoke):
        idle.put("a", connection, trio.current_time())
    peers.other_end[closed].close()
    peers.other_end[spoke].send(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
    assert idle.take("a", trio.current_time()) is good
    assert len(idle) == 0
    assert peers.closed(spoke)
    assert not peers.closed(good)
    good.close()


async def test_nothing_is_left_of_a_destination(peers: Peers, mock_clock: MockClock) -> None:
    """A daemon meets new destinations for years; those without connections take no memory."""
    idle = IdleConnections(limit=10, limit_per_destination=10, timeout=60)
    connection = peers.make()
    tracemalloc.start()
    try:
        for n in range(2_000):
            idle.put(f"https://{n}.test:443", connection, trio.current_time())
            assert idle.take(f"https://{n}.test:443", trio.current_time()) is connection
        assert tracemalloc.get_traced_memory()[0] < 50_000
    finally:
        tracemalloc.stop()


async def test_close_all(peers: Peers, mock_clock: MockClock) -> None:
    """After it, what comes back is closed as well."""
    idle = IdleConnections(limit=10, limit_per_destination=10, timeout=60)
    kept, late = peers.make(), peers.make()
    idle.put("a", kept, trio.current_time())
    idle.close_all()
    idle.put("a", late, trio.current_time())
    assert peers.closed(kept)
    assert peers.closed(late)
    assert len(idle) == 0


async def test_other_limits(peers: Peers, mock_clock: MockClock) -> None:
    """Those that are kept already are bounded by them, too."""
    idle = IdleConnections(limit=10, limit_per_destination=10, timeout=60)
    connections = [peers.make() for _ in range(6)]
    for number, connection in enumerate(connections):
        idle.put("ab"[number % 2], connection, trio.current_time())
    idle.reconfigure(limit=10, limit_per_destination=2, timeout=60)
    assert [peers.closed(one) for one in connections] == [True] * 2 + [False] * 4
    idle.reconfigure(limit=1, limit_per_destination=2, timeout=60)
    assert [peers.closed(one) for one in connections] == [True] * 5 + [False]
    idle.reconfigure(limit=1, limit_per_destination=2, timeout=10)
    mock_clock.jump(11)
    assert idle.take("b", trio.current_time()) is None
    assert len(idle) == 0
