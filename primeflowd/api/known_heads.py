"""Heads of requests, and those that came lately: a client sends the same one over and over.

Taking a head apart and finding out who sent it costs more than all the rest of reading a request.
What makes heads differ (an idempotency key, a trace, another length of the body) costs that, and
nothing is the worse for it: heads are known by all of their bytes.

Bounded: `_MOST` heads of at most `_LONGEST` bytes. There are keys in them, so that whoever has a
KnownHeads has it forget them once in a while. Pure; never fails.
"""

from functools import cache
from typing import Final

import msgspec

from primeflowd.api.incoming import Passed
from primeflowd.api.request_rules import Grouped

_MOST: Final = 256
_LONGEST: Final = 2_048


class Fields:
    """Header fields as text, for handlers; what was asked for once is kept.

    Attributes:
        passed: see incoming.Incoming.
    """

    __slots__ = ("_asked", "_fields", "passed")

    def __init__(self, fields: Grouped) -> None:
        self._fields = fields
        self._asked: dict[str, list[str]] = {}
        self.passed: Passed | None = None

    def get(self, name: str, /) -> str | None:
        values = self._asked.get(name)
        if values is None:
            values = self.getlist(name)
        return values[0] if values else None

    def getlist(self, name: str, /) -> list[str]:
        """The values. Not to be changed."""
        values = self._asked.get(name)
        if values is None:
            sent = self._fields.get(_as_sent(name), ())
            values = self._asked[name] = [value.decode("latin-1") for value in sent]
        return values

    def __contains__(self, name: str, /) -> bool:
        return _as_sent(name) in self._fields


# There are as many names as are written in this package.
@cache
def _as_sent(name: str) -> bytes:
    return name.lower().encode()


class Head(msgspec.Struct, frozen=True):
    """Everything of a request but its body.

    Attributes:
        target: path and query.
        version: "1.1" or "1.0".
        headers: names in lower case, in the order received; `fields` has the same by name, `text`
            as text.
        content_length: as declared; None if it was not.
        keep_alive: the client may send another request on this connection.
        expects_continue: it may hold its body back until it is asked for.
    """

    method: bytes
    target: bytes
    version: str
    headers: list[tuple[bytes, bytes]]
    fields: Grouped
    text: Fields
    content_length: int | None
    keep_alive: bool
    expects_continue: bool


class KnownHeads:
    """Heads by their bytes: each as they were sent, from its first byte to its empty line.

    Only of requests whose body has a declared length and after which the connection stays as it
    was: nothing but the head itself and that length decides what they mean.
    """

    __slots__ = ("_heads", "get")

    def __init__(self) -> None:
        self._heads: dict[bytes, Head] = {}
        self.get = self._heads.get

    def remember(self, sent: bytes, head: Head) -> None:
        """Know `head` from now on, if it is one that can be."""
        if (
            head.content_length is None
            or not head.keep_alive
            or head.expects_continue
            or b"upgrade" in head.fields
            or len(sent) > _LONGEST
        ):
            return
        if len(self._heads) >= _MOST:
            self._heads.clear()
        self._heads[sent] = head

    def forget(self) -> None:
        """Know none."""
        self._heads.clear()
