"""A request as handlers see it, after authentication, and the table row that leads to a handler.

Handlers take a `Call` and return an `Answer`; they know nothing of the framework underneath.
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import parse_qsl

import msgspec

from primeflowd.api.answer import Answer
from primeflowd.api.auth import Authenticator
from primeflowd.api.body import arrived_body, read
from primeflowd.api.incoming import Fields, Incoming
from primeflowd.api.services import Services
from primeflowd.errors import InvalidRequest, NotFound
from primeflowd.model import ApiKey
from primeflowd.unit import Unit

AnswerScope: TypeAlias = tuple[str, str, str, str]
"""What a stored answer belongs to: org, method, path, idempotency key (contract 2.6)."""

_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def canonical_uuid(text: str) -> str | None:
    """A UUID in lower case, None if `text` is none (braces and bare hex are not)."""
    lowered = text.lower()
    return lowered if _UUID.fullmatch(lowered) else None


class Call:
    """One authenticated, authorised request.

    Attributes:
        org_id: of the org it is about; `*` where the route asks for none.
        running: the idempotency scopes at work in this process, shared by all calls.
    """

    __slots__ = (
        "_body",
        "_names",
        "_query",
        "_request",
        "authenticator",
        "headers",
        "key",
        "org_id",
        "running",
        "services",
    )

    def __init__(
        self,
        request: Incoming,
        names: Mapping[str, str],
        services: Services,
        authenticator: Authenticator,
        running: set[AnswerScope],
        key: ApiKey,
        org_id: str,
    ) -> None:
        self._request = request
        self.headers: Fields = request.headers
        self._names = names
        self._body: bytes | None = None
        self._query: dict[str, str] | None = None
        self.services = services
        self.authenticator = authenticator
        self.running = running
        self.key = key
        self.org_id = org_id

    @property
    def method(self) -> str:
        return self._request.method

    @property
    def path(self) -> str:
        """The path without the query, percent-decoded."""
        return self._request.path

    @property
    def query_string(self) -> str:
        return self._request.query_string.decode("latin-1")

    def identifier(self, name: str) -> str:
        """The UUID in the path that the route calls `name`.

        Raises:
            NotFound: it is no UUID, so it names nothing (contract 2.5).
        """
        found = canonical_uuid(self._names[name])
        if found is None:
            raise NotFound
        return found

    def query(self, name: str) -> str | None:
        """The first query parameter of this name; None if there is none, "" if it is empty.

        Raises:
            InvalidRequest: `invalid_query`, the query string is not UTF-8.
        """
        if self._query is None:
            try:
                pairs = parse_qsl(self.query_string, keep_blank_values=True, errors="strict")
            except ValueError as error:
                raise InvalidRequest("invalid_query", "the query string is not UTF-8") from error
            self._query = dict(reversed(pairs))
        return self._query.get(name)

    async def body(self, limit: int | None = None) -> bytes:
        """The whole body, at most `limit` bytes (None: `api.max_body`); read once, then kept.

        Raises:
            Rejected: 413 or 408.
        """
        if self._body is None:
            self._body = await read(self._request, self._limit(limit))
        return self._body

    def body_now(self, limit: int | None = None) -> bytes:
        """As `body`, of one that was read or is known to have arrived.

        Raises:
            Rejected: 413.
        """
        if self._body is None:
            self._body = arrived_body(self._request, self._limit(limit))
            assert self._body is not None
        return self._body

    def _limit(self, limit: int | None) -> int:
        return self.services.config.api.max_body if limit is None else limit


Handler: TypeAlias = Callable[[Call], Awaitable[Answer]]


class Change(msgspec.Struct, frozen=True, gc=False):
    """What a request asks for, found good: a transaction, and how its result is answered.

    Attributes:
        operation: a transaction function; it may run more than once.
        render: pure, since it may run in the storage's thread. Gives a 2xx.
    """

    operation: Callable[[Unit], Any]
    render: Callable[[Any], Answer]


class Route(msgspec.Struct, frozen=True):
    """A resource's method and who may use it.

    Attributes:
        path: with `<name>` for a part that varies.
        scope: what the key must be allowed.
        org: `key`: X-Org-Id, else the key's own; `header`: X-Org-Id is required; `none`: no org.
        change: what the handler makes of a call whose body has arrived; None where it does more
            than to perform that.
    """

    method: str
    path: str
    scope: str
    handler: Handler
    org: Literal["key", "header", "none"] = "key"
    change: Callable[[Call], Change] | None = None
