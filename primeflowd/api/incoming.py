"""What handlers and the steps before them need of an HTTP request, whichever server read it.

The framework's request is one (app.py), the front door's another (ingest.py).
"""

from collections.abc import AsyncIterable
from typing import Protocol

import msgspec

from primeflowd.api.errors import Headers
from primeflowd.model import ApiKey


class Passed(msgspec.Struct, frozen=True):
    """Whom a request was found to come from, and which org it is about."""

    key: ApiKey
    org_id: str


class Fields(Protocol):
    """The header fields of a request; names in any case, values as Latin-1."""

    def get(self, name: str, /) -> str | None: ...

    def getlist(self, name: str, /) -> list[str]: ...

    def __contains__(self, name: str, /) -> bool: ...


class Incoming(Protocol):
    """One request, its body perhaps still on the way.

    Attributes:
        answer_headers: what its answer shall carry, whatever becomes of it.
    """

    answer_headers: Headers

    @property
    def method(self) -> str: ...

    @property
    def path(self) -> str:
        """Without the query, percent-decoded."""
        ...

    @property
    def query_string(self) -> bytes: ...

    @property
    def headers(self) -> Fields: ...

    @property
    def passed(self) -> Passed | None:
        """What was found of the last request with these same header fields to this same route;
        None if that is not known."""
        ...

    def remember(self, passed: Passed) -> None:
        """Such it is, for the next one."""
        ...

    @property
    def content_length(self) -> int | None:
        """What the client says that the body has, in bytes."""
        ...

    @property
    def arrived(self) -> bytes | None:
        """The whole body if it is known to be here; None if it must be waited for."""
        ...

    @property
    def body(self) -> AsyncIterable[bytes]:
        """The parts of the body as they come; to be iterated once."""
        ...
