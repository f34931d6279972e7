"""The watchdog: what it severs, and what it leaves alone."""

import os
import select
import socket
from collections.abc import Iterator
from time import monotonic

import pytest

from primeflowd_postgresql.watchdog import Watchdog

WITHIN = 0.3


@pytest.fixture
def watchdog() -> Iterator[Watchdog]:
    watchdog = Watchdog(WITHIN)
    yield watchdog
    watchdog.close()


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


Ends = tuple[socket.socket, socket.socket]


def ends_within(end: socket.socket, seconds: float) -> bool:
    """Whether the other side goes away in that time."""
    readable, _, _ = select.select([end], [], [], seconds)
    return bool(readable) and end.recv(1) == b""


def test_wait_that_takes_too_long_is_severed(watchdog: Watchdog, ends: Ends) -> None:
    ours, theirs = ends
    began = monotonic()
    number = watchdog.begin(ours.fileno())
    assert ends_within(theirs, 5)
    assert WITHIN <= monotonic() - began < 1
    assert ends_within(ours, 0)
    assert watchdog.severed(number)
    watchdog.end(number)


def test_wait_that_ends_is_left_alone(watchdog: Watchdog, ends: Ends) -> None:
    ours, theirs = ends
    for _ in range(3):
        number = watchdog.begin(ours.fileno())
        assert not watchdog.severed(number)
        watchdog.end(number)
    assert not ends_within(theirs, 2 * WITHIN)


def test_one_of_several(watchdog: Watchdog, ends: Ends) -> None:
    ours, theirs = ends
    with socket.socket() as other:
        hanging = watchdog.begin(ours.fileno())
        watchdog.end(watchdog.begin(other.fileno()))
        assert ends_within(theirs, 5)
        watchdog.end(hanging)


def test_number_that_is_another_sockets_by_now(watchdog: Watchdog, ends: Ends) -> None:
    """The driver closed the socket that was waited for; somebody else got its number."""
    gone = socket.socket()
    number = gone.fileno()
    watchdog.begin(number)
    gone.close()
    ours, theirs = ends
    with socket.socket(fileno=os.dup2(ours.fileno(), number)):
        assert not ends_within(theirs, 2 * WITHIN)


def test_closed_watchdog_severs_nothing(ends: Ends) -> None:
    watchdog = Watchdog(WITHIN)
    ours, theirs = ends
    watchdog.begin(ours.fileno())
    watchdog.close()
    assert not ends_within(theirs, 2 * WITHIN)
