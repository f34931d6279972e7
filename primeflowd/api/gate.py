"""What stands between a request and its handler, for all servers and all routes alike.

    key -> rate limit -> scope -> org -> handler

One gate serves the whole process: its memory of keys, of rates and of idempotency keys at work is
that of the API. Blocks and fails as auth.py, rate_limit.py and the handler do.
"""

from collections.abc import Mapping

import structlog

from primeflowd.api.answer import Answer
from primeflowd.api.auth import Authenticator, authorise, org_of
from primeflowd.api.call import AnswerScope, Call, Route
from primeflowd.api.incoming import Fields, Incoming, Passed
from primeflowd.api.rate_limit import RateLimiter
from primeflowd.api.services import Services
from primeflowd.config import Config
from primeflowd.model import OPERATOR_ORG, ApiKey


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
            request.answer_headers = self._limiter.take(key.id)
            authorise(key, route.scope)
            passed = Passed(key, _org(route, key, request.headers))
            request.remember(passed)
        return await route.handler(
            Call(
                request,
                names,
                self._services,
                self._authenticator,
                self._running,
                passed.key,
                passed.org_id,
            )
        )


def _org(route: Route, key: ApiKey, headers: Fields) -> str:
    if route.org == "none":
        return OPERATOR_ORG
    return org_of(key, headers, must_be_named=route.org == "header")
