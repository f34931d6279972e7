"""What a client and we have said on a connection, and all that can be said without waiting.

Owns where a connection is: whose move it is and until when, and whether there will be another
request. The connection's task (client_connection.py) goes by that, and sleeps here until it is
needed. A request by which batches come in, and of which nothing is still to come, does not need it:
it is read, begun and answered by whoever tells of what came and of what was committed. Those are
nearly all in a busy daemon, and to wake a task for each would be a quarter of what they cost. So
all that they touch of a connection is here, and nothing of it is one more attribute away.

Only `sleep` blocks. What goes wrong while the task sleeps wakes it, and is raised there.
"""

import math
from collections.abc import Callable
from typing import Final

import outcome
import trio

from primeflowd.api import http_answer, ingest
from primeflowd.api.answer import Answer
from primeflowd.api.client_socket import ClientSocket
from primeflowd.api.house import House
from primeflowd.api.http_request import Malformed, RequestReader
from primeflowd.api.known_heads import Head

CROWDED: Final = 1.0
"""Seconds that a connection without a request is kept while there is no room for others."""

SKIPPED: Final = 65_536
"""Longest rest of an unwanted body that is read and thrown away to keep a connection."""

SHORT: Final = 16_384
"""Longest body, in bytes, of a request during whose commit others are left alone (ReadySet.hold).
To read what follows a longer one may take as long as its commit, and had better be begun."""


