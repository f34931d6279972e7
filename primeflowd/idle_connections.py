"""Connections kept open between attempts: a stack per destination, bounded in all.

Last in, first out, so that a quiet destination's surplus grows old and is closed. Nothing runs in
the background: every call closes what has expired, oldest first. While no callback is sent at all
a few expired sockets may stay open; there are never more than the limit.
"""

from collections import OrderedDict

import trio

from primeflowd.connection import Connection


class IdleConnections:
    """Keeps at most `limit` connections, `limit_per_destination` each, `timeout` seconds long."""

    def __init__(self, limit: int, limit_per_destination: int, timeout: float) -> None:
        self._limit = limit
        self._limit_per_destination = limit_per_destination
        self._timeout = timeout
        self._stacks: dict[str, list[Connection]] = {}
        # Oldest first. (A plain dict would step over the gaps at its front at every look.)
        self._by_age: OrderedDict[Connection, str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._by_age)

    def take(self, destination: str) -> Connection | None:
        """The connection to `destination` used last that the other side still keeps open."""
        self._close_expired()
        while stack := self._stacks.get(destination):
            connection = stack[-1]
            self._remove(connection)
            if not connection.is_stale():
                return connection
            connection.close()
        return None

    def put(self, destination: str, connection: Connection) -> None:
        """Keep a reusable `connection`, or close it, or another one to make room."""
        if not self._limit_per_destination:
            connection.close()
            return
        connection.idle_since = trio.current_time()
        stack = self._stacks.setdefault(destination, [])
        self._by_age[connection] = destination
        stack.append(connection)
        if len(stack) > self._limit_per_destination:
            self._discard(stack[0])
        elif len(self._by_age) > self._limit:
            self._discard(next(iter(self._by_age)))
        self._close_expired()

    def close_all(self) -> None:
        """Close every one, and keep none from now on."""
        self._limit_per_destination = 0
        while self._by_age:
            self._discard(next(iter(self._by_age)))

    def _close_expired(self) -> None:
        deadline = trio.current_time() - self._timeout
        while self._by_age and (oldest := next(iter(self._by_age))).idle_since <= deadline:
            self._discard(oldest)

    def _discard(self, connection: Connection) -> None:
        self._remove(connection)
        connection.close()

    def _remove(self, connection: Connection) -> None:
        destination = self._by_age.pop(connection)
        stack = self._stacks[destination]
        # At one of the two ends: the age in a stack is the age in all.
        if stack[-1] is connection:
            stack.pop()
        else:
            stack.remove(connection)
        if not stack:
            del self._stacks[destination]
