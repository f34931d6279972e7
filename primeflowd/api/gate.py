"""What stands between a request and its handler, for all servers and all routes alike.

    key -> rate limit -> scope -> org -> handler

One gate serves the whole process: its memory of keys, of rates and of idempotency keys at work is
that of the API. Blocks and fails as auth.py, rate_limit.py and the handler do.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import outcome
import structlog

from primeflowd.api import idempotency
from primeflowd.api.answer import Answer
from primeflowd.api.auth import Authenticator, authorise, org_of
from primeflowd.api.call import AnswerScope, Call, Route
from primeflowd.api.incoming import Fields, Incoming, Passed
from primeflowd.api.rate_limit import RateLimiter
from primeflowd.api.services import Services
from primeflowd.config import Config
from primeflowd.model import OPERATOR_ORG, ApiKey

_NO_NAMES: Final[Mapping[str, str]] = {}


class Gate:
    """The way to the handlers.

    Attributes:
        requests: where who answers counts it.
        tracing: where who answers has a span made of it; None: nowhere.
        log: where it says so; bound once, as structlog otherwise does for each line.
    """

    def __init__(self, services: Services) -> None:
        self._services = services
        self.requests = services.requests
        self.tracing = services.tracing
        self.log = structlog.get_logger().bind()
        self._authenticator = Authenticator(services.storage)
        self._limiter = RateLimiter(services.config.api, services.clock)
        self._running: set[AnswerScope] = set()

    def reconfigure(self, config: Config) -> None:
        """Go by `config` from the next request on."""
        self._limiter.reconfigure(config.api)

    async def answer(self, route: Route, request: Incoming, names: Mapping[str, str]) -> Answer:
        """The handler's answer. `names`: the parts of the path that the route names.

        What the header fields say is found out once for the same ones; that the key is still good
        and how often it was used is asked each time.
        """
        passed = request.passed
        if passed is not None and self._authenticator.trusts(passed.key):
            request.answer_headers = self._limiter.take(passed.key.id)
        else:
            key = await self._authenticator.authenticate(request.headers)
            passed = self._admitted(route, request, key)
        return await route.handler(self._call(request, names, passed))

    def known_key(self, headers: Fields, passed: Passed | None) -> ApiKey | None:
        """Who sent a request; None if storage must be asked. `passed`: see Incoming.

        Raises:
            Rejected: 401.
        """
        if passed is not None and self._authenticator.trusts(passed.key):
            return passed.key
        return self._authenticator.known(headers)

    def begin(
        self,
        route: Route,
        request: Incoming,
        key: ApiKey,
        on_end: Callable[[outcome.Maybe[Any]], None],
    ) -> Callable[[Any], Answer]:
        """As `answer`, without a task that waits, for a request with this `known_key` whose body
        has arrived, to a route with a `change`. `on_end` is told what `answer` would raise, or what
        the returned function makes the answer of, later than this returns.

        Raises:
            Exception: what `answer` would. `on_end` will not be called.
        """
        passed = request.passed
        if passed is not None and passed.key is key:
            request.answer_headers = self._limiter.take(key.id)
        else:
            passed = self._admitted(route, request, key)
        call = self._call(request, _NO_NAMES, passed)
        assert route.change is not None
        return idempotency.submit(call, route.change(call), on_end)

    def _admitted(self, route: Route, request: Incoming, key: ApiKey) -> Passed:
        request.answer_headers = self._limiter.take(key.id)
        authorise(key, route.scope)
        passed = Passed(key, _org(route, key, request.headers))
        request.remember(passed)
        return passed

    def _call(self, request: Incoming, names: Mapping[str, str], passed: Passed) -> Call:
        return Call(
            request,
            names,
            self._services,
            self._authenticator,
            self._running,
            passed.key,
            passed.org_id,
        )


def _org(route: Route, key: ApiKey, headers: Fields) -> str:
    if route.org == "none":
        return OPERATOR_ORG
    return org_of(key, headers, must_be_named=route.org == "header")