class Conversation:
    """Of one connection, whose socket and reader it shares with the connection's task.

    Attributes:
        invited: the client was told to send its body.
        closing: the present answer is the last, and nobody reads any more.
        over: the client sends no more requests.
        unsent: what is left to be sent of the answer to the present request, given while the task
            slept.
    """

    __slots__ = (
        "_asleep",
        "_data",
        "_deadline",
        "_holds",
        "_house",
        "_hung_up",
        "_reader",
        "_socket",
        "_waiting",
        "closing",
        "invited",
        "over",
        "unsent",
    )

    def __init__(self, sock: ClientSocket, reader: RequestReader, house: House) -> None:
        self._socket = sock
        self._reader = reader
        self._house = house
        self.invited = False
        self.closing = False
        self.over = False
        self.unsent: memoryview | None = None
        # Trio's time; infinite while the next move is ours, None until the next look at it.
        self._deadline: float | None = math.inf
        # For the head of a request.
        self._waiting = False
        # Seen to be half-closed while its request is being answered.
        self._hung_up = False
        # The task, while it sleeps.
        self._asleep: trio.lowlevel.Task | None = None
        # What was read while it sleeps, and nobody has looked at.
        self._data = b""
        # Others are left alone until the present request is committed.
        self._holds = False

    # Whose move it is.

    def expect_request(self) -> None:
        """The next move is the client's."""
        self.invited = self._hung_up = False
        self._deadline = None
        self._waiting = True

    def expect_nothing(self) -> None:
        """The next move is ours: a request has come, or there will be none."""
        self._waiting = False
        self._deadline = math.inf

    def go_straight_on(self) -> None:
        """The next move is ours again: a request came together with the one before."""
        self.invited = self._hung_up = False

    def expect_move(self, seconds: float) -> None:
        """The next move is the client's, in an answer or at the end, within so long."""
        self._deadline = trio.current_time() + seconds

    def is_to_end(self, now: float) -> bool:
        """Whether it is overdue, or abandoned by its client, at this look at it."""
        deadline = self._deadline
        if deadline is None:
            # A clock that is read for each request costs more than this precision is worth.
            deadline = self._deadline = now + self._house.idle_timeout
        if deadline == math.inf:
            # Whoever half-closes has until the second look.
            if self._socket.peek() != b"":
                return False
            is_second, self._hung_up = self._hung_up, True
            return is_second
        if self._waiting and self._house.draining and self._socket.peek() is None:
            deadline = now
        elif self._waiting and self._house.crowded:
            deadline -= max(0.0, self._house.idle_timeout - CROWDED)
        return deadline <= now

    # What was said.

    def take_in(self, data: bytes) -> None:
        """Take what has come while a request is waited for: nothing, at the end.

        Raises:
            Malformed: and the connection is of no more use.
        """
        if data:
            self._reader.feed(data)
        elif self._reader.idle:
            self.over = True
        else:
            raise Malformed(400)

    def send(self, data: bytes | memoryview) -> int:
        """How many bytes of it could be sent at once."""
        sent = self._socket.send(data)
        if self._socket.gone:
            self.closing = True
        return sent

    def closes(self) -> bool:
        """Whether the answer that is about to begin is the last."""
        if not self.closing:
            head, reader = self._reader.head, self._reader
            assert head is not None
            self.closing = (
                not head.keep_alive
                or self._house.draining
                or not (reader.ended or self._can_skip_rest(head))
            )
        return self.closing

    def _can_skip_rest(self, head: Head) -> bool:
        """Whether what is still to come of the body is worth reading for the next request."""
        left = self._reader.left
        # One that was not told to send its body may have gone on to its next request.
        held_back = head.expects_continue and not self.invited
        return left is not None and left <= SKIPPED and not held_back

    # While the task sleeps. Nothing of this raises: it wakes the task, which does.

    async def sleep(self) -> None:
        """Until the task is needed: for a request, for what is left of an answer, or at the end.

        Raises:
            Malformed: and the connection is of no more use.
        """

        def abort(_: object) -> trio.lowlevel.Abort:
            self._asleep = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._asleep = trio.lowlevel.current_task()
        self._socket.call_when_readable(self._read)
        await trio.lowlevel.wait_task_rescheduled(abort)

    def _wake(self, error: Exception | None = None) -> None:
        task, self._asleep = self._asleep, None
        assert task is not None
        trio.lowlevel.reschedule(
            task, outcome.Value(None) if error is None else outcome.Error(error)
        )

    def _read(self) -> Callable[[], None] | None:
        """For the ReadySet: see Reader."""
        if self._asleep is None:
            # Cancelled, and about to close.
            return None
        data = self._socket.read(self._reader.wanted)
        if data is None:
            self._socket.call_when_readable(self._read)
            return None
        self._data = data
        return self._go_on

    def _go_on(self) -> None:
        """Begin the request that has come, if that takes no task."""
        if self._asleep is None:
            return
        data, self._data = self._data, b""
        try:
            self.take_in(data)
            if self._begin():
                return
        except Exception as error:  # noqa: BLE001 -- Malformed, or a bug
            self._wake(error)
            return
        if self._reader.head is not None or self.over:
            # It has been read: until the task runs, nobody is to take the client for an idle one.
            self.expect_nothing()
            self._wake()
        elif self._socket.drained:
            self._socket.call_when_readable(self._read)
        else:
            self._wake()

    def _begin(self) -> bool:
        """Have the present request answered, if it is one that takes no task, and all here."""
        reader = self._reader
        head = reader.head
        if head is None or not reader.ended:
            return False
        route = ingest.ROUTES.get((head.method, head.target))
        if route is None or (key := ingest.known_key(self._house.gate, head)) is None:
            return False
        self.expect_nothing()
        body = reader.take()
        self._holds = len(body) <= SHORT
        if self._holds:
            self._socket.hold()
        request = ingest.IngestRequest(route, head, body)
        ingest.begin(self._house.gate, route, request, key, self._give)
        return True

    def _give(self, answer: Answer, chosen: str) -> None:
        """Send the answer to the present request, and go on to the next, if that takes no task."""
        # Answering it may begin the next one.
        holds = self._holds
        # If it is None, nobody is there any more who wants it.
        if self._asleep is not None:
            self._answer(answer, chosen)
        if holds:
            self._socket.release()

    def _answer(self, answer: Answer, chosen: str) -> None:
        try:
            data = http_answer.encode(answer, chosen, close=self.closes())
            sent = self.send(data)
            if sent < len(data) or self.closing:
                self.unsent = memoryview(data)[sent:]
                self._wake()
                return
            self._reader.next()
        except Exception as error:  # noqa: BLE001 -- Malformed, or a bug
            self._wake(error)
            return
        if self._reader.head is not None:
            # Whoever sends many takes turns with the others.
            self.go_straight_on()
            self._wake()
            return
        self.expect_request()
        if self._socket.drained:
            self._socket.call_when_readable(self._read)
        else:
            self._wake()
