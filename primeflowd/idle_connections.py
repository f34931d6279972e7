"""Connections kept open between attempts: a stack per destination, bounded in all.

Last in, first out, so that a quiet destination's surplus grows old and is closed. Nothing runs in
the background: whoever owns this calls `close_expired` now and then. Times are Trio's.
"""

from collections import OrderedDict

from primeflowd.connection import Connection


class IdleConnections:
    """Keeps at most `limit` connections, `limit_per_destination` each, `timeout` seconds long.

    Attributes:
        reuses: how often one was taken.
    """

    def __init__(self, limit: int, limit_per_destination: int, timeout: float) -> None:
        self._stacks: dict[str, list[Connection]] = {}
        # Oldest first. (A plain dict would step over the gaps at its front at every look.)
        self._by_age: OrderedDict[Connection, str] = OrderedDict()
        self.reuses = 0
        self.reconfigure(limit, limit_per_destination, timeout)

    def reconfigure(self, limit: int, limit_per_destination: int, timeout: float) -> None:
        """Other limits, for what is kept already, too."""
        self._limit = limit
        self._limit_per_destination = limit_per_destination
        self._timeout = timeout
        for stack in list(self._stacks.values()):
            for connection in stack[: max(0, len(stack) - limit_per_destination)]:
                self._discard(connection)
        while len(self._by_age) > limit:
            self._discard(next(iter(self._by_age)))

    def __len__(self) -> int:
        return len(self._by_age)

    def take(self, destination: str, now: float) -> Connection | None:
        """The connection to `destination` used last that the other side still keeps open."""
        while stack := self._stacks.get(destination):
            connection = stack.pop()
            if not stack:
                del self._stacks[destination]
            del self._by_age[connection]
            if connection.idle_since > now - self._timeout and not connection.is_stale():
                self.reuses += 1
                return connection
            connection.close()
        return None

    def put(self, destination: str, connection: Connection, now: float) -> None:
        """Keep a `connection` whose exchange is over, if it is reusable and there is room, or room
        can be made by closing another one; else close it."""
        if not connection.reusable or not self._limit_per_destination:
            connection.close()
            return
        connection.idle_since = now
        self._by_age[connection] = destination
        stack = self._stacks.get(destination)
        if stack is None:
            self._stacks[destination] = [connection]
        else:
            stack.append(connection)
            if len(stack) > self._limit_per_destination:
                self._discard(stack[0])
        if len(self._by_age) > self._limit:
            self._discard(next(iter(self._by_age)))

    def close_all(self) -> None:
        """Close every one, and keep none from now on."""
        self._limit_per_destination = 0
        self.clear()

    def clear(self) -> None:
        """Close every one."""
        while self._by_age:
            self._discard(next(iter(self._by_age)))

    def close_expired(self, now: float) -> float | None:
        """Close what is too old; when there will be more of it, None if nothing is kept."""
        while self._by_age:
            oldest = next(iter(self._by_age))
            if oldest.idle_since > now - self._timeout:
                return oldest.idle_since + self._timeout
            self._discard(oldest)
        return None

    def _discard(self, connection: Connection) -> None:
        destination = self._by_age.pop(connection)
        stack = self._stacks[destination]
        # The age in a stack is the age in all, so it is the first one; of few, in any case.
        stack.remove(connection)
        if not stack:
            del self._stacks[destination]
        connection.close()
